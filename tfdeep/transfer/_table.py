"""Datasets over tables of rows, in memory or on disk."""

from __future__ import annotations

import math
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfdeep.transfer import _mapping
from tfdeep.transfer._store import Column, StoredTable

_AHEAD = 2  # batches that are ready before they are asked for

# Converting these functions, which need no conversion, takes AutoGraph a second.
_as_it_is = tf.autograph.experimental.do_not_convert
_GLANCE = 16  # batches

# Bytes of a table that may be held twice: TensorFlow's own slices of a tensor start an
# epoch in a third of the time, but copy it for each iterator.
_SMALL = 1 << 28


class Table(Protocol):
    """Rows that can be taken in any order.

    Attributes:
        rows: Number of rows.
        bytes: Size of all of them.
    """

    rows: int
    bytes: int

    def take(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The rows with these numbers, one tensor for each column.

        Args:
            indices: int64 of shape `(n,)`.
        """


class MemoryTable:
    """A table that is held in memory: one array or tensor for each column."""

    def __init__(self, columns: Sequence[Any]) -> None:
        with tf.init_scope(), tf.device("CPU"):
            tensors = [tf.convert_to_tensor(column) for column in columns]
        self.rows = int(tensors[0].shape[0])
        self.bytes = sum(math.prod(t.shape) * t.dtype.size for t in tensors)
        self._columns = [_Held(tensor) for tensor in tensors]

    def take(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.gather(column.read(), indices) for column in self._columns)


class DiskTable:
    """A table in files, of which no more is in memory than the system likes to keep.

    Args:
        stored: A table that was just opened: its files have the sizes they should.
        order: Which columns, in which order; a column may come twice.
    """

    def __init__(self, stored: StoredTable, order: Sequence[int] | None = None) -> None:
        if order is None:
            order = range(len(stored.layout.columns))
        self.rows = stored.layout.rows
        self.bytes = stored.bytes
        self._columns = [stored.layout.columns[i] for i in order]
        gathers = {i: _gather_bytes(stored, i) for i in set(order)}
        self._gathers = [gathers[i] for i in order]

    def take(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(
            _values(gather(indices), column)
            for gather, column in zip(self._gathers, self._columns, strict=True)
        )


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
            (`keras.utils.set_random_seed`). Several workers need the same, or some
            rows are read twice and others never: with None, all have to set the same
            global seed and draw as often from it; `common_seed` asks for neither.
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


def _gather_bytes(stored: StoredTable, column: int) -> Callable[[Any], tf.Tensor]:
    """A function from row numbers to the bytes of these rows."""
    paths, ranges = stored.paths(column), stored.layout.shards
    row_bytes = stored.layout.columns[column].row_bytes
    if not _mapping.CAN_JOIN:
        return _gather_pieces(stored, paths, row_bytes)

    # Each file begins at a page, so there are row numbers that no row has.
    rows_per_page = _mapping.PAGE // math.gcd(_mapping.PAGE, row_bytes)
    per_shard = stored.layout.rows_per_shard
    gap = -per_shard % rows_per_page
    stride = (per_shard + gap) * row_bytes
    sizes = [len(rows) * row_bytes for rows in ranges]
    memory = _mapping.joined(paths, sizes, stride)
    mapped = _held_rows(memory, row_bytes)
    return lambda indices: tf.gather(
        mapped.read(), indices + indices // per_shard * gap
    )


def _gather_pieces(
    stored: StoredTable, paths: Sequence[str], row_bytes: int
) -> Callable[[Any], tf.Tensor]:
    """The same where files cannot be mapped one behind the other (Windows)."""
    per_shard = stored.layout.rows_per_shard
    files = [_held_rows(np.memmap(path, np.uint8, "c"), row_bytes) for path in paths]

    def gather(indices: tf.Tensor) -> tf.Tensor:
        shards = tf.cast(indices // per_shard, tf.int32)
        rows = tf.dynamic_partition(indices % per_shard, shards, len(files))
        places = tf.range(tf.size(indices))
        places = tf.dynamic_partition(places, shards, len(files))
        pieces = [tf.gather(f.read(), r) for f, r in zip(files, rows, strict=True)]
        return tf.dynamic_stitch(places, pieces)

    return gather


def _held_rows(memory: np.ndarray, row_bytes: int) -> _Held:
    rows = memory.reshape(-1, row_bytes)
    return _Held(tf.experimental.dlpack.from_dlpack(rows.__dlpack__()))


def _values(rows: tf.Tensor, column: Column) -> tf.Tensor:
    """The values that bytes of shape `(n, row_bytes)` stand for."""
    dtype = tf.as_dtype(column.dtype)
    shape = [-1, *column.shape]
    if dtype == tf.bool:
        return tf.cast(tf.reshape(rows, shape), dtype)
    if dtype.size > 1:
        shape.append(dtype.size)
    return tf.bitcast(tf.reshape(rows, shape), dtype)
