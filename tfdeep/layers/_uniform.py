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


def coarse_uniform(
    seed: keras.random.SeedGenerator, shape: Any, low: float, high: float, dtype: Any
) -> tf.Tensor:
    """Draws from the middles of 65,536 equal parts of [low, high], by Philox.

    Where each element of a large tensor needs a number, drawing is what takes the
    time: here each 32 bits that are drawn make two numbers.
    """
    count = tf.reduce_prod(shape)
    bits = tf.random.stateless_uniform(
        [(count + 1) // 2], seed.next(), None, None, dtype=tf.int32, alg="philox"
    )
    halves = tf.reshape(tf.bitcast(bits, tf.int16), [-1])[:count]
    width = (high - low) / 2**16
    middle = (low + high + width) / 2  # the halves are -32768 to 32767
    drawn = tf.cast(tf.reshape(halves, shape), tf.float32) * width + middle
    return tf.cast(drawn, dtype)
