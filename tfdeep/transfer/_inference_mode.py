"""Layers that always run as they do at inference."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras

from tfdeep._core import _keras_internals

_MARK = "_tfdeep_training_call"


def acts_in_training(layer: Any) -> bool:
    """Whether a layer may compute something else in training than at inference.

    A layer says so by taking a `training` argument. Batch normalization that is not
    trainable uses its moving statistics in both.
    """
    if _MARK in vars(layer) or not _takes_training(layer):
        return False
    if isinstance(layer, keras.layers.BatchNormalization):
        return bool(layer.trainable)
    if isinstance(layer, keras.Model):
        return any(map(acts_in_training, _keras_internals.sublayers(layer)))
    return True


def run_as_inference(layer: Any) -> list[Any]:
    """Makes a layer, and those inside it, compute as at inference from now on.

    Keras has no switch for this: `trainable=False` leaves dropout active, and a
    Functional model passes its own `training` over a `training=False` given when the
    layer was connected. So the layer's `call` is replaced on this one object.

    Returns:
        The layers that were changed.
    """
    changed = []
    for inner in (layer, *_keras_internals.sublayers(layer)):
        if inner is not layer:
            changed += run_as_inference(inner)
        elif not isinstance(layer, keras.Model) and acts_in_training(layer):
            _replace_call(layer)
            changed.append(layer)
    return changed


def run_as_called(layer: Any) -> None:
    """Undoes `run_as_inference`."""
    attributes = vars(layer)
    if attributes.pop(_MARK, None):
        attributes.pop("call")
    for inner in _keras_internals.sublayers(layer):
        run_as_called(inner)


def _replace_call(layer: Any) -> None:
    call = layer.call

    @functools.wraps(call)
    def inference_call(*args: Any, training: Any = None, **kwargs: Any) -> Any:
        return call(*args, training=False, **kwargs)

    # Past `__setattr__`, which in Keras tracks what is assigned.
    vars(layer).update({_MARK: True, "call": inference_call})


def _takes_training(layer: Any) -> bool:
    return "training" in inspect.signature(type(layer).call).parameters
