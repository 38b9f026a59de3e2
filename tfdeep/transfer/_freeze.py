"""Freezing and unfreezing layers by name."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import keras

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep._keras import _internals, _optimizer_state, _variables
from tfdeep._keras._graph import is_graph
from tfdeep._keras._inference_mode import (
    has_live_statistics,
    run_as_called,
    run_as_inference,
)
from tfdeep._keras._train_step import TrainSteps
from tfdeep._keras._variables import ModelVariable
from tfdeep.errors import InvalidArgumentError, TrainableFlagWarning
from tfdeep.transfer import _graph

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
        inference: Names of the layers that now compute in training what they compute
            at inference (dropout and the like in the frozen part).
        batch_norm_inference: Paths of the frozen batch normalizations, which
            normalize by their moving statistics and do not change these.
        batch_norm_train: Paths of the frozen batch normalizations that normalize by
            the batch and go on updating their moving statistics.
    """

    model: str
    layers: tuple[LayerState, ...]
    frozen: tuple[str, ...]
    trainable: tuple[str, ...]
    changed: tuple[str, ...]
    inference: tuple[str, ...]
    batch_norm_inference: tuple[str, ...] = ()
    batch_norm_train: tuple[str, ...] = ()

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
        for what, layers in (
            ("as at inference", self.inference),
            ("batch norm by moving statistics", self.batch_norm_inference),
            ("batch norm by the batch", self.batch_norm_train),
        ):
            if layers:
                notes.append(f"{what}: {listing(layers, limit=6)}")
        return render_table(
            f"{self.model}: {total:,} weights train, "
            f"{sum(layer.frozen for layer in self.layers):,} are frozen",
            ["layer", "state", "frozen", "trainable"],
            shorten(rows, _MOST_ROWS),
            notes=notes,
            align="llrr",
        )


def freeze(
    model: Any,
    include: Patterns = None,
    exclude: Patterns = None,
    batch_norm: str = "inference",
) -> FreezeReport:
    """Keeps chosen variables of a model from being trained, from now on.

    Use it before, between or after fits; a compiled model needs no new `compile`, and
    its optimizer keeps its moments for the variables that go on training.

    A layer whose variables are all frozen computes in training what it computes at
    inference, as Keras has it for batch normalization only: so do dropout layers
    inside it and, in a Functional or Sequential model, between frozen layers. What
    `cache_frozen` stores is therefore what uncached training would have computed.
    This last part lives in the layer objects, and a file keeps `trainable` of whole
    layers only: call `freeze` again on a loaded model.

    Should a `trainable` flag of this model be set by hand afterwards, the next `fit`
    goes by it and says so with a `TrainableFlagWarning`. (Of a model that tfdeep was
    never called on, Keras' `fit` ignores it, and nothing of tfdeep runs that could
    say so but `GradientMonitor` and `GradualUnfreeze`.)

    Args:
        model: A built model.
        include: A pattern or a list of patterns, such as `"hidden[12]"`; the
            variables to freeze. None freezes all.
        exclude: A pattern or a list of patterns; the variables to leave as they are.
        batch_norm: What the chosen `BatchNormalization` layers do in training once
            gamma and beta are frozen. "inference" normalizes by the moving
            statistics, which stay as they are. "train" normalizes by the statistics
            of the batch and goes on updating the moving ones: for data that differ
            from those of the first training.

    Returns:
        A `tfdeep.transfer.FreezeReport`, which prints as a table.

    Raises:
        InvalidArgumentError: If `batch_norm` is neither of the two.
        SelectionError: If a pattern selects nothing.
        ModelError: If the model has no weights yet.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> report = tfdeep.freeze(model, include="hidden1")
    >>> report.frozen
    ('hidden1/kernel', 'hidden1/bias')
    """
    if batch_norm not in ("inference", "train"):
        raise InvalidArgumentError(
            explain(
                "`freeze` does not know this way for batch normalization to run.",
                received=f"batch_norm={batch_norm!r}",
                expected='"inference" or "train"',
                fix="leave `batch_norm` out for inference; nothing was changed",
            )
        )
    return _change(model, include, exclude, frozen_norms=batch_norm)


def unfreeze(
    model: Any, include: Patterns = None, exclude: Patterns = None
) -> FreezeReport:
    """Lets chosen variables of a model be trained again, from now on.

    Use it to fine-tune more layers after the head has settled. A compiled model needs
    no new `compile`; its optimizer keeps its step count, learning rate and moments,
    and starts new moments for variables it has not trained before. (Adam's correction
    of new moments goes by the step count: after thousands of steps, the first dozen
    updates of such variables are up to six times as long as the learning rate says.
    A lower rate helps, as in `GradualUnfreeze(..., rate_factor=0.2)`.)

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
    return _change(model, include, exclude, frozen_norms=None)


def _change(
    model: Any, include: Patterns, exclude: Patterns, frozen_norms: str | None
) -> FreezeReport:
    """Freezes, or unfreezes if `frozen_norms` is None."""
    variables = _variables.model_variables(model)
    selected = set(_paths.select([v.path for v in variables], include, exclude))
    chosen = [v for v in variables if v.path in selected]
    before = _frozen(model, variables)
    frozen = before - {id(v.variable) for v in chosen}
    if frozen_norms is not None:
        frozen |= {id(v.variable) for v in chosen}
        statistics = _statistics([v.layer for v in chosen], frozen)
        frozen -= statistics
        if frozen_norms == "inference":
            frozen |= statistics
    watch_flags(model)
    _set_flags(model, frozen)
    try:
        inference = _take_effect(model)
    except BaseException:
        _set_flags(model, before)
        raise
    return _report(model, variables, before, inference)


def _take_effect(model: Any) -> list[Any]:
    """Makes training go by the flags; returns what then runs as at inference."""
    _optimizer_state.fit_to_trainable(model)
    inference = _set_inference(model)
    if model.train_function is not None:
        # A traced step goes on training the variables that it was traced with.
        TrainSteps.of(model).choose()
    return inference


def watch_flags(model: Any) -> None:
    """Has each `fit` of a model go by its flags, and notice those set by hand."""

    def notice() -> None:
        if not _optimizer_state.fits(model):
            notice_flags_set_by_hand(model, stacklevel=6)

    TrainSteps.of(model).follow_flags(notice, _optimizer_state.fits(model))


def notice_flags_set_by_hand(model: Any, stacklevel: int = 2) -> None:
    """Makes training go by flags that Keras would ignore, and says which.

    To go by them is what whoever set them meant, what reports say and files keep.
    """
    watch_flags(model)
    trainable = {id(v) for v in model.trainable_variables}
    known = {id(v) for v in _optimizer_state.known_variables(model)}
    paths = {id(v.variable): v.path for v in _variables.model_variables(model)}
    changed = {
        what: [paths[i] for i in paths if i in ids]
        for what, ids in (
            ("frozen", known - trainable),
            ("unfrozen", trainable - known),
        )
    }
    if model.train_function is not None and any(changed.values()):
        warnings.warn(
            "\n"
            + explain(
                f"The flags of `{model.name}` were changed by hand after `compile`. "
                "Keras would train as before; this fit goes by the flags.",
                received="; ".join(
                    f"{what} by hand: {listing(names)}"
                    for what, names in changed.items()
                    if names
                ),
                expected="`tfdeep.freeze` or `tfdeep.unfreeze`, which take effect at "
                "once, or a new `compile`",
                fix="`tfdeep.freeze(model, include=...)` instead of the flag",
            ),
            TrainableFlagWarning,
            stacklevel=stacklevel,
        )
    _take_effect(model)


def _statistics(layers: list[Any], frozen: set[int]) -> set[int]:
    """The ids of the moving statistics of normalizations whose other weights froze."""
    found = set()
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            trained = {id(v) for v in _internals.declared_trainable(layer)}
            if trained <= frozen:
                found |= {id(v) for v in layer.weights} - trained
    return found


def _frozen(model: Any, variables: list[ModelVariable]) -> set[int]:
    """The ids of the variables that training would change, were they not frozen.

    A moving average is never trained; it counts as frozen when its layer is.
    """
    trained = {id(variable) for variable in model.trainable_weights}
    declared = {
        id(variable)
        for v in variables
        for variable in _internals.declared_trainable(v.layer)
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
    for inner in _internals.sublayers(layer):
        _set_flags(inner, frozen)
    for variable in _internals.declared_trainable(layer):
        variable.trainable = id(variable) not in frozen


def _is_frozen(layer: Any, frozen: set[int]) -> bool:
    """Whether all is frozen that could be trained, and something is frozen at all."""
    own = _variables.own_weights(layer)
    if not isinstance(layer, keras.layers.BatchNormalization):
        could_train = {id(v) for v in _internals.declared_trainable(layer)}
        own = [v for v in own if id(v) in could_train]
    inner = [x for x in _internals.sublayers(layer) if x.weights]
    return (
        any(id(v) in frozen for v in layer.weights)
        and all(id(v) in frozen for v in own)
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
        for inner in _internals.sublayers(layer):
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
        batch_norm_inference=tuple(_frozen_norms(layers, after, live=False)),
        batch_norm_train=tuple(_frozen_norms(layers, after, live=True)),
    )


def _frozen_norms(
    layers: dict[str, list[ModelVariable]], frozen: set[int], live: bool
) -> list[str]:
    """The batch normalizations with nothing to train, by how they run."""
    return [
        path
        for path, own in layers.items()
        if isinstance(own[0].layer, keras.layers.BatchNormalization)
        and not own[0].layer.trainable_weights
        and any(id(v.variable) in frozen for v in own)
        and has_live_statistics(own[0].layer) == live
    ]


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
