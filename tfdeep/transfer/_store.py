"""Tables of rows in a directory: finding, checking, listing and removing them.

An entry is the directory `<cache_dir>/<key>`. It holds a table whose columns have
rows of one dtype and shape. The rows are cut into shards; of each shard there is one
file for each column, which is nothing but the rows' bytes:

    shard-00003-0-<unique>.bin   rows of shard 3, column 0 (C order, little-endian)
    shard-00003.json             which files shard 3 consists of; it is finished
    shard-00003.lock             locked by who computes it; deleted at the end
    manifest.json                the whole table; written last

Nothing is read that the manifest does not name, with its size and checksum. What
writes these files is in `_build`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
from zlib_ng import zlib_ng

from tfdeep._core._explain import explain, listing
from tfdeep._core._records import Record
from tfdeep.errors import CacheError, CorruptCacheError, InvalidArgumentError
from tfdeep.transfer import _disk

FORMAT = 1
MOST_SHARDS = 1_000_000
MANIFEST = "manifest.json"

Path = str | os.PathLike[str]

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}")
_OURS = re.compile(
    rf"manifest\.json|shard-\d+\.(json|lock)|shard-\d+-\d+-{_disk.UNIQUE}\.bin"
    rf"|(lock|manifest\.json|shard-\d+\.json)-{_disk.UNIQUE}\.tmp"
)
_LEFT_BY_WRITERS = re.compile(rf".*-{_disk.UNIQUE}\.(bin|tmp)")

_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
        *("uint64", "float16", "float32", "float64", "complex64", "complex128"),
        "bfloat16",
    )
}
_MOST_AXES = 32
_MOST_BYTES = 1 << 62
_LONGEST_JSON = 1 << 28  # bytes
_BLOCK = 1 << 22  # bytes read at once


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
        return _DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the rows of a table are, and how they are cut into shards.

    Attributes:
        columns: The columns.
        rows: Number of rows.
        rows_per_shard: Number of rows of each shard but the last, which may have less.
    """

    columns: tuple[Column, ...]
    rows: int
    rows_per_shard: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all columns."""
        return sum(column.row_bytes for column in self.columns)

    @property
    def shards(self) -> tuple[range, ...]:
        """The rows of each shard."""
        step = self.rows_per_shard
        return tuple(
            range(first, min(first + step, self.rows))
            for first in range(0, self.rows, step)
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One file of a shard: its name, its size in bytes and its CRC-32."""

    name: str
    bytes: int
    crc32: int


@dataclasses.dataclass(frozen=True)
class StoredShard:
    """A finished shard.

    Attributes:
        files: One for each column.
        extra: What the builder said of it.
    """

    files: tuple[ShardFile, ...]
    extra: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class StoredTable:
    """A whole table on disk.

    Attributes:
        directory: Where its files are.
        layout: Its columns, rows and shards.
        shards: The files of each shard.
        description: What the builder said of it.
        created: When it was finished, in seconds since 1970.
    """

    directory: str
    layout: Layout
    shards: tuple[StoredShard, ...]
    description: Mapping[str, Any]
    created: float

    @property
    def bytes(self) -> int:
        return sum(file.bytes for shard in self.shards for file in shard.files)

    def paths(self, column: int) -> list[str]:
        """The file of each shard for one column, in order."""
        return [
            os.path.join(self.directory, shard.files[column].name)
            for shard in self.shards
        ]


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


def check_key(key: str) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidArgumentError(
            explain(
                "This cannot be the key of a cache entry.",
                received=repr(key),
                expected="up to 128 letters, digits, '-' and '_'",
                fix="`tfdeep cache ls` shows the keys; nothing was changed",
            )
        )


def open_entry(cache_dir: Path, key: str, verify: bool = True) -> StoredTable | None:
    """The table of that key, or None if there is none that is whole.

    Args:
        cache_dir: The directory of the cache.
        key: Name of the entry.
        verify: Whether to read every file once and compare its checksum; else only
            names, sizes and counts are checked.

    Raises:
        CorruptCacheError: If it was whole and is not any more.
    """
    check_key(key)
    directory = os.path.join(cache_dir, key)
    table = read_manifest(directory, key)
    if table is None:
        return None
    for shard in table.shards:
        for file in shard.files:
            problem = size_problem(directory, file)
            if problem:
                raise _corrupt(
                    directory, file.name, problem, f"a file of {file.bytes} bytes"
                )
    if verify:
        _verify_files(directory, table.shards)
    return table


def entries(cache_dir: Path) -> tuple[CacheEntry, ...]:
    """All entries of a cache, by key. Rows are not read."""
    found = []
    for name in sorted(_names(cache_dir)):
        directory = os.path.join(cache_dir, name)
        if _KEY.fullmatch(name) and any(map(_OURS.fullmatch, _names(directory))):
            found.append(_entry(cache_dir, name))
    return tuple(found)


def verify_entry(cache_dir: Path, key: str) -> CacheEntry:
    """Reads every finished file of an entry, whole or not, and compares checksums.

    Raises:
        CorruptCacheError: If a file is damaged, cut or missing.
        CacheError: If there is no such entry.
    """
    check_key(key)
    directory = os.path.join(cache_dir, key)
    _check_is_ours(directory, key)
    if open_entry(cache_dir, key) is None:
        _, shards = read_records(directory, key)
        _verify_files(directory, shards.values())
    return _entry(cache_dir, key)


def remove_entry(cache_dir: Path, key: str) -> None:
    """Removes an entry, whole or not. Whoever reads it goes on reading.

    Raises:
        CacheError: If there is no such entry, or there is something else in it.
    """
    check_key(key)
    directory = os.path.join(cache_dir, key)
    names = _check_is_ours(directory, key)
    # The manifest first: what is left when this is interrupted is a half entry.
    for name in sorted(names, key=lambda name: (name != MANIFEST, name)):
        with contextlib.suppress(FileNotFoundError):
            _disk.disk.remove(os.path.join(directory, name))
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CacheError(
            explain(
                f"The cache entry {key!r} is just being written by another process.",
                received=f"new files in {directory!r}",
                expected="an entry at rest",
                fix="stop that process, then remove it again",
            )
        ) from error


# Finding and checking.


def read_manifest(directory: str, key: str) -> StoredTable | None:
    """What the manifest says; the files it names are not looked at."""
    try:
        content = _read_json(os.path.join(directory, MANIFEST))
        if content is None:
            return None
        layout = _parsed_layout(content, key)
        listed = _of(content, "shards", list)
        ranges = layout.shards if len(listed) == _count(layout) else ()
        if not ranges:
            raise ValueError(f"{len(listed)} shards where {_count(layout)} are needed")
        shards = tuple(
            _parsed_shard(item, layout, number, rows)
            for number, (item, rows) in enumerate(zip(listed, ranges, strict=True))
        )
        description = _of(content, "description", dict)
        created: float = _of(content, "created", float)
    except ValueError as error:
        expected = "the manifest as it was written"
        raise _corrupt(directory, MANIFEST, str(error), expected) from error
    return StoredTable(directory, layout, shards, description, created)


def read_records(
    directory: str, key: str, layout: Layout | None = None
) -> tuple[Layout | None, dict[int, StoredShard]]:
    """The finished shards of an entry that need not be whole, and its layout.

    Shards of another layout than the given, or else than the first, do not count.
    """
    shards: dict[int, StoredShard] = {}
    for name in sorted(_names(directory)):
        match = re.fullmatch(r"shard-(\d{5,9})\.json", name)
        record = read_record(directory, key, int(match.group(1))) if match else None
        if match and record and layout in (None, record[0]):
            layout, shards[int(match.group(1))] = record
    return layout, shards


def read_record(
    directory: str, key: str, number: int
) -> tuple[Layout, StoredShard] | None:
    """A shard and its layout, if it is finished.

    It is not when its record is damaged or names a file that is not there in full.
    """
    try:
        content = _read_json(os.path.join(directory, record_name(number)))
        if content is None:
            return None
        layout = _parsed_layout(content, key)
        first = number * layout.rows_per_shard
        rows = range(first, min(first + layout.rows_per_shard, layout.rows))
        shard = _parsed_shard(_of(content, "shard", dict), layout, number, rows)
    except ValueError:
        return None
    is_whole = not any(size_problem(directory, file) for file in shard.files)
    return (layout, shard) if is_whole else None


def size_problem(directory: str, file: ShardFile) -> str | None:
    """What is wrong with a file, as far as can be seen without reading it."""
    try:
        status = os.lstat(os.path.join(directory, file.name))
    except FileNotFoundError:
        return "no such file"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return None if status.st_size == file.bytes else f"{status.st_size} bytes"


def record_name(shard: int) -> str:
    return f"shard-{shard:05d}.json"


def lock_name(shard: int) -> str:
    return f"shard-{shard:05d}.lock"


def stem(shard: int, column: int) -> str:
    """What the name of a file begins with."""
    return f"shard-{shard:05d}-{column}"


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a digest of itself."""
    return {**content, "digest": _digest(content)}


def left_by_writers(directory: str, key: str) -> list[str]:
    """Files of an entry that nothing names: of writers at work, or dead."""
    return [
        name
        for name in _names(directory)
        if _LEFT_BY_WRITERS.fullmatch(name) and not is_named(directory, key, name)
    ]


def is_named(directory: str, key: str, name: str) -> bool:
    """Whether a file belongs to a finished shard."""
    match = re.match(r"shard-(\d{5,9})-", name)
    record = read_record(directory, key, int(match.group(1))) if match else None
    shards = [record[1]] if record else []
    with contextlib.suppress(CorruptCacheError):
        table = read_manifest(directory, key)
        shards.extend(table.shards if table else ())
    return any(name == file.name for shard in shards for file in shard.files)


def _entry(cache_dir: Path, key: str) -> CacheEntry:
    directory = os.path.join(cache_dir, key)
    size = 0
    for name in _names(directory):
        with contextlib.suppress(FileNotFoundError):
            size += os.lstat(os.path.join(directory, name)).st_size
    try:
        table = open_entry(cache_dir, key, verify=False)
    except CorruptCacheError:
        return CacheEntry(key, "damaged", 0, size, 0, 0, 0.0, {})
    if table is not None:
        count = len(table.shards)
        rows, created = table.layout.rows, table.created
        return CacheEntry(
            key, "complete", rows, size, count, count, created, table.description
        )
    layout, shards = read_records(directory, key)
    rows, count = (layout.rows, _count(layout)) if layout else (0, 0)
    return CacheEntry(key, "partial", rows, size, len(shards), count, 0.0, {})


def _names(directory: Path) -> list[str]:
    try:
        return _disk.disk.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _check_is_ours(directory: str, key: str) -> list[str]:
    if os.path.islink(directory) or not os.path.isdir(directory):
        raise CacheError(
            explain(
                f"There is no cache entry {key!r}.",
                received=f"{directory!r}, which is no directory",
                expected="the key of an entry",
                fix="`tfdeep cache ls` shows the keys; nothing was changed",
            )
        )
    names = _names(directory)
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if foreign:
        raise CacheError(
            explain(
                f"{directory!r} holds something else than a cache entry.",
                received=listing(foreign),
                expected="files that `cache_frozen` has written, and no others",
                fix="move these elsewhere; nothing was changed",
            )
        )
    return names


def _verify_files(directory: str, shards: Iterable[StoredShard]) -> None:
    files = [file for shard in shards for file in shard.files]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda file: _crc32(os.path.join(directory, file.name)), files)
        for file, (size, crc32) in zip(files, found, strict=True):
            if (size, crc32) != (file.bytes, file.crc32):
                raise _corrupt(
                    directory,
                    file.name,
                    f"{size} bytes with CRC-32 {crc32:08x}",
                    f"{file.bytes} bytes with CRC-32 {file.crc32:08x}",
                )


def _crc32(path: str) -> tuple[int, int]:
    size, crc32 = 0, 0
    buffer = memoryview(bytearray(_BLOCK))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                crc32 = zlib_ng.crc32(buffer[:count], crc32)
                size += count
    except FileNotFoundError:
        pass  # a size of 0 bytes, which no file has
    return size, crc32


def _corrupt(
    directory: str, name: str, received: str, expected: str
) -> CorruptCacheError:
    cache_dir, key = os.path.split(directory)
    return CorruptCacheError(
        explain(
            f"The cache entry {key!r} is damaged: {name}",
            received=received,
            expected=expected,
            fix=f"`tfdeep cache rm {cache_dir} {key}`, then build it anew; nothing "
            "was read",
        )
    )


# Reading JSON that anyone may have written. Whatever is wrong is a ValueError.


def _read_json(path: str) -> dict[str, Any] | None:
    """A signed object, or None if there is no such file."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ValueError("not a regular file")
        with open(path, "rb") as file:
            text = file.read(_LONGEST_JSON + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(text) > _LONGEST_JSON:
        raise ValueError("too long")
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        if content.pop("digest", None) != _digest(content):
            raise ValueError("its content does not have its digest")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if content.get("format") != FORMAT:
        raise ValueError("a format that this version does not know")
    return content


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _of(content: Any, name: str, kind: Any) -> Any:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name!r} is {type(value).__name__}")
    return value


def _number(content: Any, name: str, least: int, most: int = _MOST_BYTES) -> int:
    value: int = _of(content, name, int)
    if not least <= value <= most:
        raise ValueError(f"{name!r} is out of range")
    return value


def _count(layout: Layout) -> int:
    return -(-layout.rows // layout.rows_per_shard)


def _parsed_layout(content: dict[str, Any], key: str) -> Layout:
    if _of(content, "key", str) != key:
        raise ValueError("it is of another entry")
    given = _of(content, "layout", dict)
    columns = tuple(_parsed_column(c) for c in _of(given, "columns", list))
    rows = _number(given, "rows", 1)
    layout = Layout(columns, rows, _number(given, "rows_per_shard", 1))
    if not columns or rows * layout.row_bytes > _MOST_BYTES:
        raise ValueError("impossible sizes")
    if _count(layout) > MOST_SHARDS:
        raise ValueError("too many shards")
    return layout


def _parsed_column(content: Any) -> Column:
    axes: Sequence[Any] = _of(content, "shape", list)
    dtype = _of(content, "dtype", str)
    if dtype not in _DTYPES:
        raise ValueError("a dtype that this version does not know")
    if len(axes) > _MOST_AXES or not all(type(n) is int and n > 0 for n in axes):
        raise ValueError("an impossible shape")
    return Column(_of(content, "name", str), dtype, tuple(axes))


def _parsed_shard(
    content: Any, layout: Layout, number: int, rows: range
) -> StoredShard:
    listed = _of(content, "files", list)
    if len(listed) != len(layout.columns):
        raise ValueError("another number of files than of columns")
    return StoredShard(
        tuple(
            _parsed_file(item, stem(number, i), len(rows) * column.row_bytes)
            for i, (item, column) in enumerate(zip(listed, layout.columns, strict=True))
        ),
        _of(content, "extra", dict),
    )


def _parsed_file(content: Any, start: str, size: int) -> ShardFile:
    name = _of(content, "name", str)
    if not re.fullmatch(rf"{start}-{_disk.UNIQUE}\.bin", name):
        raise ValueError("the name of a file that is not ours")
    if _number(content, "bytes", 1) != size:
        raise ValueError("a file of another size than its rows")
    return ShardFile(name, size, _number(content, "crc32", 0, 0xFFFFFFFF))
