"""The dataset that a head is trained on: rows of tables in memory or on disk."""

from __future__ import annotations

import math
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_AHEAD = 2  # batches that are ready before they are asked for
_GLANCE = 16  # batches
_ALIGNMENT = 64  # bytes; TensorFlow ends the process over numbers that lie elsewhere

# Bytes of a table that may be held twice: TensorFlow's own slices of a tensor start an
# epoch in a third of the time, but copy it for each iterator.
_SMALL = 1 << 28

# Converting these functions, which need no conversion, takes AutoGraph a second.
_as_it_is = tf.autograph.experimental.do_not_convert


class Table:
    """Rows that can be taken in any order.

    Args:
        columns: For each column, the arrays that hold its rows, one after the other.
            All but the last array of a column have as many rows as the first. Of
            arrays that are mapped from files, no more is in memory than the system
            likes to keep.

    Attributes:
        rows: Number of rows.
        bytes: Size of all of them.
    """

    def __init__(self, columns: Sequence[Sequence[np.ndarray]]) -> None:
        self._columns = [_Column(arrays) for arrays in columns]
        self.rows = sum(map(len, columns[0]))
        self.bytes = sum(column.bytes for column in self._columns)

    def take(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The rows with these numbers, one tensor for each column.

        Args:
            indices: int64 of shape `(n,)`.
        """
        return tuple(column.take(indices) for column in self._columns)


class _Column:
    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._shape = arrays[0].shape[1:]
        self._dtype = tf.as_dtype(arrays[0].dtype)
        self._is_mapped = isinstance(arrays[0], np.memmap)
        self._rows_per_array = len(arrays[0])
        self._pieces = [
            _Held(_mapped(a) if self._is_mapped else _copied(a)) for a in arrays
        ]
        self.bytes = sum(len(a) for a in arrays) * math.prod(self._shape)
        self.bytes *= self._dtype.size

    def take(self, indices: tf.Tensor) -> tf.Tensor:
        if len(self._pieces) == 1:
            rows = tf.gather(self._pieces[0].read(), indices)
        else:
            rows = self._take_from_pieces(indices)
        return self._values(rows) if self._is_mapped else rows

    def _take_from_pieces(self, indices: tf.Tensor) -> tf.Tensor:
        count = len(self._pieces)
        which = tf.cast(indices // self._rows_per_array, tf.int32)
        rows = tf.dynamic_partition(indices % self._rows_per_array, which, count)
        places = tf.dynamic_partition(tf.range(tf.size(indices)), which, count)
        pieces = zip(self._pieces, rows, strict=True)
        return tf.dynamic_stitch(places, [tf.gather(p.read(), r) for p, r in pieces])

    def _values(self, rows: tf.Tensor) -> tf.Tensor:
        """The values that bytes of shape `(n, row_bytes)` stand for."""
        shape = [-1, *self._shape]
        if self._dtype == tf.bool:
            return tf.cast(tf.reshape(rows, shape), tf.bool)
        if self._dtype.size > 1:
            shape.append(self._dtype.size)
        return tf.bitcast(tf.reshape(rows, shape), self._dtype)


def _copied(array: np.ndarray) -> tf.Tensor:
    with tf.init_scope(), tf.device("CPU"):
        return tf.convert_to_tensor(array)


def _mapped(array: np.ndarray) -> tf.Tensor:
    """The bytes of each row, as they lie in the file if TensorFlow can use that."""
    rows = array.reshape(len(array), -1).view(np.uint8)
    if rows.ctypes.data % _ALIGNMENT:
        return _copied(rows)
    return tf.experimental.dlpack.from_dlpack(rows.__dlpack__())


def features_of(
    tables: Sequence[Table],
    sizes: Sequence[int],
    shuffle: bool = False,
    seed: int | None = None,
    pack: Callable[..., Any] = lambda *columns: columns,
) -> tf.data.Dataset:
    """A dataset of the rows of one table after the other, in batches.

    Each time it is iterated it gives the next of the tables, all of its rows; after
    the last comes the first again. A glance (an iterator given up within the first 16
    batches) does not count: under a strategy Keras takes one before it trains.

    Args:
        tables: Tables of equal columns and numbers of rows.
        sizes: Number of rows in each batch.
        shuffle: Whether the rows come in a new order each time. Every order is equally
            likely. The orders follow from the seed.
        seed: None takes one from TensorFlow's global generator
            (`keras.utils.set_random_seed`). Several workers need the same seed, or
            some rows are read twice and others never.
        pack: Makes an element of the dataset from the columns of a batch.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    is_regular = len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]
    is_plain = not shuffle and len(tables) == 1 and is_regular
    if is_plain and tables[0].bytes <= _SMALL:
        columns = tables[0].take(tf.range(tables[0].rows, dtype=tf.int64))
        rows = tf.data.Dataset.from_tensor_slices(pack(*columns))
        return rows.batch(sizes[0]).with_options(options)
    steps = len(sizes)
    stops = np.cumsum(sizes, dtype="int64")
    starts = stops - np.asarray(sizes, "int64")
    counts_at = min(_GLANCE, steps) - 1
    made = _Held(tf.constant(0, tf.int64))  # how many passes
    if seed is None:
        seed = _any_seed() if shuffle else 0

    @_as_it_is
    def one_pass(_: tf.Tensor) -> tf.data.Dataset:
        number = made.read()
        order = tf.zeros([0], tf.int64)
        if shuffle:
            key = tf.stack([tf.constant(seed, tf.int64), number])
            order = tf.range(tables[0].rows, dtype=tf.int64)
            order = tf.random.experimental.stateless_shuffle(order, key)
        slices = (np.arange(steps), starts, stops)
        return tf.data.Dataset.zip(
            (
                tf.data.Dataset.from_tensors((number, order)).repeat(),
                tf.data.Dataset.from_tensor_slices(slices),
            )
        )

    @_as_it_is
    def take(whole: Any, part: Any) -> Any:
        (number, order), (step, start, stop) = whole, part
        rows = order[start:stop] if shuffle else tf.range(start, stop)
        takes = [lambda table=table: table.take(rows) for table in tables]
        which = tf.cast(number % len(takes), tf.int32)
        columns = takes[0]() if len(takes) == 1 else tf.switch_case(which, takes)
        return step, pack(*columns)

    @_as_it_is
    def counted(step: tf.Tensor, element: Any) -> Any:
        made.add(tf.cast(step == counts_at, tf.int64))
        return element

    features = tf.data.Dataset.range(1).flat_map(one_pass)
    features = features.map(take, num_parallel_calls=2, deterministic=True)
    features = features.prefetch(_AHEAD).map(counted)
    features = features.with_options(options)
    return features.apply(tf.data.experimental.assert_cardinality(steps))


def packing(spec: Any, boundary: Sequence[Any]) -> Callable[..., Any]:
    """A function from the columns of a table to what the head is trained on.

    Args:
        spec: The `element_spec` of the dataset that was cached.
        boundary: The symbolic tensors that the head takes.
    """

    def pack(*columns: tf.Tensor) -> Any:
        features = [
            tf.cast(column, tensor.dtype) if column.dtype != tensor.dtype else column
            for column, tensor in zip(columns, boundary, strict=False)
        ]
        rest = keras.tree.pack_sequence_as(spec[1:], list(columns[len(boundary) :]))
        return (tuple(features) if len(features) > 1 else features[0], *rest)

    return pack


def largest_difference(
    dataset: tf.data.Dataset,
    model: Any,
    head: keras.Model,
    table: Table,
    pack: Callable[..., Any],
) -> float:
    """How far the head, on the features of a table, is from the model on a dataset.

    Relative to the largest output of a batch. The table's rows are the dataset's.
    """
    largest, start = 0.0, 0
    for x, *rest in dataset:
        rows = len(keras.tree.flatten(rest)[0])
        columns = table.take(tf.range(start, start + rows, dtype=tf.int64))
        features, *_ = pack(*columns)
        found = keras.tree.flatten(head(features, training=False))
        expected = keras.tree.flatten(model(x, training=False))
        for a, b in zip(found, expected, strict=True):
            a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
            scale = np.abs(b).max(initial=0.0) or 1.0
            largest = max(largest, float(np.abs(a - b).max(initial=0.0) / scale))
        start += rows
    return largest


class _Held:
    """A tensor that datasets know by reference, and may change.

    A dataset that captures a tensor takes as much memory again for each iterator. A
    `tf.Variable` made within the scope of a strategy would be one of the replicas'.
    """

    def __init__(self, value: tf.Tensor) -> None:
        name = f"tfdeep-{uuid.uuid4()}"
        self._dtype, self._shape = value.dtype, value.shape
        self._handle = _handle(value.dtype, value.shape, name)
        with tf.init_scope():
            tf.raw_ops.AssignVariableOp(resource=self._handle, value=value)
        gone = weakref.finalize(self._handle, _release, value.dtype, value.shape, name)
        gone.atexit = False  # TensorFlow itself may be gone by then

    def read(self) -> tf.Tensor:
        value = tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=self._dtype)
        return tf.ensure_shape(value, self._shape)

    def add(self, value: tf.Tensor) -> None:
        tf.raw_ops.AssignAddVariableOp(resource=self._handle, value=value)


def _handle(dtype: tf.DType, shape: tf.TensorShape, name: str) -> tf.Tensor:
    with tf.init_scope(), tf.device("CPU"):
        return tf.raw_ops.VarHandleOp(dtype=dtype, shape=shape, shared_name=name)


def _release(dtype: tf.DType, shape: tf.TensorShape, name: str) -> None:
    with tf.init_scope():
        tf.raw_ops.DestroyResourceOp(resource=_handle(dtype, shape, name))


def _any_seed() -> int:
    return int(tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32))
