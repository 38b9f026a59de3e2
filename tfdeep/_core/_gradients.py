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


class Grouped:
    """Gradients as dense tensors, small ones of the same size as the rows of a matrix.

    The measures below take it in the place of the gradients. A branch of `tf.cond` that
    measures them then takes fewer tensors from outside, each of which costs an
    operation at every step, be the branch taken or not.

    Args:
        gradients: The gradients.
    """

    def __init__(self, gradients: Sequence[Gradient]) -> None:
        tensors = _measurable(gradients)
        same_size = collections.defaultdict(list)
        for i, tensor in enumerate(tensors):
            size = tensor.shape.num_elements()
            same_size[size if size is not None and size <= _SMALL else (i,)].append(i)
        groups = [group for group in same_size.values() if len(group) > 1]
        alone = [group[0] for group in same_size.values() if len(group) == 1]
        self._matrices = [
            tf.stack([tf.reshape(tensors[i], [-1]) for i in group]) for group in groups
        ]
        self._alone = [tensors[i] for i in alone]
        order = [i for group in groups for i in group] + alone
        place = {i: k for k, i in enumerate(order)}
        self._places = [place[i] for i in range(len(tensors))]
        self.dtype = tensors[0].dtype

    def entries(self) -> list[tf.Tensor]:
        """The entries of each gradient, as a vector."""
        rows = [row for matrix in self._matrices for row in tf.unstack(matrix)]
        rows += [tf.reshape(tensor, [-1]) for tensor in self._alone]
        return [rows[place] for place in self._places]

    def reduce(
        self,
        whole: Callable[[tf.Tensor], tf.Tensor],
        rows: Callable[[tf.Tensor], tf.Tensor],
        in_order: bool = True,
    ) -> tf.Tensor:
        """Reduces each gradient to a number, those of one matrix together.

        Args:
            whole: Reduces one tensor to a scalar.
            rows: Reduces the rows of a matrix to a vector.
            in_order: Whether the numbers must be in the order of the gradients.

        Returns:
            A vector of the numbers.
        """
        parts = [rows(matrix) for matrix in self._matrices]
        if self._alone:
            parts.append(tf.stack([whole(tensor) for tensor in self._alone]))
        numbers = tf.concat(parts, 0)
        return tf.gather(numbers, self._places) if in_order else numbers


def l2_norms(gradients: Sequence[Gradient] | Grouped) -> tf.Tensor:
    """The L2 norm of each gradient, as one vector."""
    return tf.sqrt(2 * _grouped(gradients).reduce(tf.nn.l2_loss, _half_squares))


def global_norm(gradients: Sequence[Gradient]) -> tf.Tensor:
    """The joint L2 norm of all gradients, as a scalar."""
    grouped = _grouped(gradients)
    parts = grouped.reduce(tf.nn.l2_loss, _half_squares, in_order=False)
    return tf.sqrt(2 * tf.reduce_sum(parts))


def _half_squares(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(rows), axis=1) / 2


def largest_entries(gradients: Sequence[Gradient] | Grouped) -> tf.Tensor:
    """The largest absolute entry of each gradient, as one vector."""
    grouped = _grouped(gradients)
    # Two passes that only read are cheaper than one that writes the absolute values.
    highest = grouped.reduce(tf.reduce_max, lambda x: tf.reduce_max(x, axis=1))
    lowest = grouped.reduce(tf.reduce_min, lambda x: tf.reduce_min(x, axis=1))
    return tf.abs(tf.maximum(highest, -lowest))  # no negative zero


def entry_statistics(
    gradients: Sequence[Gradient] | Grouped, sizes: Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean, fraction of zeros, and number of NaN or infinite entries of each.

    Args:
        gradients: The gradients.
        sizes: How many entries the variable of each has: a sparse gradient names
            only some of them, the others being zero.
    """
    grouped = _grouped(gradients)
    size = tf.cast(tf.constant(sizes), grouped.dtype)

    def each(reduced: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        return grouped.reduce(
            lambda x: tf.reduce_sum(reduced(x)),
            lambda x: tf.reduce_sum(reduced(x), axis=1),
        )

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


def _grouped(gradients: Sequence[Gradient] | Grouped) -> Grouped:
    return gradients if isinstance(gradients, Grouped) else Grouped(gradients)


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
