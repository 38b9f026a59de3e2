"""Measures what a layer computes in one call: scale, saturation, rank.

Everything here is plain TensorFlow that compiles under XLA and runs inside `tf.cond`.
It looks at a sample: some examples of the batch, some places of an image.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfdeep._core._explain import a_type
from tfdeep._keras import _layer_facts
from tfdeep._keras._layer_calls import LayerCall

# A unit with a smaller slope passes on almost no gradient (sigmoid: |z| > 4.6, tanh:
# |z| > 3, ReLU: z < 0).
FLAT = 0.01

_SAMPLE = 65_536  # entries of a layer's output
_MOST_EXAMPLES = 128
_RANK_ROWS = 64


def measure(call: LayerCall) -> tuple[dict[str, tf.Tensor], tf.Tensor | None]:
    """Measures one call of a layer.

    Returns:
        The quantities by name, `flat_fraction` only where the activation is known;
        and for each unit whether it has a slope for any example, None if unknown.
    """
    axis = units_axis(call.layer)
    places = sample(call.output, axis)
    mean, std = moments(places)
    found = {
        "output_mean": mean,
        "output_std": std,
        "effective_rank": effective_rank(places),
        "nonfinite_output": _fraction(~tf.math.is_finite(places)),
    }
    if call.before_activation is None or not _has_slopes(call.activation):
        return found, None
    is_flat_at = is_flat(call.activation, sample(call.before_activation, axis))
    found["flat_fraction"] = _fraction(is_flat_at)
    return found, tf.reduce_any(~is_flat_at, axis=0)


def _has_slopes(activation: Any) -> bool:
    name = _layer_facts.activation_name(activation)
    return name is not None and _layer_facts.activation(name).has_slopes


def _fraction(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(mask, tf.float32))


def units_axis(layer: Any) -> int:
    """The axis of a layer's output along which its units lie."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    return -1


def sample(tensor: Any, axis: int = -1) -> tf.Tensor:
    """A sample of a layer's output in float32, as (places, units)."""
    if not isinstance(tensor, tf.Tensor):
        raise TypeError(f"{a_type(tensor)} is not a dense tensor")
    x = tf.cast(tensor, tf.float32)
    if x.shape.rank is None or x.shape.rank < 2:
        return tf.reshape(x, [-1, 1])
    if axis == 1 and x.shape.rank > 2:
        x = tf.transpose(x, [0, *range(2, x.shape.rank), 1])
    units = x.shape[-1] or 1
    inner = x.shape[1:-1]
    places = math.prod(inner) if inner.is_fully_defined() else 1
    examples = most_examples(units)
    x = x[:examples]
    # Neighbors in an image say the same twice; take every k-th of a row.
    stride = max(math.ceil(places * examples * units / _SAMPLE), 1)
    if inner.rank:
        x = tf.reshape(x, [tf.shape(x)[0], -1, units])[:, ::stride]
    return tf.reshape(x, [-1, units])


def most_examples(units: int) -> int:
    """How many examples of a batch a sample holds, at most."""
    return max(min(_SAMPLE // max(units, 1), _MOST_EXAMPLES), 8)


def is_flat(activation: Any, before: tf.Tensor) -> tf.Tensor:
    """Where an element-wise activation function has no slope to speak of."""
    with tf.GradientTape() as tape:
        tape.watch(before)
        after = activation(before)
    return tf.abs(tape.gradient(after, before)) < FLAT


def moments(places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and standard deviation over all entries of a sample."""
    mean = tf.reduce_mean(places)
    return mean, tf.sqrt(tf.reduce_mean(tf.square(places - mean)))


def effective_rank(places: tf.Tensor) -> tf.Tensor:
    """By how many directions the outputs of a layer differ.

        r = (sum of l_i)**2 / (sum of l_i**2)

    with the eigenvalues `l` of the covariance of the units (the participation
    ratio). It is 1 if all outputs lie on a line, 0 if they are equal, and NaN if
    they are zero. It needs no decomposition: both sums are traces.
    """
    count = tf.shape(places)[0]
    places = tf.pad(places, [[0, tf.cast(count == 0, tf.int32)], [0, 0]])
    rows = tf.gather(places, tf.range(_RANK_ROWS) * count // _RANK_ROWS)
    centered = rows - tf.reduce_mean(rows, axis=0)
    largest = tf.reduce_max(tf.abs(centered))
    centered = tf.math.divide_no_nan(centered, largest)  # no overflow of the squares
    gram = tf.matmul(centered, centered, transpose_b=True)
    rank = tf.square(tf.linalg.trace(gram)) / tf.reduce_sum(tf.square(gram))
    # What is left of equal rows is rounding, which has every rank.
    size = tf.reduce_max(tf.abs(rows))
    rank = tf.where(largest > 1e-6 * size, rank, 0.0)
    return tf.where(size > 0, rank, float("nan"))


def scale_of_features(places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """How far features lie from zero, and how far they spread, as root mean squares."""
    mean = tf.reduce_mean(places, axis=0)
    spread = tf.reduce_mean(tf.square(places - mean))
    return tf.sqrt(tf.reduce_mean(tf.square(mean))), tf.sqrt(spread)
