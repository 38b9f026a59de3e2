"""Draws new values for variables of a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfdeep._core import _paths
from tfdeep._core._explain import a_type, explain, listing
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep._keras import _internals, _variables
from tfdeep._keras._variables import ModelVariable
from tfdeep.errors import InvalidArgumentError, ModelError
from tfdeep.initializers._owner import drawing_for
from tfdeep.initializers._random import RandomInitializer

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class DrawnVariable:
    """A variable that got new values.

    Attributes:
        path: The variable's path in its model.
        shape: Its shape.
        std_before: Standard deviation of its entries before.
        std_after: And after.
    """

    path: str
    shape: tuple[int, ...]
    std_before: float
    std_after: float


@dataclasses.dataclass(frozen=True)
class ReinitializeReport(Record):
    """What `tfdeep.initializers.reinitialize` has done.

    Attributes:
        model: Name of the model.
        drawn: The variables that got new values.
        kept: Paths of the variables that are never drawn: states of random generators,
            counts, and what `adapt` has learned from data.
    """

    model: str
    drawn: tuple[DrawnVariable, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            (
                v.path,
                "x".join(map(str, v.shape)),
                f"{v.std_before:.3g}",
                f"{v.std_after:.3g}",
            )
            for v in self.drawn
        ]
        return render_table(
            f"{self.model}: {len(self.drawn)} variables drawn again",
            ["variable", "shape", "std before", "std after"],
            shorten(rows, _MOST_ROWS),
            notes=[f"kept: {listing(self.kept)}"] if self.kept else [],
            align="llrr",
        )


def reinitialize(
    model: Any,
    include: Patterns = None,
    exclude: Patterns = None,
    initializer: Any = None,
) -> ReinitializeReport:
    """Draws new values for chosen variables of a model.

    Use it to start a head or the upper layers again in transfer learning, or to try
    another initializer on a net that is built. A compiled model stays compiled; its
    optimizer keeps its moments, so compile again for a fresh start.

    Without `initializer` each variable starts as its layer would start it. A Keras
    initializer with a seed then gives the values of the first start again.

    Args:
        model: A built model.
        include: A pattern or a list of patterns, such as `"outputs"`; the variables to
            draw. None takes all.
        exclude: A pattern or a list of patterns; the variables to leave as they are.
        initializer: Name of a Keras initializer, or an initializer, for all of them.
            Those of tfdeep know the layer of each variable. None for each layer's
            own.

    Returns:
        A `tfdeep.initializers.ReinitializeReport`, which prints as a table.

    Raises:
        SelectionError: If a pattern selects nothing.
        InvalidArgumentError: If the initializer cannot draw one of the variables.
        ModelError: If the model has no weights yet, or a layer cannot be made
            again from its config. Nothing is changed by any of them.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> report = tfdeep.initializers.reinitialize(model, include="outputs")
    >>> [variable.path for variable in report.drawn]
    ['outputs/kernel', 'outputs/bias']
    """
    variables = _variables.model_variables(model)
    drawable = [v for v in variables if _is_drawable(v)]
    chosen = set(_paths.select([v.path for v in drawable], include, exclude))
    drawn = [v for v in drawable if v.path in chosen]
    if initializer is None:
        values = _of_their_layers(drawn)
    else:
        values = [_drawn_by(initializer, v) for v in drawn]
    before = [keras.ops.convert_to_numpy(v.variable) for v in drawn]
    for v, value in zip(drawn, values, strict=True):
        v.variable.assign(value)
    return ReinitializeReport(
        model=model.name,
        drawn=tuple(
            DrawnVariable(v.path, tuple(v.variable.shape), _std(old), _std(new))
            for v, old, new in zip(drawn, before, values, strict=True)
        ),
        kept=tuple(v.path for v in variables if not _is_drawable(v)),
    )


def _is_drawable(v: ModelVariable) -> bool:
    is_float = keras.backend.is_float_dtype(v.variable.dtype)
    trained = any(w is v.variable for w in _internals.declared_trainable(v.layer))
    return is_float and (trained or not hasattr(v.layer, "adapt"))


def _drawn_by(initializer: Any, v: ModelVariable) -> np.ndarray:
    try:
        draw = keras.initializers.get(initializer)
    except ValueError as error:
        raise InvalidArgumentError(
            explain(
                "Keras knows no such initializer.",
                received=f"initializer={initializer!r}",
                expected='a name such as "he_normal", or an initializer',
                fix="pass the initializer itself; nothing was changed",
            )
        ) from error
    is_of_keras = isinstance(draw, keras.initializers.Initializer) and not isinstance(
        draw, RandomInitializer
    )
    if is_of_keras:
        draw = draw.clone()  # one instance gives the same values in every call
    shape = tuple(v.variable.shape)
    with drawing_for(v.layer, v.variable):
        value = np.asarray(draw(shape, dtype=v.variable.dtype))
    if value.shape != shape:
        raise InvalidArgumentError(
            explain(
                f"The initializer does not fit `{v.path}`.",
                received=f"values of shape {value.shape}",
                expected=f"shape {shape}",
                fix="return values of the requested shape; nothing was changed",
            )
        )
    return value


def _of_their_layers(variables: list[ModelVariable]) -> list[np.ndarray]:
    """The values with which new layers of the same configs start."""
    layers = {id(v.layer): v for v in variables}
    new: dict[int, np.ndarray] = {}
    for v in layers.values():
        fresh = _remade(v)
        for old, other in zip(
            _variables.own_weights(v.layer), _variables.own_weights(fresh), strict=True
        ):
            new[id(old)] = keras.ops.convert_to_numpy(other)
    return [new[id(v.variable)] for v in variables]


def _remade(v: ModelVariable) -> Any:
    layer = v.layer
    try:
        fresh = type(layer).from_config(layer.get_config())
        # Layers that share an initializer of ours go on sharing it.
        for name, value in vars(layer).items():
            if isinstance(value, RandomInitializer):
                vars(fresh)[name] = value
        if not fresh.built:
            fresh.build_from_config(layer.get_build_config())
        shapes = [tuple(w.shape) for w in _variables.own_weights(fresh)]
    except Exception as error:  # whatever the user's layer may raise
        raise _not_remade(v, f"{type(error).__name__}: {error}") from error
    expected = [tuple(w.shape) for w in _variables.own_weights(layer)]
    if shapes != expected:
        raise _not_remade(v, f"weights of shapes {shapes} instead of {expected}")
    return fresh


def _not_remade(v: ModelVariable, received: str) -> ModelError:
    return ModelError(
        explain(
            f"The layer of `{v.path}` cannot be made again from its config.",
            received=received,
            expected=f"{a_type(v.layer)} whose `get_config` and `build` are complete",
            fix="pass `initializer` for it, or leave it out by `exclude`; "
            "nothing was changed",
        )
    )


def _std(values: np.ndarray) -> float:
    return float(np.std(values.astype("float64")))
