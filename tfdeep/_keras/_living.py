"""Finds the layer or model behind a variable or an optimizer.

Neither of them knows whose it is, and Keras hands an optimizer nothing but variables.
What a rule needs beyond them (is this kernel a transposed convolution's?) is looked
up among the objects that are alive: once a trace, in some hundredths of a second.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import keras

from tfdeep._keras import _internals, _optimizers


def layers_of(variables: Iterable[Any]) -> dict[int, Any]:
    """The layer of each variable by the variable's `id`; some may be missing."""
    wanted = {id(variable) for variable in variables}
    return {
        id(variable): layer
        for layer in _living(keras.layers.Layer)
        for variable in _internals.declared_trainable(layer)
        if id(variable) in wanted
    }


def layers() -> list[Any]:
    """Every layer and model that is alive."""
    return _living(keras.layers.Layer)


def models_compiled_with(optimizer: Any) -> list[Any]:
    """The models to whose `compile` this optimizer was given, wrapped or bare."""
    return [
        model
        for model in _living(keras.Model)
        if any(
            o is optimizer for o in _optimizers.chain(getattr(model, "optimizer", None))
        )
    ]


def has_loss_scaling_around(optimizer: Any) -> bool:
    """Whether a `LossScaleOptimizer` wraps this optimizer."""
    return any(
        any(o is optimizer for o in _optimizers.chain(outer))
        for outer in _living(keras.optimizers.LossScaleOptimizer)
    )


def _living(kind: type) -> list[Any]:
    # Not `isinstance`: it would wake the lazy modules of other packages.
    return [item for item in gc.get_objects() if issubclass(type(item), kind)]
