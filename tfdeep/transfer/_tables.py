"""The tables that `cache_frozen` trains on: in memory, or found or built on disk."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain, listing
from tfdeep._core._records import human_bytes
from tfdeep.errors import DataError, DiskFullError
from tfdeep.transfer import _disk
from tfdeep.transfer._build import Builder
from tfdeep.transfer._cut import Cut, origin
from tfdeep.transfer._fingerprint import digest
from tfdeep.transfer._progress import progress_bar
from tfdeep.transfer._reading import Reading, Trunk
from tfdeep.transfer._store import (
    MOST_SHARDS,
    Column,
    StoredShard,
    StoredTable,
    open_entry,
)
from tfdeep.transfer._survey import BLOCK, Survey, survey
from tfdeep.transfer._table import DiskTable, MemoryTable, Table

_FORMAT = "1"  # of the key: raised when what goes into it changes
_WAIT = 0.1  # seconds between two looks at what other builders have finished


@dataclasses.dataclass(frozen=True)
class Cached:
    """The tables of a cache, one for each pass, and what they cost.

    Attributes:
        tables: For each pass, a table with the features' columns first.
        sizes: Number of examples in each batch.
        bytes: Bytes of all tables.
        frozen_seconds: Time that the frozen part takes for one pass, in seconds.
        rounding: See `CacheReport`.
        key: The key of the first pass on disk.
        path: The directory of the first pass.
        found: Whether all were there.
    """

    tables: list[Table]
    sizes: tuple[int, ...]
    bytes: int
    frozen_seconds: float
    rounding: float
    key: str | None = None
    path: str | None = None
    found: bool = False


def cache_in_memory(
    dataset: tf.data.Dataset, trunk: Trunk, variants: int, progress: bool | None
) -> Cached:
    """Runs the frozen part over a dataset and keeps what it gives."""
    tables: list[Table] = []
    sizes: tuple[int, ...] = ()
    steps = variants * int(dataset.cardinality())
    with progress_bar("Running the frozen part", steps, progress) as advance:
        for _ in range(variants):
            pieces = []
            for piece in Reading(dataset, trunk, digests=False).read():
                pieces.append(piece)
                advance(1)
            tables.append(
                MemoryTable(list(map(np.concatenate, zip(*pieces, strict=True))))
            )
            found = tuple(len(piece[0]) for piece in pieces)
            sizes = _same_batches(sizes or found, found)
    return Cached(
        tables=tables,
        sizes=sizes,
        bytes=sum(table.bytes for table in tables),
        frozen_seconds=trunk.seconds / variants,
        rounding=trunk.rounding,
    )


def cache_on_disk(
    cut: Cut,
    dataset: tf.data.Dataset,
    trunk: Trunk,
    *,
    cache_dir: str,
    variants: int,
    storage_dtype: str | None,
    shard_bytes: int,
    verify: bool,
    dataset_id: str | None,
    progress: bool | None,
) -> Cached:
    """Finds the tables of a dataset in a cache, or builds what is missing."""
    digests = cut.digests()
    surveyed = survey(dataset) if dataset_id is None else None
    contents = (
        ("content", surveyed.digest)
        if surveyed is not None
        else ("dataset_id", str(dataset_id))
    )
    parts = [_FORMAT, *_versions(), str(storage_dtype), str(variants > 1)]
    parts += [_row_spec(dataset), *contents, *sorted(set(digests))]
    keys = [digest(*parts, str(variant))[:40] for variant in range(variants)]

    stored = [open_entry(cache_dir, key, verify) for key in keys]
    found = None not in stored
    if not found:
        surveyed = surveyed or survey(dataset)
        columns = _columns(cut, dataset, trunk, digests)
        missing = [key for key, table in zip(keys, stored, strict=True) if not table]
        builders = [
            Builder(
                cache_dir,
                key,
                columns,
                surveyed.rows,
                description=_description(cut, variants),
                shard_bytes=_in_blocks(shard_bytes, columns, surveyed.rows),
            )
            for key in missing
        ]
        _check_room(cache_dir, builders)
        # Of augmented examples nothing is known but their number.
        is_random = variants > 1 and dataset_id is not None
        expected = None if is_random else surveyed
        steps = sum(len(builder.shards) for builder in builders)
        size = human_bytes(sum(_size(builder) for builder in builders))
        with progress_bar(f"Caching {size}", steps, progress) as advance:
            for builder in builders:
                for _ in _build(builder, dataset, trunk, expected, _share(cut.model)):
                    advance(1)
        stored = [open_entry(cache_dir, key, verify=False) for key in keys]
    tables = [table for table in stored if table is not None]
    extras = [shard.extra for table in tables for shard in table.shards]
    rounding = max(float(extra.get("rounding", 0.0)) for extra in extras)
    return Cached(
        tables=[_ordered(table, digests) for table in tables],
        sizes=_sizes(dataset, surveyed, tables[0].layout.rows),
        bytes=sum(table.bytes for table in tables),
        frozen_seconds=sum(float(extra.get("seconds", 0.0)) for extra in extras)
        / variants,
        rounding=rounding,
        key=keys[0],
        path=os.path.join(cache_dir, keys[0]),
        found=found,
    )


def _build(
    builder: Builder,
    dataset: tf.data.Dataset,
    trunk: Trunk,
    expected: Survey | None,
    share: tuple[int, int],
) -> Iterator[int]:
    """Builds the shards that are missing; yields the number of each that is there.

    Of `count` builders the one of number `index` begins with every `count`-th shard;
    then each takes what nobody is at, so that nothing is lost with one of them.
    """
    index, count = share
    numbers = range(len(builder.shards))
    own = [number for number in numbers if number % count == index]
    seen: set[int] = set()
    while not builder.is_complete():
        shards = builder.committed()
        _check_same_examples(shards, builder, expected)
        done = set(shards)
        yield from done - seen
        seen |= done
        if len(done) == len(numbers):
            break
        wrote = _build_pass(builder, dataset, trunk, expected, own, done)
        if not wrote:
            own = list(numbers)
            time.sleep(_WAIT)
    builder.finish()


def _build_pass(
    builder: Builder,
    dataset: tf.data.Dataset,
    trunk: Trunk,
    expected: Survey | None,
    wanted: Sequence[int],
    done: set[int],
) -> bool:
    """One pass over the dataset; whether it has written anything."""
    reading: Reading | None = None
    for number in wanted:
        if number in done:
            continue
        extra: dict[str, Any] = {"seconds": 0.0, "rounding": 0.0}
        with builder.writer(number, extra) as writer:
            if writer is None:
                continue
            reading = reading or Reading(dataset, trunk)
            rows, before = builder.shards[number], trunk.seconds
            reading.skip_to(rows.start)
            for columns in reading.read_to(rows.stop):
                writer.append(columns)
            reading.check(rows, expected)
            extra.update(seconds=trunk.seconds - before, rounding=trunk.rounding)
            if expected is not None:
                extra["examples"] = expected.digest_of(rows)
    return reading is not None


def _columns(
    cut: Cut, dataset: tf.data.Dataset, trunk: Trunk, digests: Sequence[str]
) -> list[Column]:
    """What the rows of the table are: features that are told apart, then the rest."""
    features = [(t.shape[1:], trunk.stored_dtype(t.dtype)) for t in cut.part.boundary]
    rest = keras.tree.flatten(dataset.element_spec[1:])
    known = [*features, *((spec.shape[1:], spec.dtype.name) for spec in rest)]
    if any(dtype == "string" for _, dtype in known):
        raise DataError(
            explain(
                "Text cannot be cached on disk.",
                received="labels, weights or features of dtype string",
                expected="numbers",
                fix="map labels to numbers (keras.layers.StringLookup) in the "
                "dataset, or cache in memory (cache_dir=None); nothing was written",
            )
        )
    if any(None in tuple(shape) for shape, _ in known):
        first = next(Reading(dataset.take(1), trunk).read())
        trunk.seconds = 0.0
        known = [(column.shape[1:], str(column.dtype)) for column in first]
    names = [*_names(digests), *map(str, range(len(rest)))]
    return [
        Column(name, dtype, tuple(shape))
        for name, (shape, dtype) in zip(names, known, strict=True)
    ]


def _in_blocks(shard_bytes: int, columns: Sequence[Column], rows: int) -> int:
    """The size of a shard of whole blocks of examples, in bytes."""
    row_bytes = sum(column.row_bytes for column in columns)
    wanted = max(1, shard_bytes // max(1, row_bytes), rows // MOST_SHARDS)
    return -(-wanted // BLOCK) * BLOCK * row_bytes


def _ordered(stored: StoredTable, digests: Sequence[str]) -> Table:
    """The table with its columns in the order of this model's boundary."""
    found = [column.name for column in stored.layout.columns]
    features = [found.index(name) for name in _names(digests)]
    rest = [i for i in range(len(found)) if i not in features]
    return DiskTable(stored, [*features, *rest])


def _names(digests: Sequence[str]) -> list[str]:
    """Names of the features' columns, which do not depend on the boundary's order."""
    return [
        f"feature-{digest[:32]}-{digests[:i].count(digest)}"
        for i, digest in enumerate(digests)
    ]


def _sizes(
    dataset: tf.data.Dataset, surveyed: Survey | None, rows: int
) -> tuple[int, ...]:
    """The number of examples in each batch of a dataset with so many examples."""
    if surveyed is None:
        count = int(dataset.cardinality())
        first = next(iter(dataset.take(1)))
        size = len(keras.tree.flatten(first)[0])
        if (count - 1) * size < rows <= count * size:
            return (*[size] * (count - 1), rows - (count - 1) * size)
        surveyed = survey(dataset)
    if surveyed.rows != rows:
        raise _other_examples(f"{surveyed.rows} examples where the cache has {rows}")
    return surveyed.sizes


def _same_batches(first: tuple[int, ...], found: tuple[int, ...]) -> tuple[int, ...]:
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
    return first


def _check_same_examples(
    shards: Mapping[int, StoredShard], builder: Builder, expected: Survey | None
) -> None:
    """Raises if a finished shard was made of other examples than this dataset's."""
    for number, shard in shards.items():
        told = shard.extra.get("examples")
        if expected and told not in (None, expected.digest_of(builder.shards[number])):
            raise _other_examples("a part of the cache that was made of others")


def _other_examples(received: str) -> DataError:
    return DataError(
        explain(
            "`dataset_id` names a cache of other examples.",
            received=received,
            expected="the same examples in the same order under one dataset_id",
            fix="another dataset_id, or None to have the examples compared; nothing "
            "was changed",
        )
    )


def _row_spec(dataset: tf.data.Dataset) -> str:
    """Structure, dtypes and shapes of one example, but for the size of batches."""
    return repr(
        keras.tree.map_structure(
            lambda spec: (spec.dtype.name, tuple(spec.shape[1:])), dataset.element_spec
        )
    )


def _versions() -> list[str]:
    """Of what may round otherwise in the next version: major and minor."""
    return [v.rsplit(".", 1)[0] for v in (tf.__version__, keras.__version__)]


def _description(cut: Cut, variants: int) -> dict[str, Any]:
    return {
        "model": cut.model.name,
        "frozen_layers": listing(cut.frozen_layers, limit=8),
        "boundary": listing(map(origin, cut.part.boundary), limit=8),
        "variants": variants,
    }


def _size(builder: Builder) -> int:
    """Bytes that are still to be written."""
    done = builder.committed()
    rows = sum(len(r) for i, r in enumerate(builder.shards) if i not in done)
    return rows * builder.layout.row_bytes


def _check_room(cache_dir: str, builders: Sequence[Builder]) -> None:
    needed, free = sum(map(_size, builders)), _disk.disk.free(cache_dir)
    if needed > free:
        raise DiskFullError(
            explain(
                f"The cache does not fit the disk of {cache_dir!r}.",
                received=f"{human_bytes(free)} free",
                expected=f"{human_bytes(needed)}",
                fix="make room, choose another cache_dir, or "
                "`storage_dtype='float16'` for half the size; nothing was written",
            )
        )


def common_seed(model: Any, cached: Cached) -> int | None:
    """The seed of shuffles where several workers have to draw the same ones."""
    _, workers = _share(model)
    return int(cached.key[:7] if cached.key else "0", 16) if workers > 1 else None


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
