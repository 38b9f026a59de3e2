"""Measures what a batch gives a model and a loss: inputs, targets, predictions.

Everything here is plain TensorFlow that compiles under XLA and runs inside `tf.cond`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._keras._layer_outputs import scale_of_features


def pairs(y: Any, predictions: Any) -> list[tuple[Any, Any]]:
    """Each output of a model with its targets; None for those that are not known."""
    outputs = keras.tree.flatten(predictions)
    if isinstance(y, dict) and isinstance(predictions, dict):
        targets = [y.get(name) for name in sorted(predictions)]
    else:
        targets = keras.tree.flatten(y)
    if len(targets) != len(outputs):
        targets = [None] * len(outputs)
    return list(zip(targets, outputs, strict=True))


def of_output(target: Any, prediction: Any) -> dict[str, Any]:
    """Measures one output of a model, and its targets, for one batch."""
    found: dict[str, Any] = {}
    if is_numeric(target):
        y = tf.cast(target, tf.float32)
        is_finite = tf.math.is_finite(y)
        found |= _range("target", y)
        rows = _rows(y)
        found["target_nonfinite"] = _mean(tf.reduce_any(~_rows(is_finite), axis=1))
        found["target_fractional"] = _mean(tf.not_equal(y, tf.floor(y)))
        if y.shape.rank > 1:
            deviation = rows - tf.reduce_mean(rows, axis=1, keepdims=True)
            inner = tf.sqrt(tf.reduce_mean(tf.square(deviation)))
            has_several = tf.shape(rows)[1] > 1
            found["target_inner_spread"] = tf.where(has_several, inner, float("nan"))
    if is_numeric(prediction):
        found |= _range("prediction", tf.cast(prediction, tf.float32))
    return found


def of_batch(x: Any) -> dict[str, Any]:
    """Counts the examples of a batch, and those that hold NaN or infinity.

    `nonfinite_feature` is the place of the first such number within an example, the
    parts of a nested input one after the other; NaN if there is none.
    """
    parts = [part for part in keras.tree.flatten(x) if is_numeric(part)]
    if not parts:
        return {}
    found: dict[str, Any] = {"examples": tf.cast(tf.shape(parts[0])[0], tf.float32)}
    floats = [part for part in parts if part.dtype.is_floating]
    if floats:
        bad = tf.concat([_rows(~tf.math.is_finite(part)) for part in floats], 1)
        found["input_nonfinite"] = _mean(tf.reduce_any(bad, axis=1))
        by_feature = tf.reduce_any(bad, axis=0)
        first = tf.cast(tf.argmax(tf.cast(by_feature, tf.int32)), tf.float32)
        found["nonfinite_feature"] = tf.where(
            tf.reduce_any(by_feature), first, float("nan")
        )
    return found


def is_numeric(tensor: Any) -> bool:
    """Whether something is a dense tensor of numbers with a known rank."""
    if not tf.is_tensor(tensor) or not isinstance(tensor, tf.Tensor):
        return False
    dtype = tensor.dtype
    is_number = dtype.is_floating or dtype.is_integer or dtype.is_bool
    return is_number and tensor.shape.rank is not None and tensor.shape.rank >= 1


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor as (examples, numbers)."""
    return tf.reshape(tensor, [tf.shape(tensor)[0], -1])


def _mean(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(mask, tf.float32))


def _range(name: str, values: tf.Tensor) -> dict[str, tf.Tensor]:
    """Range and scale of what is finite, and the range of the sums of rows."""
    is_finite = tf.math.is_finite(values)
    known = tf.where(is_finite, values, 0.0)
    offset, spread = scale_of_features(_rows(known))
    found = {
        f"{name}_min": tf.reduce_min(tf.where(is_finite, values, values.dtype.max)),
        f"{name}_max": tf.reduce_max(tf.where(is_finite, values, values.dtype.min)),
        f"{name}_offset": offset,
        f"{name}_spread": spread,
    }
    if values.shape.rank > 1:
        sums = tf.reduce_sum(known, axis=-1)
        found[f"{name}_sum_min"] = tf.reduce_min(sums)
        found[f"{name}_sum_max"] = tf.reduce_max(sums)
    return found
