"""Tables of rows in a directory: writing them, shard by shard.

Any number of processes may build the same entry at any time, be killed and start
again. A shard's rows go to files that nobody else writes to; when they are safely on
the disk, a small record that names them is renamed into its place, and the shard is
finished. Locks keep two processes from computing the same shard; nothing depends on
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from tfdeep._core._explain import explain
from tfdeep._core._records import human_bytes
from tfdeep.errors import (
    CacheError,
    CorruptCacheError,
    DiskFullError,
    InvalidArgumentError,
)
from tfdeep.transfer import _disk, _store
from tfdeep.transfer._store import Column, Layout, ShardFile, StoredShard

SHARD_BYTES = 1 << 28

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SLACK = 1 << 20  # bytes that a file system needs beside the rows


class Builder:
    """Writes one entry of a cache.

    What other builders of the same entry have finished, now or earlier, is kept, and
    so is the way they have cut it into shards.

    Args:
        cache_dir: The directory of the cache; it is made if it is not there.
        key: Name of the entry: up to 128 letters, digits, "-" and "_".
        columns: What the rows consist of.
        rows: Number of rows of the table.
        description: What to say of it in listings; JSON.
        shard_bytes: Size of a shard. A killed build loses at most one shard.
        rows_multiple: What the number of rows of a shard is to be a multiple of.

    Attributes:
        directory: Where the files are.
        layout: Columns, rows and shards.
    """

    def __init__(
        self,
        cache_dir: _store.Path,
        key: str,
        columns: Sequence[Column],
        rows: int,
        description: Mapping[str, Any],
        shard_bytes: int = SHARD_BYTES,
        rows_multiple: int = 1,
    ) -> None:
        _store.check_key(key)
        _check_columns(columns, rows)
        self.directory = os.path.join(cache_dir, key)
        self._key = key
        self._description = dict(description)
        row_bytes = sum(column.row_bytes for column in columns)
        least = max(shard_bytes // row_bytes, -(-rows // _store.MOST_SHARDS), 1)
        rows_per_shard = -(-least // rows_multiple) * rows_multiple
        self.layout = Layout(tuple(columns), rows, rows_per_shard)
        with self._full_disk(0):
            _disk.disk.makedirs(self.directory)
        found, _ = _store.read_records(self.directory, key)
        if found is not None and found.rows_per_shard % rows_multiple == 0:
            same = dataclasses.replace(self.layout, rows_per_shard=found.rows_per_shard)
            self.layout = found if found == same else self.layout
        self._sweep()

    @property
    def shards(self) -> tuple[range, ...]:
        """The rows of each shard."""
        return self.layout.shards

    def is_complete(self) -> bool:
        """Whether the whole table is there."""
        try:
            return _store.read_manifest(self.directory, self._key) is not None
        except CorruptCacheError:
            return False

    def committed(self) -> dict[int, StoredShard]:
        """The finished shards, by number."""
        return _store.read_records(self.directory, self._key, self.layout)[1]

    @contextlib.contextmanager
    def writer(
        self, shard: int, extra: Mapping[str, Any] | None = None, force: bool = False
    ) -> Iterator[ShardWriter | None]:
        """Writes a shard: all its rows are to be appended within the `with`.

        When the `with` ends without an error the shard is finished. Otherwise nothing
        of it is kept.

        Args:
            shard: Its number.
            extra: What to keep with the shard; JSON, read when it is finished.
                `committed` gives it back.
            force: Whether to write it even though another process is at it.

        Yields:
            The writer; None if another process is writing this shard or it is
            finished.
        """
        path = os.path.join(self.directory, _store.lock_name(shard))
        with contextlib.ExitStack() as stack:
            with self._full_disk(0):
                is_ours = stack.enter_context(_disk.try_lock(path))
            if not (is_ours or force) or self._is_finished(shard):
                yield None
                return
            rows = self.shards[shard]
            size = len(rows) * self.layout.row_bytes + _SLACK
            free = _disk.disk.free(self.directory)
            if free < size:
                raise self._disk_full(size, f"{human_bytes(free)} free")
            writer = ShardWriter(
                self.layout.columns, rows, lambda: self._full_disk(size)
            )
            try:
                writer.open(self.directory, shard)
                yield writer
                self._commit(writer, shard, extra or {})
            finally:
                writer.close()

    def finish(self) -> None:
        """Makes the entry whole when all its shards are finished. It may be repeated.

        Raises:
            CacheError: If a shard is not finished.
        """
        if not self.is_complete():
            shards = self.committed()
            missing = len(self.shards) - len(shards)
            if missing:
                raise CacheError(
                    explain(
                        f"The cache entry {self._key!r} is not finished.",
                        received=f"{len(shards)} of {len(self.shards)} shards",
                        expected="all of them",
                        fix="build it again: what is finished is kept",
                    )
                )
            content = {
                **self._content(),
                "shards": [shards[number].to_json() for number in sorted(shards)],
                "description": self._description,
                "created": time.time(),
            }
            with self._full_disk(_SLACK):
                _disk.write_json(
                    self.directory, _store.MANIFEST, _store.signed(content)
                )
                _disk.sync_directory(self.directory)
        self._sweep()
        for shard in range(len(self.shards)):
            with contextlib.suppress(OSError):
                _disk.disk.remove(os.path.join(self.directory, _store.lock_name(shard)))

    def _commit(
        self, writer: ShardWriter, shard: int, extra: Mapping[str, Any]
    ) -> None:
        writer.check_is_full()
        with writer.full_disk():
            writer.sync()
            if self._is_finished(shard):
                return  # by another; theirs is as good
            record = StoredShard(writer.files(), extra)
            content = {**self._content(), "shard": record.to_json()}
            _disk.write_json(
                self.directory, _store.record_name(shard), _store.signed(content)
            )
            writer.keep()
            _disk.sync_directory(self.directory)

    def _content(self) -> dict[str, Any]:
        return {
            "format": _store.FORMAT,
            "key": self._key,
            "layout": self.layout.to_json(),
        }

    def _is_finished(self, shard: int) -> bool:
        record = _store.read_record(self.directory, self._key, shard)
        if record is not None and record[0] == self.layout:
            return True
        return self.is_complete()

    def _sweep(self) -> None:
        names = _store.left_by_writers(self.directory, self._key)
        _disk.sweep(
            self.directory,
            names,
            lambda name: _store.is_named(self.directory, self._key, name),
        )

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
        unfinished = self.layout.rows - sum(
            len(self.shards[number]) for number in self.committed()
        )
        whole = human_bytes(unfinished * self.layout.row_bytes)
        error = DiskFullError(
            explain(
                f"The disk of {self.directory!r} is full.",
                received=received,
                expected=f"room for {human_bytes(size)} now, and for {whole} until "
                "the cache is whole",
                fix="make room and start again: finished shards are kept, and the "
                "build goes on behind them",
            )
        )
        error.errno = errno.ENOSPC
        return error


class ShardWriter:
    """Takes the rows of one shard. `Builder.writer` makes it."""

    def __init__(
        self,
        columns: Sequence[Column],
        rows: range,
        full_disk: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self.full_disk = full_disk
        self._columns = columns
        self._rows = rows
        self._left = len(rows)
        self._files: list[_disk.NewFile] = []
        self._crc32 = [0] * len(columns)
        self._is_kept = False

    def open(self, directory: str, shard: int) -> None:
        with self.full_disk():
            for i in range(len(self._columns)):
                name = _store.stem(shard, i)
                self._files.append(_disk.NewFile(directory, name, ".bin"))

    def append(self, arrays: Sequence[Any]) -> None:
        """Adds rows at the end.

        Args:
            arrays: One array or tensor for each column, of shape `(n, *shape)`.
        """
        blocks = [np.asarray(array) for array in arrays]
        count = len(blocks[0]) if blocks else 0
        for column, block in zip(self._columns, blocks, strict=True):
            wanted = (count, *column.shape)
            if block.shape != wanted or block.dtype != column.numpy_dtype:
                raise InvalidArgumentError(
                    explain(
                        f"These are no rows of the column {column.name!r}.",
                        received=f"{block.dtype} of shape {block.shape}",
                        expected=f"{column.dtype} of shape {wanted}",
                        fix="make every batch alike; the shard was not written",
                    )
                )
        self._left -= count
        if self._left < 0:
            self.check_is_full()
        with self.full_disk():
            for i, block in enumerate(blocks):
                data = _bytes_of(block)
                self._files[i].write(data)
                self._crc32[i] = zlib_ng.crc32(data, self._crc32[i])

    def check_is_full(self) -> None:
        """Raises unless as many rows came as belong to the shard."""
        if self._left:
            raise CacheError(
                explain(
                    f"The rows {self._rows.start} to {self._rows.stop - 1} did not "
                    "come as announced.",
                    received=f"{len(self._rows) - self._left} rows",
                    expected=f"{len(self._rows)} rows",
                    fix="give a dataset that is the same at every reading; the shard "
                    "was not written",
                )
            )

    def sync(self) -> None:
        for file in self._files:
            file.sync()

    def files(self) -> tuple[ShardFile, ...]:
        return tuple(
            ShardFile(file.name, file.size, crc32)
            for file, crc32 in zip(self._files, self._crc32, strict=True)
        )

    def keep(self) -> None:
        """Has `close` leave the files where they are."""
        self._is_kept = True

    def close(self) -> None:
        for file in self._files:
            if self._is_kept:
                with contextlib.suppress(OSError):  # it is on the disk already
                    file.close()
            else:
                file.discard()


def _bytes_of(block: np.ndarray) -> memoryview:
    flat = np.ascontiguousarray(block).reshape(-1)
    return flat.view(np.uint8).data


def _check_columns(columns: Sequence[Column], rows: int) -> None:
    if not columns or rows < 1 or any(column.row_bytes < 1 for column in columns):
        raise InvalidArgumentError(
            explain(
                "A cache holds rows that have at least one byte each.",
                received=f"{rows} rows of {[(c.name, c.shape) for c in columns]}",
                expected="at least one row and one column, and no empty shape",
                fix="leave empty columns out; nothing was written",
            )
        )
