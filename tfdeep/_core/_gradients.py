"""What a step knows of its gradients: norms, largest entries, repeated rows.

Everything here is plain TensorFlow with fixed shapes, so that it compiles under XLA
and runs inside `tf.cond`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Gradient = Any  # tf.Tensor or tf.IndexedSlices

# Tensors of the same small size are measured as the rows of one matrix: most
# variables of a deep net are biases and scales, and a net of 42 variables spends more
# time on starting 126 operations than on their arithmetic.
_SMALL = 1024


def scale(gradient: Gradient, factor: Any) -> Gradient:
    """Multiplies a dense or sparse gradient by a scalar."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(
            scale(gradient.values, factor), gradient.indices, gradient.dense_shape
        )
    return gradient * tf.cast(factor, gradient.dtype)


def l2_norms(gradients: Sequence[Gradient]) -> tf.Tensor:
    """The L2 norm of each gradient, as one vector."""
    parts, places = _reduce_each(_measurable(gradients), tf.nn.l2_loss, _half_squares)
    return tf.sqrt(2 * tf.gather(parts, places))


def global_norm(gradients: Sequence[Gradient]) -> tf.Tensor:
    """The joint L2 norm of all gradients, as a scalar."""
    parts, _ = _reduce_each(_measurable(gradients), tf.nn.l2_loss, _half_squares)
    return tf.sqrt(2 * tf.reduce_sum(parts))


def _half_squares(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(rows), axis=1) / 2


def largest_entries(gradients: Sequence[Gradient]) -> tf.Tensor:
    """The largest absolute entry of each gradient, as one vector."""
    tensors = _measurable(gradients)
    # Two passes that only read are cheaper than one that writes the absolute values.
    highest, places = _reduce_each(
        tensors, tf.reduce_max, lambda x: tf.reduce_max(x, axis=1)
    )
    lowest, _ = _reduce_each(tensors, tf.reduce_min, lambda x: tf.reduce_min(x, axis=1))
    largest = tf.abs(tf.maximum(highest, -lowest))  # no negative zero
    return tf.gather(largest, places)


def entry_statistics(
    gradients: Sequence[Gradient], sizes: Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean, fraction of zeros, and number of NaN or infinite entries of each.

    Args:
        gradients: The gradients.
        sizes: How many entries the variable of each has: a sparse gradient names
            only some of them, the others being zero.
    """
    tensors = _measurable(gradients)
    size = tf.cast(tf.constant(sizes), tensors[0].dtype)

    def each(reduced: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        parts, places = _reduce_each(
            tensors,
            lambda x: tf.reduce_sum(reduced(x)),
            lambda x: tf.reduce_sum(reduced(x), axis=1),
        )
        return tf.gather(parts, places)

    def counted(condition: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        return each(lambda x: tf.cast(condition(x), x.dtype))

    sums = each(lambda x: x)
    zeros = size - counted(lambda x: tf.not_equal(x, 0))
    nonfinite = tf.cond(
        tf.reduce_all(tf.math.is_finite(sums)),
        lambda: tf.zeros_like(sums),
        lambda: counted(lambda x: ~tf.math.is_finite(x)),
    )
    return sums / size, zeros / size, nonfinite


def sum_repeated_rows(slices: tf.IndexedSlices) -> tuple[tf.Tensor, tf.Tensor]:
    """The rows of a sparse gradient with repeated rows added up; the rest are zero.

    An embedding's gradient holds one row for each use of an id. Norms of those rows
    are not the norms of the gradient until rows of the same id are summed.

    Returns:
        A tensor of the shape of `slices.values`: one row for each different id, then
        zero rows; and for each slice the place of its id among these.
    """
    order = tf.argsort(slices.indices)
    ids = tf.gather(slices.indices, order)
    is_new = tf.concat(
        [tf.zeros([1], tf.int32), tf.cast(ids[1:] != ids[:-1], tf.int32)], 0
    )
    place = tf.gather(tf.cumsum(is_new), tf.math.invert_permutation(order))
    rows = tf.math.unsorted_segment_sum(slices.values, place, tf.shape(ids)[0])
    return rows, place


def _measurable(gradients: Sequence[Gradient]) -> list[tf.Tensor]:
    """Dense tensors of one floating type, wide enough to hold a sum of squares."""
    tensors = [
        sum_repeated_rows(g)[0] if isinstance(g, tf.IndexedSlices) else g
        for g in gradients
    ]
    wide = any(tensor.dtype == tf.float64 for tensor in tensors)
    return [tf.cast(tensor, tf.float64 if wide else tf.float32) for tensor in tensors]


def _reduce_each(
    tensors: Sequence[tf.Tensor],
    whole: Callable[[tf.Tensor], tf.Tensor],
    rows: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[tf.Tensor, list[int]]:
    """Reduces each tensor to a number, small ones of the same size together.

    Args:
        tensors: The tensors.
        whole: Reduces one tensor to a scalar.
        rows: Reduces the rows of a matrix to a vector.

    Returns:
        A vector of the numbers, and the place of each tensor's number in it.
    """
    same_size = collections.defaultdict(list)
    for i, tensor in enumerate(tensors):
        size = tensor.shape.num_elements()
        same_size[size if size is not None and size <= _SMALL else (i,)].append(i)
    groups = [group for group in same_size.values() if len(group) > 1]
    alone = [group[0] for group in same_size.values() if len(group) == 1]

    parts = [rows(tf.stack([tf.reshape(tensors[i], [-1]) for i in g])) for g in groups]
    if alone:
        parts.append(tf.stack([whole(tensors[i]) for i in alone]))
    order = [i for group in groups for i in group] + alone
    place = {i: k for k, i in enumerate(order)}
    return tf.concat(parts, 0), [place[i] for i in range(len(tensors))]
