"""Passes of a dataset through the frozen part, kept in memory or in a cache."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfdeep._core._explain import explain, listing
from tfdeep._core._files import directory_at
from tfdeep._core._records import human_bytes
from tfdeep.errors import DataError, DiskFullError
from tfdeep.transfer._cut import Cut, origin
from tfdeep.transfer._dataset import BLOCK, Examples, UserDataset, other_examples
from tfdeep.transfer._frozen import FrozenPart
from tfdeep.transfer._key import entry_keys
from tfdeep.transfer._progress import progress_bar
from tfdeep.transfer._shards import Builder, Column, Entry, StoredTable, can_store

_WAIT = 0.1  # seconds between two looks at what other builders have finished


@dataclasses.dataclass(frozen=True)
class Passes:
    """What the frozen part gave in one or more passes over a dataset.

    Attributes:
        tables: For each pass, for each column (features, labels, weights), the arrays
            that hold its rows, one after the other.
        sizes: Number of examples in each batch; None if the dataset was not read.
        bytes: Bytes of all tables.
        frozen_seconds: Time that the frozen part takes for one pass, in seconds.
        rounding: See `CacheReport`.
        seed: The seed of shuffles where several workers have to draw the same ones.
        key: The key of the first pass on disk.
        path: The directory of the first pass.
        found: Whether all were there.
    """

    tables: Sequence[Sequence[Sequence[np.ndarray]]]
    sizes: Sequence[int] | None
    bytes: int
    frozen_seconds: float
    rounding: float
    seed: int | None
    key: str | None = None
    path: str | None = None
    found: bool = False


def passes_in_memory(
    parts: Cut,
    dataset: UserDataset,
    frozen: FrozenPart,
    variants: int,
    progress: bool | None,
) -> Passes:
    """Runs the frozen part over a dataset and keeps what it gives."""
    tables: list[list[list[np.ndarray]]] = []
    sizes: list[int] = []
    steps = variants * int(dataset.batches.cardinality())
    with progress_bar("Running the frozen part", steps, progress) as advance:
        for _ in range(variants):
            reading, batches = _Pass(dataset, frozen), []
            while reading.next_batch():
                batches.append(reading.columns())
                advance(1)
            columns = zip(*batches, strict=True)
            tables.append([[np.concatenate(column)] for column in columns])
            found = [len(batch[0]) for batch in batches]
            sizes = sizes or found
            _check_same_batches(sizes, found)
    return Passes(
        tables=tables,
        sizes=sizes,
        bytes=sum(array.nbytes for table in tables for (array,) in table),
        frozen_seconds=frozen.seconds / variants,
        rounding=frozen.rounding,
        seed=_common_seed(parts.model, None),
    )


def passes_on_disk(
    parts: Cut,
    dataset: UserDataset,
    frozen: FrozenPart,
    *,
    cache_dir: str,
    variants: int,
    storage_dtype: str | None,
    shard_bytes: int,
    verify: bool,
    dataset_id: str | None,
    progress: bool | None,
) -> Passes:
    """Finds the passes over a dataset in a cache, or builds what is missing."""
    digests = parts.digests()
    named = ["dataset_id", str(dataset_id)]
    if dataset_id is None:
        named = ["content", dataset.examples.digest()]
    keys = entry_keys(digests, named, dataset.spec, storage_dtype, variants)
    stored = [Entry(cache_dir, key).open(verify) for key in keys]
    found = None not in stored
    if not found:
        # Each feature once, in an order that is the same for every model.
        frozen.order = [digests.index(digest) for digest in sorted(set(digests))]
        columns = _columns(parts, frozen, dataset.examples.first)
        row_bytes = sum(column.row_bytes for column in columns)
        builders = [
            Builder(
                cache_dir,
                key,
                columns,
                dataset.examples.rows,
                shard_bytes=max(shard_bytes, BLOCK * row_bytes),
                rows_multiple=BLOCK,
            )
            for key, table in zip(keys, stored, strict=True)
            if table is None
        ]
        size = sum(builder.missing_bytes for builder in builders)
        _check_room(cache_dir, size)
        # Of examples that are augmented at random only the number is known.
        is_random = variants > 1 and dataset_id is not None
        expected = None if is_random else dataset.examples
        share = _share(parts.model)
        steps = sum(len(builder.shards) for builder in builders)
        with progress_bar(f"Caching {human_bytes(size)}", steps, progress) as advance:
            for builder in builders:
                for _ in _build(builder, dataset, frozen, expected, *share):
                    advance(1)
                builder.finish(_description(parts, variants))
        stored = [Entry(cache_dir, key).open(verify=False) for key in keys]
    tables = [table for table in stored if table is not None]
    extras = [shard.extra for table in tables for shard in table.shards]
    seconds = sum(float(extra.get("seconds", 0.0)) for extra in extras)
    return Passes(
        tables=[_in_order(table, digests) for table in tables],
        sizes=None,
        bytes=sum(table.bytes for table in tables),
        frozen_seconds=seconds / variants,
        rounding=max(float(extra.get("rounding", 0.0)) for extra in extras),
        seed=_common_seed(parts.model, keys[0]),
        key=keys[0],
        path=os.path.join(cache_dir, keys[0]),
        found=found,
    )


def _build(
    builder: Builder,
    dataset: UserDataset,
    frozen: FrozenPart,
    expected: Examples | None,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[int]:
    """Builds the shards that are missing; yields the number of each that is there.

    Each worker begins with its own share of the shards; then it takes what nobody is
    at, so that nothing is lost with a worker that dies.

    Args:
        builder: Writes the shards.
        dataset: The dataset.
        frozen: The frozen part.
        expected: The examples that the dataset should give; None if that is not known.
        worker: The number of this worker.
        workers: How many there are.
    """
    numbers = range(len(builder.shards))
    wanted: Sequence[int] = numbers[worker::workers]
    seen: set[int] = set()
    while not builder.is_complete():
        finished = builder.finished()
        for number, shard in finished.items():
            told = shard.extra.get("examples")
            if expected and told not in (None, expected.digest(shard.rows)):
                raise other_examples("a part of the cache that was made of others")
            if number not in seen:
                yield number
        seen |= set(finished)
        if len(finished) == len(numbers):
            break
        missing = [number for number in wanted if number not in finished]
        if not _build_in_one_pass(builder, dataset, frozen, expected, missing):
            wanted = numbers
            time.sleep(_WAIT)


def _build_in_one_pass(
    builder: Builder,
    dataset: UserDataset,
    frozen: FrozenPart,
    expected: Examples | None,
    numbers: Sequence[int],
) -> bool:
    """Builds those shards that no other is at; whether there were any."""
    reading: _Pass | None = None
    for number in numbers:
        with builder.claim(number) as is_wanted:
            if is_wanted:
                reading = reading or _Pass(dataset, frozen, Examples())
                extra: dict[str, Any] = {}
                blocks = reading.shard(builder.shards[number], expected, extra)
                builder.write(number, blocks, extra)
    return reading is not None


class _Pass:
    """One pass over a dataset, given out in pieces of any number of examples.

    Args:
        dataset: The dataset.
        frozen: The frozen part.
        examples: Where to note the examples that were read, for `check`.
    """

    def __init__(
        self,
        dataset: UserDataset,
        frozen: FrozenPart,
        examples: Examples | None = None,
    ) -> None:
        self._frozen = frozen
        self._examples = examples
        self._batches = iter(dataset.batches)
        self._batch: tuple[Any, ...] = ()
        self._columns: list[np.ndarray] = []  # of the batch, once they are asked for
        self._start = self._stop = 0  # the examples of the batch
        self._position = 0
        self._shapes: list[tuple[int, ...]] = []

    def next_batch(self) -> bool:
        """Goes on to the next batch; False if there is none."""
        self._columns = []
        try:
            self._batch = next(self._batches)
        except StopIteration:
            if self._examples is not None:
                self._examples.end()
            return False
        if self._examples is not None:
            self._examples.add(self._batch)
        rows = len(keras.tree.flatten(self._batch)[0])
        self._start, self._stop = self._stop, self._stop + rows
        return True

    def columns(self) -> list[np.ndarray]:
        """The columns (features, labels, weights) of the batch."""
        if self._columns:
            return self._columns
        x, *rest = self._batch
        tensors = [*self._frozen(x), *keras.tree.flatten(rest)]
        self._columns = [tensor.numpy() for tensor in tensors]
        shapes = [column.shape[1:] for column in self._columns]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise DataError(
                explain(
                    "An element of the dataset has another shape than those before it.",
                    received=f"features and labels of shape {listing(shapes)} in the "
                    f"batch of examples {self._start} to {self._stop - 1}",
                    expected=f"shape {listing(self._shapes)} for every example",
                    fix="pad or crop the examples to one shape in the dataset; nothing "
                    "was changed",
                )
            )
        return self._columns

    def shard(
        self, rows: range, expected: Examples | None, extra: dict[str, Any]
    ) -> Iterator[list[np.ndarray]]:
        """Gives the columns of some examples, which must be those expected.

        On the examples before them the frozen part is not run.

        Args:
            rows: Which examples; none of them was given before.
            expected: What the dataset should give, if that is known.
            extra: Filled with what to keep with the shard.
        """
        before = self._frozen.seconds
        while self._stop <= rows.start and self.next_batch():
            pass
        row = rows.start
        while row < rows.stop and (row < self._stop or self.next_batch()):
            stop = min(rows.stop, self._stop)
            part = slice(row - self._start, stop - self._start)
            yield [column[part] for column in self.columns()]
            row = stop
        self._check(rows, expected)
        extra["seconds"] = self._frozen.seconds - before
        extra["rounding"] = self._frozen.rounding
        if expected is not None:
            extra["examples"] = expected.digest(rows)

    def _check(self, rows: range, expected: Examples | None) -> None:
        """Compares the examples that were read with those expected."""
        found = self._examples
        if expected is not None and rows.stop == expected.rows:
            while self.next_batch():  # there should be no more
                pass
        is_same = (
            found is None
            or expected is None
            or (
                found.digest(rows) == expected.digest(rows)
                and (rows.stop < expected.rows or found.rows == expected.rows)
            )
        )
        if self._stop < rows.stop or not is_same:
            raise DataError(
                explain(
                    "The dataset does not give the same examples in the same order "
                    "each time it is read.",
                    received=f"others for examples {rows.start} to {rows.stop - 1}",
                    expected="a dataset that repeats itself",
                    fix="cache_frozen(..., shuffle=True) instead of "
                    "`dataset.shuffle(...)`; `variants=n` with a `dataset_id` for "
                    "augmentation; `.map(..., deterministic=True)`; shards that "
                    "differ were not kept",
                )
            )


def _columns(parts: Cut, frozen: FrozenPart, batch: Any) -> list[Column]:
    """What the rows of the table are: features, labels, weights."""
    x, *rest = batch
    boundary = [parts.part.boundary[i] for i in frozen.order]
    features = [(t.shape[1:], frozen.stored_dtype(t.dtype)) for t in boundary]
    if any(None in shape for shape, _ in features):
        features = [(tensor.shape[1:], tensor.dtype.name) for tensor in frozen(x)]
        frozen.seconds = 0.0
    kinds = {"features": features}
    for name, part in zip(("labels", "sample_weights"), rest, strict=False):
        tensors = keras.tree.flatten(part)
        kinds[name] = [(tensor.shape[1:], tensor.dtype.name) for tensor in tensors]
    columns = [
        Column(name if len(found) == 1 else f"{name}-{i}", dtype, tuple(shape))
        for name, found in kinds.items()
        for i, (shape, dtype) in enumerate(found)
    ]
    refused = [c.dtype for c in columns if not can_store(c.dtype)]
    if refused:
        raise DataError(
            explain(
                "Text cannot be cached on disk."
                if "string" in refused
                else "Numbers of this dtype cannot be cached on disk.",
                received=f"labels, weights or features of dtype {listing(refused)}",
                expected="numbers, in a dtype of NumPy or bfloat16",
                fix="map labels to numbers (keras.layers.StringLookup) in the "
                "dataset, or cache in memory (cache_dir=None); nothing was written",
            )
        )
    return columns


def _in_order(
    stored: StoredTable, digests: Sequence[str]
) -> list[Sequence[np.ndarray]]:
    """The columns, with the features in the order of this model's boundary."""
    known = sorted(set(digests))
    features = [stored.arrays[known.index(digest)] for digest in digests]
    return [*features, *stored.arrays[len(known) :]]


def _check_same_batches(first: Sequence[int], found: Sequence[int]) -> None:
    if first != found:
        raise DataError(
            explain(
                "The dataset does not give the same batches each time it is read.",
                received=f"{sum(found)} examples in {len(found)} batches after "
                f"{sum(first)} in {len(first)}",
                expected="passes that differ in their augmentation only",
                fix="give a dataset of fixed length; nothing was changed",
            )
        )


def _description(parts: Cut, variants: int) -> dict[str, Any]:
    return {
        "model": parts.model.name,
        "frozen_layers": listing(parts.frozen_layers, limit=8),
        "boundary": listing(map(origin, parts.part.boundary), limit=8),
        "variants": variants,
    }


def _check_room(cache_dir: str, needed: int) -> None:
    free = directory_at(cache_dir).free()
    if free is not None and needed > free:
        raise DiskFullError(
            explain(
                f"The cache does not fit the disk of {cache_dir!r}.",
                received=f"{human_bytes(free)} free",
                expected=f"{human_bytes(needed)}",
                fix="make room, choose another cache_dir, or "
                "`storage_dtype='float16'` for half the size; nothing was written",
            )
        )


def _common_seed(model: Any, key: str | None) -> int | None:
    """The seed of shuffles where several workers have to draw the same ones."""
    _, workers = _share(model)
    return int(key[:7] if key else "0", 16) if workers > 1 else None


def _share(model: Any) -> tuple[int, int]:
    """The number of this worker among those of the strategy, and how many there are."""
    resolver = model.distribute_strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return 0, 1
    cluster = resolver.cluster_spec().as_dict()
    kinds = ("chief", "worker")
    workers = [(k, i) for k in kinds for i, _ in enumerate(cluster.get(k, []))]
    here = (resolver.task_type, resolver.task_id)
    return (workers.index(here), len(workers)) if here in workers else (0, 1)
