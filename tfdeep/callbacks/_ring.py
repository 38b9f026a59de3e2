"""A ring of rows on the device: written inside the step, read between the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class Ring:
    """Holds some quantities for each of the last steps; NaN where none was written.

    Args:
        capacity: How many steps it holds.
        quantities: The names of the quantities, each a row of numbers a step.
        columns: How many numbers are in a row.
        across: How rows of several replicas become one, where replicas write
            different numbers: a reduction such as `np.mean`.
    """

    def __init__(
        self,
        capacity: int,
        quantities: Sequence[str],
        columns: int,
        across: Callable[..., np.ndarray] | None = None,
    ) -> None:
        self._capacity = capacity
        self._columns = columns
        self._across = across
        self._first_row = {name: i * capacity for i, name in enumerate(quantities)}
        # One variable for all: reading and emptying take their time by the variable.
        self._blank = tf.fill([capacity * len(quantities), columns], np.float32(np.nan))
        self._rows = local_variable(self._blank)

    def write(self, step: tf.Tensor, **rows: tf.Tensor) -> None:
        """Writes rows of a step, inside the step."""
        place = tf.cast(step % self._capacity, tf.int32)
        first_rows = [self._first_row[name] for name in rows]
        if len(rows) == 1:  # fewer operations for what is written at every step
            row = next(iter(rows.values()))
            place = place + first_rows[0] if first_rows[0] else place
        else:
            row = tf.stack(list(rows.values()))
            place = place + tf.constant(first_rows, tf.int32)
        self._rows.scatter_update(tf.IndexedSlices(row, place))

    def take(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Reads what was written, and empties the ring.

        Args:
            places: The places of the steps, in the order wanted.

        Returns:
            By quantity, an array of shape (steps, columns).
        """
        if not self._columns:
            return {n: np.empty([len(places), 0], np.float32) for n in self._first_row}
        shape = (len(self._first_row), self._capacity, self._columns)
        if self._across is None:
            values = self._rows.numpy().reshape(shape)[:, places]
        else:
            replicas = getattr(self._rows, "values", None) or [self._rows]
            rows = [replica.numpy().reshape(shape)[:, places] for replica in replicas]
            values = self._across(rows, axis=0)
        self._rows.assign(self._blank)
        return dict(zip(self._first_row, values, strict=True))


def local_variable(value: Any) -> tf.Variable:
    """A variable that every replica writes by itself."""
    return tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.NONE)


def is_at_hand(tensor: Any) -> bool:
    """Whether a tensor belongs to the function that is traced now, or to none."""
    parts = tf.nest.flatten(tensor, expand_composites=True)
    if tf.executing_eagerly():
        return not any(tf.is_symbolic_tensor(part) for part in parts)
    graph = tf.compat.v1.get_default_graph()
    return all(getattr(part, "graph", None) is graph for part in parts)
