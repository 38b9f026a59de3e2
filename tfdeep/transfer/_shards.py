"""Entries of a cache: writing, reading, checking, removing them.

An entry is the directory `<cache_dir>/<key>`. It holds a table whose columns have rows
of one dtype and shape. The rows are cut into shards:

    shard-00003.safetensors   the rows of shard 3, a tensor for each column
    shard-00003.lock          locked by the process that computes it
    manifest.json             the whole table; written last

Any tool that reads safetensors can open a shard; complex numbers are pairs of floats.
The shard's metadata say which rows of which entry these are, and the CRC-32 of each
column. The manifest has the size of each shard and the CRC-32 of its header.

Any number of processes may build the same entry at any time, be killed and start
again. A shard gets its name when it is safely on the disk, and is finished then. Locks
keep two processes from computing the same shard; nothing depends on them. Where a file
system has no locks and does not rename atomically, what is relied on is that the
manifest comes last, that temporary names are unique, and that a key stands for one
content.

This module does not import TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, starmap
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from tfdeep._core._digests import bytes_of, crc32, digest
from tfdeep._core._explain import explain, listing
from tfdeep._core._files import TEMPORARY, Directory, directory_at
from tfdeep._core._records import Record, human_bytes
from tfdeep.errors import (
    CacheError,
    CorruptCacheError,
    DiskFullError,
    InvalidArgumentError,
)

FORMAT = 2
MANIFEST = "manifest.json"
# A shard that is read is an open file, of which a process may have about a thousand.
MOST_SHARDS = 256

Path = str | os.PathLike[str]

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}")
_SHARD = re.compile(r"shard-(\d{5})\.safetensors")
_OURS = re.compile(
    rf"manifest\.json|shard-\d{{5}}\.(safetensors|lock)|{TEMPORARY.pattern}"
)

# By dtype, what safetensors calls the numbers that are stored.
_DTYPES = {
    **{"bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"},
    **{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"},
    **{"complex64": "F32", "complex128": "F64"},
}
_MOST_AXES = 32
_MOST = 1 << 62  # of any number that is read
_LONGEST_JSON = 1 << 24  # bytes
_ALIGNMENT = 64  # bytes; see `tfdeep.transfer._features`
_BLOCK = 1 << 22  # bytes read at once
_SLACK = 1 << 20  # bytes that a file system needs beside the rows
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclasses.dataclass(frozen=True)
class Column:
    """What one column of a table holds.

    Attributes:
        name: Its name, any text.
        dtype: Name of the dtype, as Keras names it.
        shape: Shape of one row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize


def can_store(dtype: str) -> bool:
    """Whether a column may have this dtype."""
    return dtype in _DTYPES


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard, as its header describes it.

    Attributes:
        number: Its number, from 0.
        rows: Which rows it holds.
        total: How many rows the table has.
        columns: The columns.
        starts: Where each column begins in the file.
        crc32: CRC-32 of each column's bytes.
        extra: What the builder said of the shard.
        bytes: Size of the file.
        header_crc32: CRC-32 of the header.
    """

    number: int
    rows: range
    total: int
    columns: tuple[Column, ...]
    starts: tuple[int, ...]
    crc32: tuple[int, ...]
    extra: Mapping[str, Any]
    bytes: int
    header_crc32: int

    @property
    def name(self) -> str:
        return _shard_name(self.number)

    @property
    def rows_per_shard(self) -> int:
        return self.rows.start // self.number if self.number else len(self.rows)

    def problem(self, directory: Directory) -> str | None:
        """What is wrong with the rows in the file."""
        for column, start, told in zip(
            self.columns, self.starts, self.crc32, strict=True
        ):
            size = len(self.rows) * column.row_bytes
            found = _crc32_of(directory.at(self.name), start, size)
            if found != told:
                return f"CRC-32 {found:08x} of the column {column.name!r}"
        return None

    def arrays(self, directory: Directory) -> list[np.ndarray]:
        """The columns, mapped from the file. They must not be changed."""
        # Mapped as if to be written: TensorFlow would copy what can only be read.
        memory = np.memmap(directory.at(self.name), np.uint8, "c")
        count = len(self.rows)
        return [
            memory[start : start + count * column.row_bytes]
            .view(column.numpy_dtype)
            .reshape(count, *column.shape)
            for column, start in zip(self.columns, self.starts, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class StoredTable:
    """A whole table.

    Attributes:
        shards: Its shards.
        arrays: For each column, the arrays that hold its rows, mapped from the files.
        description: What the builder said of it.
    """

    shards: tuple[Shard, ...]
    arrays: tuple[tuple[np.ndarray, ...], ...]
    description: Mapping[str, Any]

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.shards[0].columns

    @property
    def rows(self) -> int:
        return self.shards[0].total

    @property
    def bytes(self) -> int:
        """Bytes of the rows."""
        return self.rows * sum(column.row_bytes for column in self.columns)


@dataclasses.dataclass(frozen=True)
class CacheEntry(Record):
    """What is known of an entry without reading its rows.

    Attributes:
        key: Its name in the cache.
        state: "complete", "partial" (its builder was stopped, or is at it) or
            "damaged".
        rows: Number of rows of the whole table; 0 if it is not known.
        bytes: Bytes that its files take.
        shards_done: Number of finished shards.
        shards: Number of shards; 0 if it is not known.
        created: When it was finished, in seconds since 1970; 0 if it is not.
        description: What the builder said of it.
    """

    key: str
    state: str
    rows: int
    bytes: int
    shards_done: int
    shards: int
    created: float
    description: Mapping[str, Any]


class Entry:
    """An entry of a cache, whole or not, or not there.

    Args:
        cache_dir: The directory of the cache.
        key: Name of the entry: up to 128 letters, digits, "-" and "_".
    """

    def __init__(self, cache_dir: Path, key: str) -> None:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidArgumentError(
                explain(
                    "This cannot be the key of a cache entry.",
                    received=repr(key),
                    expected="up to 128 letters, digits, '-' and '_'",
                    fix="`tfdeep cache ls` shows the keys; nothing was changed",
                )
            )
        self._cache_dir = os.fspath(cache_dir)
        self._key = key
        self._files = directory_at(os.path.join(cache_dir, key))

    def open(self, verify: bool = True) -> StoredTable | None:
        """The table, or None if there is none that is whole.

        A table that is not on this machine is copied to its temporary directory.

        Args:
            verify: Whether to read every shard once and compare its checksums; else
                only headers and sizes are checked.

        Raises:
            CorruptCacheError: If it was whole and is not any more.
        """
        whole = self._whole()
        if whole is None:
            return None
        shards, manifest = whole
        with self._files.copied(shard.name for shard in shards) as copy:
            if verify:
                self._check_rows(shards, copy)
            arrays = zip(*(shard.arrays(copy) for shard in shards), strict=True)
            return StoredTable(tuple(shards), tuple(arrays), manifest["description"])

    def finished(self) -> dict[int, Shard]:
        """The finished shards, by number. What is damaged does not count."""
        found = {}
        for name in sorted(self._files.names()):
            match = _SHARD.fullmatch(name)
            if match:
                with contextlib.suppress(ValueError, FileNotFoundError):
                    number = int(match.group(1))
                    found[number] = self._shard(number)
        return found

    def is_complete(self) -> bool:
        """Whether the whole table is there."""
        try:
            return self._manifest() is not None
        except CorruptCacheError:
            return False

    def describe(self) -> CacheEntry | None:
        """What is known of it; None if there is no such entry."""
        names = self._files.names()
        if not any(map(_OURS.fullmatch, names)):
            return None
        size = sum(self._files.size(name) or 0 for name in names)
        try:
            whole = self._whole()
        except CorruptCacheError:
            return CacheEntry(self._key, "damaged", 0, size, 0, 0, 0.0, {})
        if whole is not None:
            shards, manifest = whole
            rows, count = shards[0].total, len(shards)
            told = manifest["created"], manifest["description"]
            return CacheEntry(self._key, "complete", rows, size, count, count, *told)
        finished = self.finished()
        rows = count = 0
        for shard in finished.values():
            rows, count = shard.total, -(-shard.total // shard.rows_per_shard)
        done = len(finished)
        return CacheEntry(self._key, "partial", rows, size, done, count, 0.0, {})

    def verify(self) -> None:
        """Reads every finished shard, of a whole entry or not; compares checksums.

        Raises:
            CorruptCacheError: If a file is damaged, cut or missing.
            CacheError: If there is no such entry.
        """
        self._own_names()
        whole = self._whole()
        shards = self.finished().values() if whole is None else whole[0]
        with self._files.copied(shard.name for shard in shards) as copy:
            self._check_rows(shards, copy)

    def remove(self) -> None:
        """Removes it, whole or not. Whoever reads it goes on reading.

        Raises:
            CacheError: If there is no such entry, or it holds other files.
        """
        # The manifest first: what is left when this is interrupted is a half entry.
        for name in sorted(self._own_names(), key=lambda n: (n != MANIFEST, n)):
            self._files.remove(name)
        try:
            self._files.remove_itself()
        except OSError as error:
            raise CacheError(
                explain(
                    f"Another process is writing the cache entry {self._key!r}.",
                    received=f"new files in {self._files.path!r}",
                    expected="an entry at rest",
                    fix="stop that process, then remove it again",
                )
            ) from error

    def _own_names(self) -> list[str]:
        """The names of its files; an error if one is not ours."""
        path = self._files.path
        if os.path.islink(path) or not self._files.exists():
            raise CacheError(
                explain(
                    f"There is no cache entry {self._key!r}.",
                    received=f"{path!r}, which is not a directory",
                    expected="the key of an entry",
                    fix="`tfdeep cache ls` shows the keys; nothing was changed",
                )
            )
        names = self._files.names()
        foreign = [name for name in names if not _OURS.fullmatch(name)]
        if foreign:
            raise CacheError(
                explain(
                    f"{path!r} holds files that are not part of a cache entry.",
                    received=listing(foreign),
                    expected="files that `cache_frozen` has written, and no others",
                    fix="move these elsewhere; nothing was changed",
                )
            )
        return names

    def _check_rows(self, shards: Iterable[Shard], copy: Directory) -> None:
        shards = list(shards)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            problems = pool.map(lambda shard: shard.problem(copy), shards)
            for shard, problem in zip(shards, problems, strict=True):
                if problem:
                    told = listing(f"{crc32:08x}" for crc32 in shard.crc32)
                    raise self._corrupt(shard.name, problem, f"CRC-32 {told}")

    def _whole(self) -> tuple[list[Shard], dict[str, Any]] | None:
        """The shards and the manifest of a whole table; the rows are not read."""
        manifest = self._manifest()
        if manifest is None:
            return None
        shards: list[Shard] = []
        for number, (size, header_crc32) in enumerate(manifest["shards"]):
            name, found = _shard_name(number), self._files.size(_shard_name(number))
            if found != size:
                received = "no such file" if found is None else f"{found} bytes"
                raise self._corrupt(name, received, f"a file of {size} bytes")
            try:
                shard = self._shard(number)
                if shard.header_crc32 != header_crc32:
                    raise ValueError(f"a header with CRC-32 {shard.header_crc32:08x}")
                first = shards[0] if shards else shard
                start, step = number * len(first.rows), len(first.rows)
                rows = range(start, min(start + step, first.total))
                told = shard.rows, shard.columns, shard.total
                if told != (rows, first.columns, first.total):
                    raise ValueError("a shard of another table")
            except (ValueError, FileNotFoundError) as error:
                expected = f"the shard as it was written, CRC-32 {header_crc32:08x}"
                raise self._corrupt(name, str(error), expected) from error
            shards.append(shard)
        if shards[-1].rows.stop != shards[-1].total:
            received = f"{shards[-1].rows.stop} rows"
            raise self._corrupt(MANIFEST, received, f"{shards[-1].total} rows")
        return shards, manifest

    def _corrupt(self, name: str, received: str, expected: str) -> CorruptCacheError:
        return CorruptCacheError(
            explain(
                f"The cache entry {self._key!r} is damaged: {name}",
                received=received,
                expected=expected,
                fix=f"`tfdeep cache rm {self._cache_dir} {self._key}`, then build it "
                "anew; nothing was read",
            )
        )

    # Reading what anyone may have written. Whatever is wrong is a ValueError.

    def _manifest(self) -> dict[str, Any] | None:
        if MANIFEST not in self._files.names():
            return None
        try:
            if self._files.size(MANIFEST) is None:
                raise ValueError("not a regular file")
            content = self._signed(self._files.read(MANIFEST, _LONGEST_JSON + 1))
            shards = _of(content, "shards", list)
            if not 0 < len(shards) <= MOST_SHARDS:
                raise ValueError(f"{len(shards)} shards")
            for item in shards:
                _numbers(item, 2)
            _of(content, "description", dict)
            _of(content, "created", float)
        except FileNotFoundError:
            return None
        except ValueError as error:
            expected = "the manifest as it was written"
            raise self._corrupt(MANIFEST, str(error), expected) from error
        return content

    def _shard(self, number: int) -> Shard:
        """What the header of a shard says; its rows are not read.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is not one, or not of its size.
        """
        name = _shard_name(number)
        size = self._files.size(name)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        begin = 8 + int.from_bytes(self._files.read(name, 8), "little")
        if begin > min(size, _LONGEST_JSON):
            raise ValueError("a header that is too long")
        text = self._files.read(name, begin)
        header = _json(text[8:])
        metadata = _of(header.pop("__metadata__", None), "tfdeep.cache", str)
        content = self._signed(metadata)
        start, stop, total = _numbers(content.get("rows"), 3)
        if content.get("shard") != number or not start < stop <= total:
            raise ValueError("another shard")
        columns, spans = [], []
        for item in _of(content, "columns", list):
            column = _of(item, "name", str), _of(item, "dtype", str)
            columns.append(_column(*column, header.get(column[0]), stop - start))
            spans.append(_numbers(header.pop(column[0])["data_offsets"], 2))
        edges = [[0, 0], *sorted(spans), [size - begin] * 2]
        if header or not columns or any(a[1] != b[0] for a, b in pairwise(edges)):
            raise ValueError("tensors that are not the columns or do not fill the file")
        checksums = _numbers(content.get("crc32"), len(columns))
        return Shard(
            number,
            range(start, stop),
            total,
            tuple(columns),
            tuple(begin + first for first, _ in spans),
            tuple(checksums),
            _of(content, "extra", dict),
            size,
            crc32(text),
        )

    def _sign(self, content: Mapping[str, Any]) -> str:
        """The content as JSON, with whose it is and a digest of all that."""
        content = {"format": FORMAT, "key": self._key, **content}
        return json.dumps({**content, "digest": _digest(content)})

    def _signed(self, text: str | bytes) -> dict[str, Any]:
        """The content that `_sign` wrote."""
        content = _json(text)
        if content.pop("digest", None) != _digest(content):
            raise ValueError("its content does not have its digest")
        if content.get("format") != FORMAT:
            raise ValueError("a format that this version does not know")
        if content.get("key") != self._key:
            raise ValueError("it is of another entry")
        return content


class Builder(Entry):
    """Writes one entry of a cache.

    What other builders of the same entry have finished, now or earlier, is kept, and
    so is the way they have cut it into shards.

    Args:
        cache_dir: The directory of the cache; it is made if it is not there.
        key: Name of the entry.
        columns: What the rows consist of.
        rows: Number of rows of the table.
        shard_bytes: Size of a shard. A killed build loses at most one shard.
        rows_multiple: What the number of rows of a shard is to be a multiple of.

    Attributes:
        shards: The rows of each shard.
    """

    def __init__(
        self,
        cache_dir: Path,
        key: str,
        columns: Sequence[Column],
        rows: int,
        shard_bytes: int = 128_000_000,
        rows_multiple: int = 1,
    ) -> None:
        super().__init__(cache_dir, key)
        if not columns or rows < 1 or any(column.row_bytes < 1 for column in columns):
            raise InvalidArgumentError(
                explain(
                    "A cache holds rows that have at least one byte each.",
                    received=f"{rows} rows of {[(c.name, c.shape) for c in columns]}",
                    expected="at least one row and one column, and no empty shape",
                    fix="leave empty columns out; nothing was written",
                )
            )
        self._columns = tuple(columns)
        self._rows = rows
        self._row_bytes = sum(column.row_bytes for column in columns)
        least = max(shard_bytes // self._row_bytes, -(-rows // MOST_SHARDS), 1)
        step = -(-least // rows_multiple) * rows_multiple
        with self._full_disk(0):
            self._files.make()
        for shard in super().finished().values():
            begun = shard.rows_per_shard
            if self._is_ours(shard) and (begun % rows_multiple == 0 or begun == rows):
                step = begun
                break
        edges = [*range(0, rows, step), rows]
        self.shards = tuple(starmap(range, pairwise(edges)))
        self._files.sweep()

    def finished(self) -> dict[int, Shard]:
        """The finished shards of this table, by number."""
        return {
            number: shard
            for number, shard in super().finished().items()
            if self._is_ours(shard)
            and self.shards[number : number + 1] == (shard.rows,)
        }

    @property
    def missing_bytes(self) -> int:
        """Bytes of the rows that are still to be written."""
        done = sum(len(shard.rows) for shard in self.finished().values())
        return (self._rows - done) * self._row_bytes

    @contextlib.contextmanager
    def claim(self, number: int) -> Iterator[bool]:
        """Yields whether a shard is to be written, for the time of the `with`.

        It is not if another process is at it or it is finished.
        """
        with contextlib.ExitStack() as stack:
            with self._full_disk(0):
                lock = self._files.lock(f"shard-{number:05d}.lock")
                is_ours = stack.enter_context(lock)
            is_wanted = is_ours and not self._is_finished(number)
            size = len(self.shards[number]) * self._row_bytes + _SLACK
            free = self._files.free()
            if is_wanted and free is not None and free < size:
                raise self._disk_full(size, f"{human_bytes(free)} free")
            yield is_wanted

    def write(
        self, number: int, blocks: Iterable[Sequence[Any]], extra: Mapping[str, Any]
    ) -> None:
        """Writes a shard, unless another has finished it by then.

        Args:
            number: Its number.
            blocks: Its rows in order: in each block an array or tensor for each column,
                of shape `(n, *shape)`.
            extra: What to keep with the shard; JSON, read when the blocks have come.
        """
        rows = self.shards[number]
        columns = self._values(rows, blocks)
        content = {
            "shard": number,
            "rows": [rows.start, rows.stop, self._rows],
            "columns": [{"name": c.name, "dtype": c.dtype} for c in self._columns],
            "crc32": [crc32(bytes_of(values)) for values in columns],
            "extra": dict(extra),
        }
        tensors = {
            column.name: _without_complex(values)
            for column, values in zip(self._columns, columns, strict=True)
        }
        data = safetensors.numpy.save(tensors, {"tfdeep.cache": self._sign(content)})
        name = _shard_name(number)
        is_there = self._files.size(name) is not None
        if self._is_finished(number):
            return  # by another; theirs is as good
        with self._full_disk(len(data)):
            self._files.write(name, _aligned(data), overwrite=is_there)

    def finish(self, description: Mapping[str, Any]) -> None:
        """Makes the entry whole when all its shards are finished. It may be repeated.

        Args:
            description: What to say of it in listings; JSON.

        Raises:
            CacheError: If a shard is not finished.
        """
        if not self.is_complete():
            shards = self.finished()
            if len(shards) < len(self.shards):
                raise CacheError(
                    explain(
                        f"The cache entry {self._key!r} is not finished.",
                        received=f"{len(shards)} of {len(self.shards)} shards",
                        expected="all of them",
                        fix="build it again: what is finished is kept",
                    )
                )
            found = [shards[number] for number in range(len(shards))]
            content = {
                "shards": [[shard.bytes, shard.header_crc32] for shard in found],
                "description": dict(description),
                "created": time.time(),
            }
            with self._full_disk(_SLACK):
                self._files.write(MANIFEST, [self._sign(content).encode()])
        self._files.sweep()
        with contextlib.suppress(OSError):
            for name in self._files.names():
                if name.endswith(".lock"):
                    self._files.remove(name)

    def _values(self, rows: range, blocks: Iterable[Sequence[Any]]) -> list[np.ndarray]:
        """The rows of a shard, an array for each column."""
        columns: list[list[np.ndarray]] = [[] for _ in self._columns]
        count = 0
        for block in blocks:
            arrays = list(map(np.asarray, block))
            for column, array, values in zip(
                self._columns, arrays, columns, strict=True
            ):
                wanted = (len(arrays[0]), *column.shape)
                if array.shape != wanted or array.dtype != column.numpy_dtype:
                    raise InvalidArgumentError(
                        explain(
                            f"The rows do not fit the column {column.name!r}.",
                            received=f"{array.dtype} of shape {array.shape}",
                            expected=f"{column.dtype} of shape {wanted}",
                            fix="make every batch alike; the shard was not written",
                        )
                    )
                values.append(array)
            count += len(arrays[0])
        if count != len(rows):
            raise CacheError(
                explain(
                    f"The rows {rows.start} to {rows.stop - 1} did not come as "
                    "announced.",
                    received=f"{count} rows",
                    expected=f"{len(rows)} rows",
                    fix="give a dataset that is the same at every reading; the shard "
                    "was not written",
                )
            )
        return [np.ascontiguousarray(np.concatenate(c)) for c in columns]

    def _is_ours(self, shard: Shard) -> bool:
        return (shard.columns, shard.total) == (self._columns, self._rows)

    def _is_finished(self, number: int) -> bool:
        with contextlib.suppress(ValueError, FileNotFoundError):
            shard = self._shard(number)
            if self._is_ours(shard) and shard.rows == self.shards[number]:
                return True
        return self.is_complete()

    @contextlib.contextmanager
    def _full_disk(self, size: int) -> Iterator[None]:
        """Says what a full disk means here."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._disk_full(size, str(error)) from error
            raise

    def _disk_full(self, size: int, received: str) -> DiskFullError:
        return DiskFullError(
            explain(
                f"The disk of {self._files.path!r} is full.",
                received=received,
                expected=f"room for {human_bytes(size)} now, and for "
                f"{human_bytes(self.missing_bytes)} until the cache is whole",
                fix="make room and start again: finished shards are kept, and the "
                "build goes on behind them",
            )
        )


def entries(cache_dir: Path) -> tuple[CacheEntry, ...]:
    """All entries of a cache, by key. Rows are not read."""
    names = sorted(directory_at(os.fspath(cache_dir)).names())
    keys = filter(_KEY.fullmatch, names)
    found = (Entry(cache_dir, key).describe() for key in keys)
    return tuple(entry for entry in found if entry is not None)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _without_complex(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "c":
        return values
    return values.view(values.real.dtype).reshape(*values.shape, 2)


def _aligned(data: bytes) -> list[Any]:
    """A safetensors file whose largest tensor begins where TensorFlow can use it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    offsets = [entry.get("data_offsets", (0, 0)) for entry in header.values()]
    start, _ = max(offsets, key=lambda pair: pair[1] - pair[0])
    padding = -(8 + size + start) % _ALIGNMENT  # the format allows spaces there
    begin = (size + padding).to_bytes(8, "little")
    return [begin, data[8 : 8 + size], b" " * padding, memoryview(data)[8 + size :]]


def _crc32_of(path: str, start: int, size: int) -> int:
    found = 0
    buffer = memoryview(bytearray(min(_BLOCK, size)))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size and (count := file.readinto(buffer[: min(_BLOCK, size)])):
            found = crc32(buffer[:count], found)
            size -= count
    return found


def _column(name: str, dtype: str, entry: Any, rows: int) -> Column:
    """A column, as the header of a shard describes it."""
    axes = _of(entry, "shape", list)
    first, last = _numbers(_of(entry, "data_offsets", list), 2)
    if not can_store(dtype) or entry.get("dtype") != _DTYPES[dtype]:
        raise ValueError(f"another dtype of the column {name!r}")
    shape = _numbers(axes, min(len(axes), _MOST_AXES))
    is_pair = dtype.startswith("complex")
    if shape[:1] != [rows] or 0 in shape or (is_pair and shape[1:][-1:] != [2]):
        raise ValueError(f"another shape of the column {name!r}")
    column = Column(name, dtype, tuple(shape[1:-1] if is_pair else shape[1:]))
    if last - first != rows * column.row_bytes:
        raise ValueError(f"another size of the column {name!r}")
    return column


def _json(text: str | bytes) -> dict[str, Any]:
    if len(text) > _LONGEST_JSON:
        raise ValueError("too long")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True, separators=(",", ":")))


def _of(content: Any, name: str, kind: Any) -> Any:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{name!r} is {type(value).__name__}")
    return value


def _numbers(values: Any, count: int) -> list[int]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"not {count} numbers")
    if not all(type(value) is int and 0 <= value <= _MOST for value in values):
        raise ValueError("a number that is out of range")
    return values
