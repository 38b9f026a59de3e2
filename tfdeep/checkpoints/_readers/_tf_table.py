"""Reader for sorted tables of keys and values, in which TensorFlow keeps checkpoints.

A table has the format of LevelDB: blocks of sorted keys and values, a block that lists
the blocks, and a footer that says where that one is. TensorFlow's own reader trusts
what is inside a block with the right checksum, and aborts the process if it should not
have. Here everything is checked before it is used.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from typing import cast

import google_crc32c
import numpy as np

from tfdeep.checkpoints._readers._checks import Checks
from tfdeep.checkpoints._readers._reader import Closeable

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")

_FOOTER = 48
_TRAILER = 5  # one byte for the compression, four for the checksum
_PLAIN, _SNAPPY = 0, 1
_LARGEST_VARINT = 10

_ALL_BITS = 0xFFFFFFFF


class Table(Closeable):
    """A sorted table: an iterable of its keys and values, and a mapping of them.

    Args:
        path: The file.
        checks: The checks of the checkpoint.
    """

    def __init__(self, path: str, checks: Checks) -> None:
        self._checks = checks
        # A key holds at most a name and the bounds of a slice.
        limits = checks.limits
        self._longest_key = 2 * limits.name_bytes + 20 * limits.rank + 32
        self._cached: tuple[int, dict[bytes, bytes]] = (-1, {})
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - close() closes it
        except OSError as error:
            raise checks.damaged(error) from error
        with self.closed_on_error():
            self._list()

    def _list(self) -> None:
        self.size = os.fstat(self._file.fileno()).st_size
        if self.size < _FOOTER:
            raise self._checks.damaged("it ends too soon")
        footer = self._bytes(self.size - _FOOTER, _FOOTER)
        if not footer.endswith(MAGIC):
            raise self._checks.damaged("it does not end like such a file")
        at = 0
        handles = []
        for _ in range(2):
            offset, at = self._varint(footer, at, _FOOTER - len(MAGIC))
            size, at = self._varint(footer, at, _FOOTER - len(MAGIC))
            self._check_place(offset, size)
            self._checks.count("header_bytes", size)
            handles.append((offset, size))
        self._block(*handles[0])  # lists filters, which TensorFlow does not write
        self._separators: list[bytes] = []
        self._handles: list[tuple[int, int]] = []
        begin = total = 0
        for key, value in self._entries(self._block(*handles[1])):
            total = self._add(total, key, value)
            offset, at = self._varint(value, 0, len(value))
            size, at = self._varint(value, at, len(value))
            if at != len(value) or offset < begin:
                raise self._checks.damaged("its blocks are not in order")
            begin = offset + size + _TRAILER
            self._separators.append(key)
            self._handles.append((offset, size))

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        total = count = 0
        for number in range(len(self._handles)):
            for key, value in self._entries_of(number):
                count += 1
                # The header is an entry, too.
                self._checks.count("tensors", count - 1)
                total = self._add(total, key, value)
                yield key, value

    def _add(self, total: int, key: bytes, value: bytes) -> int:
        """Adds up bytes of keys and values: a few bytes can encode a long key."""
        total += len(key) + len(value)
        self._checks.count("header_bytes", total)
        return total

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None if there is none."""
        number = bisect.bisect_left(self._separators, key)
        if number == len(self._separators):
            return None
        if self._cached[0] != number:
            self._cached = (-1, {})
            self._cached = (number, dict(self._entries_of(number)))
        return self._cached[1].get(key)

    def _entries_of(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        """The entries of one block, which must lie between two separators."""
        key = None
        for key, value in self._entries(self._block(*self._handles[number])):
            if number and key <= self._separators[number - 1]:
                raise self._checks.damaged("its keys are not in order")
            yield key, value
        if key is None or key > self._separators[number]:
            raise self._checks.damaged("its keys are not in order")

    def _check_place(self, offset: int, size: int) -> None:
        if offset + size + _TRAILER > self.size - _FOOTER:
            raise self._checks.damaged("a block lies outside of the file")

    def _block(self, offset: int, size: int) -> bytes:
        self._check_place(offset, size)
        content = self._bytes(offset, size + _TRAILER)
        stored = int.from_bytes(content[-4:], "little")
        if masked(crc32c(memoryview(content)[:-4])) != stored:
            raise self._checks.damaged("a block does not match its checksum")
        if content[size] == _SNAPPY:
            raise self._checks.unknown(
                f"This {self._checks.kind} is compressed.",
                "a block compressed with Snappy",
                "blocks without compression, as TensorFlow writes them",
                "restore and save it with TensorFlow",
            )
        if content[size] != _PLAIN:
            raise self._checks.damaged(f"a block of unknown kind {content[size]}")
        return content[:size]

    def _bytes(self, offset: int, count: int) -> bytes:
        try:
            self._file.seek(offset)
            content = self._file.read(count)
        except OSError as error:
            raise self._checks.damaged(error) from error
        if len(content) != count:
            raise self._checks.damaged("it ends too soon")
        return content

    def _entries(self, content: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a block; a key omits what it shares with the one before."""
        count = int.from_bytes(content[-4:], "little")
        end = len(content) - 4 - 4 * count
        if count < 1 or end < 0:
            raise self._checks.damaged("a block is shorter than it says")
        restarts = np.frombuffer(content, "<u4", count, end).tolist()
        if restarts[0]:
            raise self._checks.damaged("a block does not begin with an entry")
        # Even a block without entries has one restart.
        expected = 0 if restarts == [0] and not end else count
        passed = at = 0
        key = b""
        while at < end:
            is_restart = passed < count and restarts[passed] == at
            passed += is_restart
            is_first = at == 0
            shared, at = self._varint(content, at, end)
            added, at = self._varint(content, at, end)
            length, at = self._varint(content, at, end)
            if (
                shared > (0 if is_restart or is_first else len(key))
                or at + added + length > end
            ):
                raise self._checks.damaged("an entry is longer than its block")
            if shared + added > self._longest_key:
                self._checks.count("name_bytes", shared + added)
            previous, key = key, key[:shared] + content[at : at + added]
            if not is_first and key <= previous:
                raise self._checks.damaged("its keys are not in order")
            at += added + length
            yield key, content[at - length : at]
        if passed != expected:
            raise self._checks.damaged("a block restarts where no entry begins")

    def _varint(self, content: bytes, at: int, end: int) -> tuple[int, int]:
        try:
            return varint(content, at, end)
        except ValueError as error:
            raise self._checks.damaged(error) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def varint(content: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """Decodes a varint, seven bits to the byte; returns it and where it ends.

    Raises:
        ValueError: If it does not end before `end`, or not within 64 bits.
    """
    value = 0
    for index in range(at, min(end, at + _LARGEST_VARINT)):
        value |= (content[index] & 127) << 7 * (index - at)
        if content[index] < 128:
            if value >> 64:
                break
            return value, index + 1
    raise ValueError("a number in it does not end")


def masked(crc: int) -> int:
    """A checksum as it is stored: the CRC of data that contains CRCs is weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ALL_BITS


def crc32c(content: bytes | memoryview | np.ndarray) -> int:
    """The CRC-32C of bytes."""
    # An array serves as bytes, and takes no copy.
    return int(google_crc32c.value(cast("bytes", np.frombuffer(content, np.uint8))))
