"""What every file of weights looks like from the inside of tfdeep."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from zlib_ng import zlib_ng

from tfdeep._core._explain import explain
from tfdeep.checkpoints._readers._limits import Limits, number_of_bytes
from tfdeep.errors import CorruptFileError

# Where the memory of a tensor of TensorFlow may begin: at a multiple of so many bytes.
ALIGNMENT = 64

_PIECE = 1 << 30  # bytes; no system reads twice as many at once
_SEEKING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, without its values.

    Attributes:
        name: Its name as the file writes it: layer names, then the variable's name, or
            its number within the layer where the format keeps no names.
        shape: Its shape.
        dtype: Its dtype, as Keras writes it: "float32", "bfloat16".
        location: Where the file keeps it.
        layer_class: The class of the layer that wrote it, in snake case, where the
            format tells.
        layer_variables: How many variables the layer that wrote it has, where the
            variables of a layer are only numbered.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    location: str
    layer_class: str | None = None
    layer_variables: int | None = None

    @property
    def path(self) -> str:
        """Its name with "/" between components, whatever the file has there."""
        return path_of(self.name)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return number_of_bytes("", self.name, self.shape, self.dtype)


def path_of(name: str) -> str:
    """A name as a path: PyTorch has dots between components.

    >>> path_of("layer1.0.conv1.weight")
    'layer1/0/conv1/weight'
    """
    return name.replace(".", "/")


class Closeable(contextlib.AbstractContextManager[Any]):
    """What holds a file: use it in a `with` statement, or close it."""

    def close(self) -> None:
        """Closes the file."""

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Closes it if what is done with it fails, as when it is being opened."""
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
        self.limits = limits or Limits()
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
        self.limits.check_tensors(self.source, infos, expansion, size)
        self._by_name = {info.name: info for info in infos}
        if len(self._by_name) < len(infos):
            names = [info.name for info in infos]
            twice = next(name for name in names if names.count(name) > 1)
            reason = f"two tensors are called {twice!r}"
            raise corrupt(self.source, self.format, reason)
        self.variables = tuple(infos)

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Reads the values of one tensor. Several threads may read at a time.

        Args:
            name: One of the names in `variables`.

        Raises:
            CorruptFileError: If the values cannot be read as the file declares them.
        """

    def read_values(
        self,
        file: BinaryIO,
        offset: int,
        count: int,
        dtype: np.dtype,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        """Reads plain little-endian values straight into the array they become."""
        values = empty_bytes(count)
        if not fill(file, offset, values):
            raise corrupt(self.source, self.format, "it ends too soon")
        return values.view(dtype).reshape(shape)

    def check_crc(self, name: str, values: np.ndarray, crc: object) -> None:
        """Raises if the CRC-32 of a tensor's bytes is not the one in the file."""
        if zlib_ng.crc32(bytes_of(values)) != crc:
            reason = f"tensor {name!r} has another checksum"
            raise corrupt(self.source, self.format, reason)

    def info(self, name: str) -> TensorInfo:
        """The entry of `variables` with this name."""
        return self._by_name[name]


def empty_bytes(count: int) -> np.ndarray:
    """Memory for `count` bytes, which a tensor of TensorFlow can share."""
    memory = np.empty(count + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + count]


def fill(file: BinaryIO, offset: int, values: np.ndarray) -> bool:
    """Reads bytes of a file into all of `values`; False if it ends before."""
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


def corrupt(source: str, kind: str, reason: object) -> CorruptFileError:
    """The error for a file that is damaged, cut short or not what its name says."""
    return CorruptFileError(
        explain(
            f"This {kind} cannot be read.",
            received=f"{source!r}: {_look(source)}{reason}",
            expected=f"a complete {kind}",
            fix="copy or download it again, or save it again; nothing was changed",
        )
    )


def _look(source: str) -> str:
    """Names the three things that most often stand where weights should be."""
    if not os.path.isfile(source):
        return ""
    try:
        with open(source, "rb") as file:
            start = file.read(256).lstrip().lower()
    except OSError:
        return ""
    if not start:
        return "the file is empty; "
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself (`git lfs pull`); "
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not the file itself; "
    return ""
