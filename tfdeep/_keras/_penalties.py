"""The gradient of a penalty on a weight."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def gradient(variable: Any) -> tf.Tensor:
    """The gradient of a variable's own regularizer, as an array of its shape."""
    value = tf.convert_to_tensor(variable.value)
    with tf.GradientTape() as tape:
        tape.watch(value)
        penalty = variable.regularizer(value)
    found = tape.gradient(penalty, value)
    return tf.zeros_like(value) if found is None else found
