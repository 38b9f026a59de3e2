"""A ring of rows on the device: written inside the step, read between the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


class Ring:
    """Holds one row of numbers for each of the last steps; NaN where none was written.

    Args:
        capacity: How many rows it holds.
        columns: How many numbers are in a row.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        self._capacity = capacity
        self._blank = np.full([capacity, columns], np.nan, np.float32)
        self._rows = local_variable(tf.constant(self._blank))

    def write(self, step: tf.Tensor, row: tf.Tensor) -> None:
        """Writes the row of a step, inside the step."""
        place = tf.cast(step % self._capacity, tf.int32)
        slices = tf.IndexedSlices(row[tf.newaxis], place[tf.newaxis])
        self._rows.scatter_update(slices)

    def take(
        self, rows: np.ndarray, across: Callable[..., np.ndarray] | None = None
    ) -> np.ndarray:
        """Reads rows, and empties the ring.

        Args:
            rows: Their places, in the order wanted.
            across: How rows of several replicas become one, where replicas write
                different numbers: a reduction such as `np.mean`.
        """
        if across is None:
            values = np.array(self._rows.numpy())[rows]
        else:
            copies = getattr(self._rows, "values", None) or [self._rows]
            values = across([copy.numpy()[rows] for copy in copies], axis=0)
        self._rows.assign(self._blank)
        return np.asarray(values)


def local_variable(value: Any) -> tf.Variable:
    """A variable that every replica writes by itself."""
    return tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.NONE)


def is_at_hand(tensor: Any) -> bool:
    """Whether a tensor belongs to the function that is traced now, or to none."""
    if tf.executing_eagerly():
        return True
    return getattr(tensor, "graph", None) is tf.compat.v1.get_default_graph()


def sometimes(
    predicate: tf.Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]
) -> Any:
    """`tf.cond`, where `then` is rarely true: it costs little when it is not.

    TensorFlow inlines a branch, and then visits each of its operations at every step,
    if only to find that it is not run.
    """
    if not tf.executing_eagerly():
        as_one = {"_noinline": True}
        then = tf.function(then, autograph=False, experimental_attributes=as_one)
    return tf.cond(predicate, then, otherwise)
