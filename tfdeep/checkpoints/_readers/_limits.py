"""How much a file may ask for before anything is read or allocated for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from tfdeep._core._explain import explain
from tfdeep.errors import CorruptFileError, LimitError, UnknownFormatError

if TYPE_CHECKING:
    from tfdeep.checkpoints._readers._reader import TensorInfo

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

# What deflate can make of one byte, and a little.
DEFLATE = 1_100

_LARGEST_DIMENSION = 1 << 48

_NARROW: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
    )
}
_NUMPY = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "float16", "float32", "float64", "complex64", "complex128"),
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that a file of weights may declare; what goes beyond is an error.

    A small file can declare huge tensors. These limits are checked before memory is
    taken.

    Attributes:
        tensor_bytes: Bytes of one tensor.
        total_bytes: Bytes of all tensors together.
        tensors: Number of tensors.
        rank: Number of axes.
        name_bytes: Bytes of a name, in UTF-8.
        header_bytes: Bytes of the part that lists the tensors (the header of a
            safetensors file, `data.pkl`, the index of a TensorFlow checkpoint).
        members: Number of members of a zip archive, of groups of an HDF5 file, or of
            the files that one checkpoint is spread over.
        seconds: Seconds of processor time to list an HDF5 file.
    """

    tensor_bytes: int = 16 * _GIB
    total_bytes: int = 64 * _GIB
    tensors: int = 250_000
    rank: int = 32
    name_bytes: int = 4_096
    header_bytes: int = 100_000_000
    members: int = 100_000
    seconds: int = 2

    def check_count(self, source: str, name: str, count: int) -> None:
        """Raises if `count` is more than the limit called `name`."""
        limit = getattr(self, name)
        if count > limit:
            raise _too_much(source, f"{count} {name}", name, limit)

    def check_tensors(
        self, source: str, infos: Iterable[TensorInfo], expansion: int, size: int
    ) -> None:
        """Raises if a listing declares more than the limits, or than fits the file.

        Args:
            source: The file.
            infos: Its tensors.
            expansion: How many bytes one byte of the file can become: 1 unless the
                format compresses.
            size: Bytes of the file, or of all of its files.
        """
        total = count = 0
        for info in infos:
            count += 1
            self.check_name(source, info.name)
            self.check_count(source, "rank", len(info.shape))
            number = number_of_bytes(source, info.name, info.shape, info.dtype)
            if number > self.tensor_bytes:
                what = f"tensor {info.name!r} of {number} bytes"
                raise _too_much(source, what, "tensor_bytes", self.tensor_bytes)
            if number > size * expansion:
                raise CorruptFileError(
                    explain(
                        "This file declares more values than it can hold.",
                        received=f"{source!r}: tensor {info.name!r} of {number} bytes "
                        f"in {size} bytes",
                        expected="tensors that fit into the file",
                        fix="do not use this file; nothing was changed",
                    )
                )
            total += number
        self.check_count(source, "tensors", count)
        self.check_count(source, "total_bytes", total)

    def check_name(self, source: str, name: str) -> None:
        """Raises if a name is too long, empty, or cannot be one."""
        try:
            encoded = name.encode("utf-8")
        except UnicodeEncodeError:
            encoded = b""
        if not encoded or b"\0" in encoded:
            raise CorruptFileError(
                explain(
                    "A tensor of this file has a name that cannot be one.",
                    received=f"{source!r}: {name[:80]!r}",
                    expected="text without NUL characters",
                    fix="do not use this file; nothing was changed",
                )
            )
        self.check_count(source, "name_bytes", len(encoded))


def dtype_of(source: str, name: str, dtype: str) -> np.dtype:
    """The NumPy dtype of a tensor, or an error if tfdeep cannot hold it."""
    if dtype in _NARROW:
        return np.dtype(_NARROW[dtype])
    if dtype in _NUMPY:
        return np.dtype(dtype)
    raise UnknownFormatError(
        explain(
            "This file holds values of a kind that no weight has.",
            received=f"{source!r}: tensor {name!r} of dtype {dtype!r}",
            expected="floating point numbers, integers or booleans",
            fix="save the weights in one of these; nothing was changed",
        )
    )


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype holds floating point numbers, narrow ones included."""
    return bool(dtype.kind == "f" or dtype.name in _NARROW)


def number_of_bytes(source: str, name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor; an error for a shape that is none."""
    if any(not 0 <= n <= _LARGEST_DIMENSION for n in shape):
        raise CorruptFileError(
            explain(
                "A tensor of this file has a shape that cannot be one.",
                received=f"{source!r}: {name!r} of shape {shape}",
                expected=f"dimensions from 0 to {_LARGEST_DIMENSION}",
                fix="do not use this file; nothing was changed",
            )
        )
    return math.prod(shape) * dtype_of(source, name, dtype).itemsize


def _too_much(source: str, what: str, name: str, limit: int) -> LimitError:
    return LimitError(
        explain(
            "This file declares more than may be read.",
            received=f"{source!r}: {what}",
            expected=f"at most {limit} ({name})",
            fix=f"if you trust it, `tfdeep.checkpoints.Limits({name}=...)`; nothing "
            "was changed",
        )
    )
