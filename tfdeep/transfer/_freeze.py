"""Freezing and unfreezing layers by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfdeep._core import _keras_internals, _paths
from tfdeep._core._explain import listing
from tfdeep._core._graph import is_graph
from tfdeep._core._paths import ModelVariable, Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep.transfer import _graph
from tfdeep.transfer._inference_mode import run_as_called, run_as_inference
from tfdeep.transfer._optimizer_state import fit_to_trainable

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class LayerState:
    """What training may change in one layer.

    Attributes:
        path: The layer's path in its model.
        state: "frozen", "trainable" or "in part".
        frozen: Number of frozen weights (single numbers).
        trainable: Number of trainable weights.
        changed: True if this call changed the layer.
    """

    path: str
    state: str
    frozen: int
    trainable: int
    changed: bool


@dataclasses.dataclass(frozen=True)
class FreezeReport(Record):
    """Which variables are frozen now, and which train.

    Attributes:
        model: Name of the model.
        layers: Every layer that has weights.
        frozen: Paths of the frozen variables.
        trainable: Paths of the variables that train.
        changed: Paths of the variables that this call froze or unfroze.
        inference: Paths or names of the layers that now compute in training what
            they compute at inference (dropout and the like in the frozen part).
    """

    model: str
    layers: tuple[LayerState, ...]
    frozen: tuple[str, ...]
    trainable: tuple[str, ...]
    changed: tuple[str, ...]
    inference: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            (
                layer.path,
                layer.state + (" *" if layer.changed else ""),
                f"{layer.frozen:,}",
                f"{layer.trainable:,}",
            )
            for layer in self.layers
        ]
        total = sum(layer.trainable for layer in self.layers)
        notes = ["* changed by this call"] if self.changed else ["nothing changed"]
        if self.inference:
            notes.append(f"as at inference: {listing(self.inference, limit=6)}")
        return render_table(
            f"{self.model}: {total:,} weights train, "
            f"{sum(layer.frozen for layer in self.layers):,} are frozen",
            ["layer", "state", "frozen", "trainable"],
            shorten(rows, _MOST_ROWS),
            notes=notes,
            align="llrr",
        )


def freeze(
    model: Any, include: Patterns = None, exclude: Patterns = None
) -> FreezeReport:
    """Keeps chosen variables of a model from being trained, from now on.

    Use it before, between or after fits; a compiled model needs no new `compile`, and
    its optimizer keeps its moments for the variables that go on training.

    A layer whose variables are all frozen computes in training what it computes at
    inference, as Keras has it for batch normalization only: so do dropout layers
    inside it and, in a Functional or Sequential model, between frozen layers. What
    `cache_frozen` stores is therefore what uncached training would have computed.
    This last part lives in the layer objects: call `freeze` again on a loaded model.

    Args:
        model: A built model.
        include: A pattern or a list of patterns, such as `"hidden[12]"`; the
            variables to freeze. None freezes all.
        exclude: A pattern or a list of patterns; the variables to leave as they are.

    Returns:
        A `tfdeep.transfer.FreezeReport`, which prints as a table.

    Raises:
        SelectionError: If a pattern selects nothing.
        ModelError: If the model has no weights yet.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> report = tfdeep.freeze(model, include="hidden1")
    >>> report.frozen
    ('hidden1/kernel', 'hidden1/bias')
    """
    return _change(model, include, exclude, to_trainable=False)


def unfreeze(
    model: Any, include: Patterns = None, exclude: Patterns = None
) -> FreezeReport:
    """Lets chosen variables of a model be trained again, from now on.

    Use it to fine-tune more layers after the head has settled. A compiled model needs
    no new `compile`; its optimizer keeps its step count, learning rate and moments,
    and starts new moments for variables it has not trained before.

    Args:
        model: A built model.
        include: A pattern or a list of patterns; the variables to unfreeze. None
            unfreezes all.
        exclude: A pattern or a list of patterns; the variables to leave as they are.

    Returns:
        A `tfdeep.transfer.FreezeReport`, which prints as a table.

    Raises:
        SelectionError: If a pattern selects nothing.
        ModelError: If the model has no weights yet.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> _ = tfdeep.freeze(model)
    >>> tfdeep.unfreeze(model, include="outputs").trainable
    ('outputs/kernel', 'outputs/bias')
    """
    return _change(model, include, exclude, to_trainable=True)


def _change(
    model: Any, include: Patterns, exclude: Patterns, to_trainable: bool
) -> FreezeReport:
    variables = _paths.model_variables(model)
    selected = set(_paths.select([v.path for v in variables], include, exclude))
    before = _frozen(model, variables)
    kept = {id(v.variable) for v in variables if v.path not in selected}
    frozen = before & kept
    if not to_trainable:
        frozen |= {id(v.variable) for v in variables if v.path in selected}
    _set_flags(model, frozen)
    try:
        fit_to_trainable(model)
    except BaseException:
        _set_flags(model, before)
        raise
    inference = _set_inference(model)
    if model.train_function is not None:
        # The compiled step holds the list of variables it was traced with.
        model.make_train_function(force=True)
    return _report(model, variables, before, inference)


def _frozen(model: Any, variables: list[ModelVariable]) -> set[int]:
    """The ids of the variables that training would change, were they not frozen.

    A moving average is never trained; it counts as frozen when its layer is.
    """
    trained = {id(variable) for variable in model.trainable_weights}
    declared = {
        id(variable)
        for v in variables
        for variable in _keras_internals.declared_trainable(v.layer)
    }
    return {
        id(v.variable)
        for v in variables
        if id(v.variable) not in trained
        and (id(v.variable) in declared or not v.layer.trainable)
    }


def _set_flags(layer: Any, frozen: set[int]) -> None:
    """Sets `trainable` of a layer, those inside it and their variables."""
    if not layer.weights:
        return
    if _is_frozen(layer, frozen):
        layer.trainable = False  # also for everything inside
        return
    layer.trainable = True
    for inner in _keras_internals.sublayers(layer):
        _set_flags(inner, frozen)
    for variable in _keras_internals.declared_trainable(layer):
        variable.trainable = id(variable) not in frozen


def _is_frozen(layer: Any, frozen: set[int]) -> bool:
    """Whether all is frozen that could be trained, and something is frozen at all."""
    own = _paths.own_weights(layer)
    could_train = {id(v) for v in _keras_internals.declared_trainable(layer)}
    inner = [x for x in _keras_internals.sublayers(layer) if x.weights]
    return (
        any(id(v) in frozen for v in layer.weights)
        and all(id(v) in frozen or id(v) not in could_train for v in own)
        and all(_is_frozen(x, frozen) for x in inner)
    )


def _set_inference(model: Any) -> list[Any]:
    """Makes the frozen part compute as at inference, and all the rest as called."""
    run_as_called(model)
    changed: list[Any] = []

    def visit(layer: Any) -> None:
        if layer.weights and not layer.trainable_weights:
            changed.extend(run_as_inference(layer))
            return
        if is_graph(layer):
            for inner in _graph.frozen_part(layer).between():
                changed.extend(run_as_inference(inner))
        for inner in _keras_internals.sublayers(layer):
            visit(inner)

    visit(model)
    return changed


def _report(
    model: Any, variables: list[ModelVariable], before: set[int], inference: list[Any]
) -> FreezeReport:
    after = _frozen(model, variables)
    trained = {id(variable) for variable in model.trainable_weights}
    layers: dict[str, list[ModelVariable]] = {}
    for v in variables:
        layers.setdefault(v.layer_path or model.name, []).append(v)
    return FreezeReport(
        model=model.name,
        layers=tuple(
            _layer_state(path, own, before, after, trained)
            for path, own in layers.items()
        ),
        frozen=tuple(v.path for v in variables if id(v.variable) in after),
        trainable=tuple(v.path for v in variables if id(v.variable) in trained),
        changed=tuple(v.path for v in variables if id(v.variable) in before ^ after),
        inference=tuple(dict.fromkeys(layer.name for layer in inference)),
    )


def _layer_state(
    path: str,
    variables: list[ModelVariable],
    before: set[int],
    after: set[int],
    trained: set[int],
) -> LayerState:
    def count(ids: set[int]) -> int:
        return sum(
            math.prod(v.variable.shape) for v in variables if id(v.variable) in ids
        )

    has_frozen = any(id(v.variable) in after for v in variables)
    has_trained = any(id(v.variable) in trained for v in variables)
    return LayerState(
        path=path,
        state="in part"
        if has_frozen and has_trained
        else ("frozen" if has_frozen else "trainable"),
        frozen=count(after),
        trainable=count(trained),
        changed=any(id(v.variable) in before ^ after for v in variables),
    )
