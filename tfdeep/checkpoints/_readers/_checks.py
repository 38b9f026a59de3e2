"""What is checked of every file before anything is read or allocated for it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable

import numpy as np

from tfdeep._core._explain import explain
from tfdeep.checkpoints._readers._tensors import TensorInfo, known_dtype
from tfdeep.errors import (
    CorruptFileError,
    LimitError,
    UnknownFormatError,
    UnsafeFileError,
)

_GIB = 1 << 30

# How many bytes deflate can make of one, rounded up.
DEFLATE = 1_100

_LARGEST_DIMENSION = 1 << 48


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that a file of weights may declare; what goes beyond is an error.

    A small file can declare huge tensors. These limits are checked before memory is
    allocated.

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
        seconds: Seconds of processor time to list an HDF5 file. Waiting for a disk or
            for a busy machine does not count.
    """

    tensor_bytes: int = 16 * _GIB
    total_bytes: int = 64 * _GIB
    tensors: int = 250_000
    rank: int = 32
    name_bytes: int = 4_096
    header_bytes: int = 100_000_000
    members: int = 100_000
    seconds: int = 2


@dataclasses.dataclass(frozen=True)
class Checks:
    """The checks that all readers share, and the errors for what they find.

    Attributes:
        source: The file, as the caller named it.
        kind: What it should be, in words.
        limits: The most that it may declare.
    """

    source: str
    kind: str
    limits: Limits

    def damaged(self, reason: object) -> CorruptFileError:
        """The error for a file that is damaged, cut short or not what it claims."""
        return CorruptFileError(
            self._explained(
                "This file cannot be read.",
                f"{_look(self.source)}{reason}",
                f"a complete file: {self.kind}",
                "copy or download it again, or save it again",
            )
        )

    def unsafe(
        self,
        what: str,
        reason: object,
        expected: str,
        fix: str = "do not use this file",
    ) -> UnsafeFileError:
        """The error for a file that asks for more than its values to be read."""
        return UnsafeFileError(self._explained(what, reason, expected, fix))

    def unknown(
        self, what: str, reason: object, expected: str, fix: str
    ) -> UnknownFormatError:
        """The error for a file that no reader knows."""
        return UnknownFormatError(self._explained(what, reason, expected, fix))

    def too_much(
        self, what: str, reason: object, expected: str, fix: str
    ) -> LimitError:
        """The error for a file that declares too much, or takes too long."""
        return LimitError(self._explained(what, reason, expected, fix))

    def count(self, name: str, count: int, what: str = "") -> None:
        """Raises if `count` is more than the limit called `name`."""
        limit = getattr(self.limits, name)
        if count > limit:
            raise self.too_much(
                "This file declares more than the limits allow.",
                what or f"{count} {name}",
                f"at most {limit} ({name})",
                f"if you trust it, pass `tfdeep.checkpoints.Limits({name}=...)`",
            )

    def tensors(
        self, infos: Iterable[TensorInfo], size: int, expansion: int = 1
    ) -> None:
        """Raises if a listing declares more than the limits, or than fits the file.

        Args:
            infos: The tensors.
            size: Bytes of the file, or of all of its files.
            expansion: How many bytes one byte of the file can become: 1 unless the
                format compresses.
        """
        total = number = 0
        for info in infos:
            number += 1
            self.name(info.name)
            self.count("rank", len(info.shape))
            count = self.nbytes(info.name, info.shape, info.dtype)
            what = f"tensor {info.name!r} of {count} bytes"
            self.count("tensor_bytes", count, what)
            if count > size * expansion:
                raise self._invalid(
                    "This file declares more values than it can hold.",
                    f"{what} in {size} bytes",
                    "tensors that fit into the file",
                )
            total += count
        self.count("tensors", number)
        self.count("total_bytes", total)

    def apart(self, spans: Iterable[tuple[int, int]], size: int) -> None:
        """Raises if spans of bytes overlap, or reach beyond `size`.

        Each byte of an overlap would count more than once.

        Args:
            spans: Where each begins and how many bytes it has.
            size: Bytes of the file.
        """
        end = 0
        for begin, count in sorted(span for span in spans if span[1]):
            if begin < end:
                raise self.damaged(f"two tensors share the byte {begin}")
            end = begin + count
        if end > size:
            raise self.damaged(f"its values end at byte {end} of {size}")

    def name(self, name: str) -> None:
        """Raises if a name is too long, empty, or not text."""
        try:
            encoded = name.encode("utf-8")
        except UnicodeEncodeError:
            encoded = b""
        if not encoded or b"\0" in encoded:
            raise self._invalid(
                "A tensor in this file has an invalid name.",
                repr(name[:80]),
                "text without NUL characters",
            )
        self.count("name_bytes", len(encoded))

    def dtype(self, name: str, dtype: str) -> np.dtype:
        """The NumPy dtype of a tensor, or an error if tfdeep cannot hold it."""
        found = known_dtype(dtype)
        if found is None:
            raise self.unknown(
                "This file holds values that cannot be weights.",
                f"tensor {name!r} of dtype {dtype!r}",
                "floating point numbers, integers or booleans",
                "save the weights as one of these",
            )
        return found

    def nbytes(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes of a tensor, or an error for an invalid shape."""
        if not all(0 <= n <= _LARGEST_DIMENSION for n in shape):
            raise self._invalid(
                "A tensor in this file has an invalid shape.",
                f"{name!r} of shape {shape}",
                f"dimensions from 0 to {_LARGEST_DIMENSION}",
            )
        return math.prod(shape) * self.dtype(name, dtype).itemsize

    def _invalid(self, what: str, reason: str, expected: str) -> CorruptFileError:
        fix = "do not use this file"
        return CorruptFileError(self._explained(what, reason, expected, fix))

    def _explained(self, what: str, reason: object, expected: str, fix: str) -> str:
        received = f"{self.source!r}: {reason}"
        return explain(what, received, expected, f"{fix}; nothing was changed")


def _look(source: str) -> str:
    """Names the three things that are most often found in place of weights."""
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
