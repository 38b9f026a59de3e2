"""What every file of weights looks like from the inside of tfdeep."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from zlib_ng import zlib_ng

from tfdeep._core._explain import a_type
from tfdeep.checkpoints._readers._checks import Checks, Limits
from tfdeep.checkpoints._readers._tensors import TensorInfo

# TensorFlow can share memory that begins at a multiple of this many bytes.
ALIGNMENT = 64

_PIECE = 1 << 30  # bytes; systems read less than twice as many at once
_SEEKING = threading.Lock()


class Closeable(contextlib.AbstractContextManager[Any]):
    """Something that holds a file open: use it in a `with` statement, or close it."""

    def close(self) -> None:
        """Closes the file."""

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Closes it if the block raises, as while it is being opened."""
        try:
            yield
        except BaseException:
            self.close()
            raise


class Reader(Closeable, abc.ABC):
    """Lists the tensors of a file of weights and reads them one at a time.

    Attributes:
        source: The path as it was given.
        format: What kind of file it is, in words.
        integrity: "verified" if the format carries a checksum of the values that is
            checked on reading, else "unverified".
        variables: The tensors, in the file's order.
    """

    source: str
    format: str
    integrity: str
    variables: Sequence[TensorInfo]

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        self.source = source
        self._checks = Checks(source, self.format, limits or Limits())
        self._by_name: dict[str, TensorInfo] = {}

    def _accept(
        self, infos: Sequence[TensorInfo], size: int, expansion: int = 1
    ) -> None:
        """Sets `variables`, if the limits and the size of the file allow them.

        Args:
            infos: The tensors.
            size: Bytes of the file, or of all of its files.
            expansion: How many bytes one byte of the file can become.
        """
        self._checks.tensors(infos, size, expansion)
        for info in infos:
            if self._by_name.setdefault(info.name, info) is not info:
                raise self._checks.damaged(f"two tensors are called {info.name!r}")
        self.variables = tuple(infos)

    def _set_integrity(self, is_verified: bool) -> None:
        self.integrity = "verified" if is_verified else "unverified"

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Reads the values of one tensor. Several threads may read at a time.

        Args:
            name: One of the names in `variables`.

        Raises:
            CorruptFileError: If the values cannot be read as the file declares them.
        """

    def _read_bytes(self, file: BinaryIO, offset: int, count: int) -> np.ndarray:
        """Reads bytes of a file into memory that values can share."""
        values = empty_bytes(count)
        if not fill(file, offset, values):
            raise self._checks.damaged("it ends too soon")
        return values

    def _check_crc(self, name: str, values: np.ndarray, crc: object) -> None:
        """Raises if the CRC-32 of a tensor's bytes is not the one in the file."""
        if zlib_ng.crc32(bytes_of(values)) != crc:
            raise self._checks.damaged(f"tensor {name!r} does not match its checksum")

    def _json(self, of: str) -> dict[str, Any]:
        """The object called `of` in the source, a file of JSON."""
        self._checks.count("header_bytes", os.path.getsize(self.source))
        try:
            with open(self.source, "rb") as file:
                found = parse_json(file.read())[of]
            if not isinstance(found, dict):
                raise TypeError(f"{of!r} is {a_type(found)}, not an object")
            return found
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise self._checks.damaged(repr(error)) from error

    def info(self, name: str) -> TensorInfo:
        """The entry of `variables` with this name."""
        return self._by_name[name]


def parse_json(content: bytes) -> Any:
    """Parses JSON in UTF-8.

    Raises:
        ValueError: And RecursionError, if it is malformed, or has a key twice in one
            object: readers would not agree on its value.
    """
    return json.loads(content.decode("utf-8"), object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def empty_bytes(count: int) -> np.ndarray:
    """Memory for `count` bytes that a TensorFlow tensor can share."""
    memory = np.empty(count + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + count]


def fill(file: BinaryIO, offset: int, values: np.ndarray) -> bool:
    """Reads bytes of a file into `values`; False if the file ends too soon."""
    view, done = values.data, 0
    while done < len(view):
        count = _read_into(file, offset + done, view[done : done + _PIECE])
        if not count:
            return False
        done += count
    return True


def _read_into(file: BinaryIO, offset: int, view: memoryview) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [view], offset)
    with _SEEKING:
        file.seek(offset)
        return int(file.readinto(view))  # type: ignore[attr-defined]


def bytes_of(values: np.ndarray) -> memoryview:
    """The bytes of an array, in C order."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
