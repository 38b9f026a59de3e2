"""Reader for `.npz` files, the archives that `numpy.savez` writes."""

from __future__ import annotations

import io
import os
import struct
import tokenize

import numpy as np
from numpy.lib import format as npy

from tfdeep.checkpoints._readers._limits import DEFLATE, Limits, dtype_of
from tfdeep.checkpoints._readers._reader import Reader, TensorInfo, corrupt
from tfdeep.checkpoints._readers._zip import Archive

_LONGEST_HEADER = 10_000
_BY_VERSION = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_FAULTS = (
    *(ValueError, TypeError, SyntaxError, EOFError, OverflowError),
    *(struct.error, tokenize.TokenError),
)


class NpzReader(Reader):
    """Reads a `.npz` file; an array's name is its name in the archive.

    The archive carries a CRC of each array, which is checked when it is read.
    """

    format = "NumPy archive (.npz)"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        super().__init__(source, limits)
        self._archive = Archive(source, self.format, self.limits)
        members = self._archive.members.values()
        is_checked = all(member.crc is not None for member in members)
        self.integrity = "verified" if is_checked else "unverified"
        with self.closed_on_error():
            infos = [self._listed(member.name) for member in members]
            self._accept(infos, os.path.getsize(source), DEFLATE)

    def _listed(self, member: str) -> TensorInfo:
        if not member.endswith(".npy"):
            reason = f"member {member!r} is no array"
            raise corrupt(self.source, self.format, reason)
        start = self._archive.read_start(member, _LONGEST_HEADER + 16)
        shape, _, dtype, begin = self._header(member, start)
        info = TensorInfo(member.removesuffix(".npy"), shape, dtype.name, member)
        size = self._archive.members[member].size
        if begin + info.nbytes != size:
            reason = f"{member!r} of {size} bytes declares {begin + info.nbytes}"
            raise corrupt(self.source, self.format, reason)
        return info

    def _header(
        self, member: str, content: bytes
    ) -> tuple[tuple[int, ...], bool, np.dtype, int]:
        """Shape, whether it is in Fortran's order, dtype, and where values begin."""
        file = io.BytesIO(content)
        try:
            version = npy.read_magic(file)
            read_header = _BY_VERSION[version]
            shape, is_fortran, dtype = read_header(file, _LONGEST_HEADER)
        except (*_FAULTS, KeyError, RecursionError, MemoryError) as error:
            raise corrupt(self.source, self.format, f"{member!r}: {error}") from error
        dtype_of(self.source, member, dtype.name)  # no objects, records or text
        if not all(type(n) is int for n in shape):
            raise corrupt(self.source, self.format, f"{member!r}: shape {shape!r}")
        return tuple(shape), is_fortran, dtype, file.tell()

    def read(self, name: str) -> np.ndarray:
        info = self.info(name)
        content = self._archive.read(info.location)
        start = content[: _LONGEST_HEADER + 16].tobytes()
        shape, is_fortran, dtype, begin = self._header(info.location, start)
        if (shape, dtype.name) != (info.shape, info.dtype):
            reason = f"{info.location!r} changed while it was read"
            raise corrupt(self.source, self.format, reason)
        values = np.frombuffer(content, dtype, offset=begin)
        values = values.reshape(shape, order="F" if is_fortran else "C")
        return values.astype(dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        self._archive.close()
