"""Whose a variable is.

A Keras variable does not know its layer, and optimizers, constraints and initializers
are handed nothing but variables and shapes. So the variable is told: by whoever is
handed a model, or by the callers, among which is the layer that makes a variable or the
model whose train step runs. What nobody has told is not known.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from tfdeep._core._explain import explain
from tfdeep._keras import _internals, _layer_facts, _optimizers, _walk
from tfdeep.errors import ModelError

_LAYER = "_tfdeep_layer"


def callers(kind: type | tuple[type, ...]) -> Iterator[tuple[Any, str]]:
    """The objects of a kind whose methods are running, and the methods' names.

    The innermost comes first. Each replica of a strategy runs in a thread of its own
    and sees the callers in that thread only.
    """
    frame = inspect.currentframe()
    while frame is not None:
        # Before Python 3.13 a frame keeps the locals that it was asked for, and with
        # them what its function deletes later. So only methods are asked.
        if frame.f_code.co_varnames[:1] == ("self",):
            me = frame.f_locals.get("self")
            if issubclass(type(me), kind):  # `isinstance` would wake lazy modules
                yield me, frame.f_code.co_name
        frame = frame.f_back


def tell(model: Any) -> None:
    """Tells whose the variables are that were made to be trained in a model."""
    for layer in (model, *_walk.every_layer(model)):
        for variable in _internals.declared_trainable(layer):
            vars(variable)[_LAYER] = weakref.ref(layer)


def layer_of(variable: Any) -> Any:
    """The layer of a variable, if one was told or is among the callers; else None."""
    for layer, _ in callers(keras.layers.Layer):
        if told_layer(variable) is not None:
            break
        tell(layer)
    return told_layer(variable)


def told_layer(variable: Any) -> Any:
    """The layer of a variable, if it was told; else None."""
    told = vars(variable).get(_LAYER)
    return None if told is None else told()


def model_in_training(optimizer: Any) -> Any:
    """The model among the callers that trains with this optimizer; None if none does.

    It may hold the optimizer itself, or one around it.
    """
    for model, _ in callers(keras.Model):
        chain = _optimizers.chain(getattr(model, "optimizer", None))
        if any(one is optimizer for one in chain):
            return model
    return None


def has_loss_scaling_around(optimizer: Any) -> bool:
    """Whether a `LossScaleOptimizer` among the callers holds this optimizer."""
    return any(
        one is optimizer
        for outer, _ in callers(keras.optimizers.LossScaleOptimizer)
        for one in _optimizers.chain(outer)
    )


def unit_axes(variable: Any, asker: str, fix: str) -> tuple[int, ...]:
    """The axes of one unit's weights; see `_layer_facts.unit_axes`.

    Args:
        variable: A `keras.Variable`.
        asker: Who needs them, for the error.
        fix: What to do where the layer is not known, for the error.

    Raises:
        ModelError: If they depend on the layer, and nobody has told which it is.
    """
    layer = layer_of(variable)
    if layer is None and variable.name == "kernel" and len(variable.shape) > 2:
        raise ModelError(
            explain(
                f"`{asker}` cannot tell which weights of `{variable.path}` belong to "
                "one unit: that depends on the layer, and it was not told the layer.",
                received=f"a kernel of shape {tuple(variable.shape)}",
                expected="a step of `fit` or `train_step`, or to be told the model",
                fix=f"{fix}; nothing was changed",
            )
        )
    return _layer_facts.unit_axes(variable, layer)
