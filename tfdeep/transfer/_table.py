"""Datasets over tables of rows, in memory or on disk."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfdeep.transfer import _mapping
from tfdeep.transfer._store import Column, StoredTable

_AHEAD = 2  # batches that are ready before they are asked for
_GLANCE = 16  # batches


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
        with tf.device("CPU"):
            self._columns = [tf.convert_to_tensor(column) for column in columns]
        self.rows = int(self._columns[0].shape[0])
        self.bytes = sum(
            math.prod(column.shape) * column.dtype.size for column in self._columns
        )

    def take(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.gather(column, indices) for column in self._columns)


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
    context: tf.distribute.InputContext | None = None,
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
            (`keras.utils.set_random_seed`). Several workers need the same.
        context: The place of a worker among several, which
            `strategy.distribute_datasets_from_function` gives: then the batches are
            those of its replicas, and nothing else is read.
        pack: Makes an element of the dataset from the columns of a batch.
    """
    ends = np.cumsum(sizes, dtype="int64")
    starts = tf.constant(ends - np.asarray(sizes, "int64"))
    ends = tf.constant(ends)
    replicas, first, pieces = 1, 0, 1
    if context is not None:
        replicas = context.num_replicas_in_sync
        pieces = replicas // context.num_input_pipelines
        first = pieces * context.input_pipeline_id
    steps = len(sizes) * pieces
    if seed is None:
        seed = _any_seed() if shuffle else 0

    def take(indices: tf.Tensor, number: tf.Tensor) -> Any:
        takes = [lambda table=table: table.take(indices) for table in tables]
        which = tf.cast(number % len(takes), tf.int32)
        return pack(*(takes[0]() if len(takes) == 1 else tf.switch_case(which, takes)))

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        if shuffle:
            key = tf.stack([tf.constant(seed, tf.int64), number])
            order = tf.range(tables[0].rows, dtype=tf.int64)
            order = tf.random.experimental.stateless_shuffle(order, key)

        def batch(step: tf.Tensor) -> Any:
            start, size = starts[step // pieces], ends[step // pieces]
            size, piece = size - start, first + step % pieces
            stop = start + size * (piece + 1) // replicas
            start = start + size * piece // replicas
            indices = order[start:stop] if shuffle else tf.range(start, stop)
            return number, step, take(indices, number)

        every = tf.data.Dataset.range(steps)
        return every.map(batch, num_parallel_calls=2, deterministic=True)

    passes = _Passes()
    features = tf.data.Dataset.range(1).flat_map(lambda _: one_pass(passes.number()))
    features = features.prefetch(_AHEAD)
    counts_at = min(_GLANCE, len(sizes)) * pieces - 1

    def counted(number: tf.Tensor, step: tf.Tensor, element: Any) -> Any:
        tf.cond(step == counts_at, lambda: passes.end(number), lambda: None)
        return element

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    features = features.map(counted).with_options(options)
    return features.apply(tf.data.experimental.assert_cardinality(steps))


class _Passes:
    """Counts the passes over a dataset, over all its iterators.

    Not with a `tf.Variable`: within the scope of a strategy that would be one of the
    replicas'.
    """

    def __init__(self) -> None:
        with tf.init_scope(), tf.device("CPU"):
            self._handle = tf.raw_ops.VarHandleOp(
                dtype=tf.int64, shape=[], shared_name=f"tfdeep-{uuid.uuid4()}"
            )
            self.end(tf.constant(-1, tf.int64))

    def number(self) -> tf.Tensor:
        """The number of the pass that begins."""
        return tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=tf.int64)

    def end(self, number: tf.Tensor) -> None:
        """Takes the pass of this number for made."""
        tf.raw_ops.AssignVariableOp(resource=self._handle, value=number + 1)


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
    memory = _mapping.joined(paths, sizes, stride).reshape(-1, row_bytes)
    mapped = tf.experimental.dlpack.from_dlpack(memory.__dlpack__())
    return lambda indices: tf.gather(mapped, indices + indices // per_shard * gap)


def _gather_pieces(
    stored: StoredTable, paths: Sequence[str], row_bytes: int
) -> Callable[[Any], tf.Tensor]:
    """The same where files cannot be mapped one behind the other (Windows)."""
    per_shard = stored.layout.rows_per_shard
    files = [
        tf.raw_ops.ImmutableConst(
            dtype=tf.uint8, shape=[len(rows), row_bytes], memory_region_name=path
        )
        for path, rows in zip(paths, stored.layout.shards, strict=True)
    ]

    def gather(indices: tf.Tensor) -> tf.Tensor:
        shards = tf.cast(indices // per_shard, tf.int32)
        rows = tf.dynamic_partition(indices % per_shard, shards, len(files))
        places = tf.range(tf.size(indices))
        places = tf.dynamic_partition(places, shards, len(files))
        pieces = [tf.gather(f, r) for f, r in zip(files, rows, strict=True)]
        return tf.dynamic_stitch(places, pieces)

    return gather


def _values(rows: tf.Tensor, column: Column) -> tf.Tensor:
    """The values that bytes of shape `(n, row_bytes)` stand for."""
    dtype = tf.as_dtype(column.dtype)
    shape = [-1, *column.shape]
    if dtype == tf.bool:
        return tf.cast(tf.reshape(rows, shape), dtype)
    if dtype.size > 1:
        shape.append(dtype.size)
    return tf.bitcast(tf.reshape(rows, shape), dtype)
