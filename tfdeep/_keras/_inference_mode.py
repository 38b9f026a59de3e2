"""Layers that always run as they do at inference."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras

from tfdeep._keras import _internals, _patches

# Layers of Keras that take `training` and make nothing of it, but for quantization.
_INDIFFERENT = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Resizing,
    keras.layers.CenterCrop,
)

# How Keras calls the strength of what its layers do in training only.
_STRENGTHS = ("rate", "dropout", "recurrent_dropout", "stddev")


def acts_in_training(layer: Any) -> bool:
    """Whether a layer may compute something else in training than at inference.

    A layer that takes `training` may, unless it is known not to: a layer of Keras
    whose dropout is zero, batch normalization that is not trainable, or a layer that
    only hands `training` on to layers which do not act in it.
    """
    call = type(layer).call
    takes_training = "training" in inspect.signature(call).parameters
    if not takes_training or _patches.is_installed(layer, "call"):
        return False
    if isinstance(layer, keras.layers.BatchNormalization):
        return bool(layer.trainable)
    if not call.__module__.startswith("keras."):
        return True
    strengths = [getattr(layer, name, None) for name in _STRENGTHS]
    strengths = [s for s in strengths if isinstance(s, (int, float))]
    inner = _internals.sublayers(layer)
    if inner or strengths:
        return any(strengths) or any(map(acts_in_training, inner))
    return not isinstance(layer, _INDIFFERENT)


def has_live_statistics(layer: Any) -> bool:
    """Whether batch normalization in it updates its moving statistics in training."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return bool(layer.trainable)
    return any(map(has_live_statistics, _internals.sublayers(layer)))


def run_as_inference(layer: Any) -> list[Any]:
    """Makes a layer, and those inside it, compute as at inference from now on.

    Keras has no switch for this: `trainable=False` leaves dropout active, and a
    Functional model passes its own `training` over a `training=False` given when the
    layer was connected. So the layer's `call` is replaced on this one object.

    A batch normalization that is not frozen, and what hands `training` on to it, are
    left as they are.

    Returns:
        The layers that were changed.
    """
    changed = []
    for inner in _internals.sublayers(layer):
        changed += run_as_inference(inner)
    if acts_in_training(layer) and not has_live_statistics(layer):
        _replace_call(layer)
        changed.append(layer)
    return changed


def run_as_called(layer: Any) -> None:
    """Undoes `run_as_inference`."""
    _patches.remove(layer, "call")
    for inner in _internals.sublayers(layer):
        run_as_called(inner)


def _replace_call(layer: Any) -> None:
    call = layer.call

    @functools.wraps(call)
    def inference_call(*args: Any, training: Any = None, **kwargs: Any) -> Any:
        return call(*args, training=False, **kwargs)

    _patches.install(layer, "call", inference_call, "runs as at inference")
