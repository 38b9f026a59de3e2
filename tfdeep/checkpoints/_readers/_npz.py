"""Reader for `.npz` files, the archives that `numpy.savez` writes."""

from __future__ import annotations

import io
import os
import struct
import tokenize

import numpy as np
from numpy.lib import format as npy

from tfdeep.checkpoints._readers._checks import DEFLATE, Limits
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._tensors import TensorInfo
from tfdeep.checkpoints._readers._zip import Archive

_LONGEST_HEADER = 10_000
_BY_VERSION = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_FAULTS = (
    *(ValueError, TypeError, SyntaxError, EOFError, OverflowError, KeyError),
    *(RecursionError, MemoryError, struct.error, tokenize.TokenError),
)


class NpzReader(Reader):
    """Reads a `.npz` file; an array's name is its name in the archive.

    The archive carries a CRC of each array, which is checked when it is read.
    """

    format = "NumPy archive (.npz)"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        super().__init__(source, limits)
        self._archive = Archive(self._checks)
        members = self._archive.members.values()
        self._set_integrity(all(member.crc is not None for member in members))
        with self.closed_on_error():
            infos = [self._listed(member.name) for member in members]
            self._accept(infos, os.path.getsize(source), DEFLATE)

    def _listed(self, member: str) -> TensorInfo:
        if not member.endswith(".npy"):
            raise self._checks.damaged(f"member {member!r} is not an array")
        start = self._archive.read_start(member, _LONGEST_HEADER + 16)
        shape, _, dtype, begin = self._header(member, start)
        name = member.removesuffix(".npy")
        declared = begin + self._checks.nbytes(name, shape, dtype.name)
        size = self._archive.members[member].size
        if declared != size:
            reason = f"{member!r} of {size} bytes declares {declared}"
            raise self._checks.damaged(reason)
        return TensorInfo(name, shape, dtype.name, member)

    def _header(
        self, member: str, content: bytes
    ) -> tuple[tuple[int, ...], bool, np.dtype, int]:
        """Shape, whether it is in Fortran's order, dtype, and where values begin."""
        file = io.BytesIO(content)
        try:
            read_header = _BY_VERSION[npy.read_magic(file)]
            shape, is_fortran, dtype = read_header(file, _LONGEST_HEADER)
        except _FAULTS as error:
            raise self._checks.damaged(f"{member!r}: {error}") from error
        self._checks.dtype(member, dtype.name)  # no objects, records or text
        if not all(type(n) is int for n in shape):
            raise self._checks.damaged(f"{member!r}: shape {shape!r}")
        return tuple(shape), is_fortran, dtype, file.tell()

    def read(self, name: str) -> np.ndarray:
        info = self.info(name)
        content = self._archive.read(info.location)
        start = content[: _LONGEST_HEADER + 16].tobytes()
        shape, is_fortran, dtype, begin = self._header(info.location, start)
        if (shape, dtype.name) != (info.shape, info.dtype):
            reason = f"{info.location!r} changed while it was read"
            raise self._checks.damaged(reason)
        values = np.frombuffer(content, dtype, offset=begin)
        values = values.reshape(shape, order="F" if is_fortran else "C")
        return values.astype(dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        self._archive.close()
