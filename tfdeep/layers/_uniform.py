"""Uniform random numbers that are fast with and without XLA."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def uniform(
    seed: keras.random.SeedGenerator, shape: Any, low: float, high: float, dtype: Any
) -> tf.Tensor:
    """Draws from U(low, high) by Philox.

    `keras.random.uniform` lets TensorFlow choose the generator; XLA on a CPU then
    takes one that is more than ten times slower.
    """
    return tf.random.stateless_uniform(
        shape, seed.next(), minval=low, maxval=high, dtype=dtype, alg="philox"
    )
