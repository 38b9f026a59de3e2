"""Lists the tensors of a TensorFlow checkpoint from its index, without trusting it."""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from google.protobuf import message  # type: ignore[import-untyped]
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import tensor_bundle_pb2

from tfdeep.checkpoints._readers._checks import Checks
from tfdeep.checkpoints._readers._tf_table import Table, varint
from tfdeep.errors import UnknownFormatError

# Dtypes that no weight has, and whose size does not follow from the shape.
_OF_ANY_SIZE = ("string", "resource", "variant")
_RENAMED = {"float": "float32", "double": "float64", "half": "float16"}
_LARGEST_DIMENSION = 1 << 48
_LARGEST_TENSOR = 1 << 63
# One entry of the index; those of tensors in very many parts are the longest.
_LONGEST_ENTRY = 1 << 20
_VERSION = 1

_Message = TypeVar("_Message")


@dataclasses.dataclass(frozen=True)
class Part:
    """Where a part of a tensor belongs, and the key its values are kept under."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    key: bytes


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index says of one tensor.

    Its dtype is "string", "variant" or "resource" if it does not hold numbers. Its
    values take `size` bytes from `offset` on in the file numbered `shard`; `crc` is
    their masked CRC-32C. A tensor that was saved in parts has no values of its own.
    """

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    parts: tuple[tuple[Part, Entry], ...] = ()


@dataclasses.dataclass(frozen=True)
class Index:
    """The tensors of a checkpoint, by key; `others` are not numbers.

    `files` are those that hold the values, by number; `size` is that of all of them.
    """

    tensors: Mapping[str, Entry]
    others: Mapping[str, Entry]
    files: Mapping[int, str]
    size: int


def read_index(prefix: str, checks: TFChecks) -> Index:
    """Reads and checks the index of the checkpoint with this prefix.

    Args:
        prefix: The path without `.index`.
        checks: The checks of the checkpoint.
    """
    with Table(f"{prefix}.index", checks) as table:
        checks.count("header_bytes", table.size)
        rows = iter(table)
        shards = _number_of_shards(checks, next(rows, None))
        protos = {
            key: checks.parsed(tensor_bundle_pb2.BundleEntryProto, value)
            for key, value in rows
        }
    whole: dict[str, Entry] = {}
    parts: dict[bytes, Entry] = {}
    for key, proto in protos.items():
        if key.startswith(b"\0"):
            parts[key] = checks.entry(repr(key), proto)
        elif not proto.slices:
            name = checks.key_name(key)
            whole[name] = checks.entry(name, proto)
    files, size = _files(checks, prefix, shards, [*whole.values(), *parts.values()])
    for key, proto in protos.items():
        if not key.startswith(b"\0") and proto.slices:
            name = checks.key_name(key)
            whole[name] = checks.partitioned(name, proto, parts)
    if parts:
        raise checks.damaged(f"{min(parts)!r} is part of no tensor")
    tensors: dict[str, Entry] = {}
    others: dict[str, Entry] = {}
    for name in sorted(whole):
        chosen = others if whole[name].dtype in _OF_ANY_SIZE else tensors
        chosen[name] = whole[name]
    return Index(
        types.MappingProxyType(tensors),
        types.MappingProxyType(others),
        types.MappingProxyType(files),
        size,
    )


def _number_of_shards(checks: TFChecks, first: tuple[bytes, bytes] | None) -> int:
    if first is None or first[0] != b"":
        raise checks.damaged("it has no header")
    header = checks.parsed(tensor_bundle_pb2.BundleHeaderProto, first[1])
    checks.version(header.version)
    if header.endianness == tensor_bundle_pb2.BundleHeaderProto.BIG:
        raise checks.unread(
            "numbers with the most significant byte first",
            "numbers with the least significant byte first",
        )
    if header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
        raise checks.damaged(f"an unknown byte order, {header.endianness}")
    shards = int(header.num_shards)
    checks.count("members", shards)
    if shards < 1:
        raise checks.damaged(f"it is spread over {shards} files")
    return shards


def _files(
    checks: TFChecks, prefix: str, shards: int, entries: Iterable[Entry]
) -> tuple[dict[int, str], int]:
    """The files that hold the values of `entries`, and their bytes."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for entry in entries:
        if not 0 <= entry.shard < shards:
            reason = f"values in file {entry.shard} of {shards}"
            raise checks.damaged(reason)
        spans.setdefault(entry.shard, []).append((entry.offset, entry.size))
    files, total = {}, 0
    for shard in sorted(spans):
        files[shard] = f"{prefix}.data-{shard:05d}-of-{shards:05d}"
        base = os.path.basename(files[shard])
        if not os.path.isfile(files[shard]):
            raise checks.damaged(f"there is no file {base!r}")
        size = os.path.getsize(files[shard])
        checks.apart(spans[shard], size)
        total += size
    return files, total


class TFChecks(Checks):
    """Turns what a TensorFlow checkpoint declares into plain values, or refuses it."""

    def unread(self, received: str, expected: str) -> UnknownFormatError:
        """The error for a checkpoint that this reader is not made for."""
        return self.unknown(
            f"This {self.kind} is of a kind that tfdeep does not read.",
            received,
            expected,
            "restore and save it with TensorFlow",
        )

    def parsed(
        self,
        kind: type[_Message],
        content: bytes | memoryview,
        longest: int | None = _LONGEST_ENTRY,
    ) -> _Message:
        """The message that `content` encodes.

        A message can take some fifty times the memory of its bytes, so its bytes are
        limited to `longest`, if given.
        """
        if longest is not None and len(content) > longest:
            raise self.damaged(f"an entry of {len(content)} bytes")
        try:
            parsed: _Message = kind.FromString(bytes(content))  # type: ignore[attr-defined]
        except (message.DecodeError, ValueError, RecursionError) as error:
            raise self.damaged(f"an entry cannot be parsed: {error}") from error
        return parsed

    def fields(self, content: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
        """The numbers and contents of the fields of a message of messages."""
        view, at = memoryview(content), 0
        while at < len(view):
            try:
                tag, at = varint(view, at, len(view))
                length, at = varint(view, at, len(view))
            except ValueError as error:
                raise self.damaged(error) from error
            if tag & 7 != 2 or length > len(view) - at:
                raise self.damaged("an entry cannot be parsed")
            yield tag >> 3, view[at : at + length]
            at += length

    def version(self, version: Any) -> None:
        """Refuses what only later versions of TensorFlow can read."""
        if version.min_consumer > _VERSION or _VERSION in version.bad_consumers:
            raise self.unread(
                f"a format of version {version.producer}", f"version {_VERSION}"
            )

    def key_name(self, key: bytes) -> str:
        """A key as text."""
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"a tensor is called {key[:80]!r}"
            raise self.damaged(reason) from error
        self.name(name)
        return name

    def dtype_name(self, name: str, number: int) -> str:
        """The name of a dtype, if values of it can be saved."""
        label = types_pb2.DataType.DESCRIPTOR.values_by_number.get(number)
        if label is None or number == types_pb2.DT_INVALID or "_REF" in label.name:
            raise self.damaged(f"tensor {name!r} is of the unknown dtype {number}")
        plain = str(label.name).removeprefix("DT_").lower()
        return _RENAMED.get(plain, plain)

    def shape(self, name: str, proto: Any) -> tuple[int, ...]:
        """A shape that is fully known and whose size can be counted."""
        self.count("rank", len(proto.dim))
        shape = tuple(int(dimension.size) for dimension in proto.dim)
        is_shape = all(0 <= n <= _LARGEST_DIMENSION for n in shape)
        # Zeros do not count: a huge shape with a zero in it is not that of a weight.
        if (
            proto.unknown_rank
            or not is_shape
            or math.prod(n for n in shape if n) >= _LARGEST_TENSOR
        ):
            reason = f"tensor {name!r} has the shape {shape}"
            raise self.damaged(reason)
        return shape

    def entry(self, name: str, proto: Any) -> Entry:
        """An entry of the index, whose size fits its shape."""
        if proto.slices:
            raise self.damaged(f"part {name} consists of parts")
        entry = Entry(
            self.dtype_name(name, proto.dtype),
            self.shape(name, proto.shape),
            int(proto.shard_id),
            int(proto.offset),
            int(proto.size),
            int(proto.crc32c),
        )
        if entry.offset < 0 or entry.size < 0:
            raise self.damaged(f"tensor {name!r} has a negative offset or size")
        if entry.dtype in _OF_ANY_SIZE:
            fits = math.prod(entry.shape) <= entry.size
        else:
            number = self.nbytes(name, entry.shape, entry.dtype)
            fits = number == entry.size
        if not fits:
            reason = (
                f"tensor {name!r} of dtype {entry.dtype} and shape {entry.shape} in "
                f"{entry.size} bytes"
            )
            raise self.damaged(reason)
        return entry

    def partitioned(self, name: str, proto: Any, parts: dict[bytes, Entry]) -> Entry:
        """A tensor that was saved in parts, which are taken out of `parts`."""
        dtype, shape = self.dtype_name(name, proto.dtype), self.shape(name, proto.shape)
        if dtype in _OF_ANY_SIZE:
            raise self.unread(f"parts of tensor {name!r} of {dtype}", "numbers")
        self.nbytes(name, shape, dtype)
        found = []
        for part in self.parts(name, shape, proto.slices):
            entry = parts.pop(part.key, None)
            if entry is None or (entry.dtype, entry.shape) != (dtype, part.shape):
                raise self.damaged(f"a part of tensor {name!r} is missing")
            found.append((part, entry))
        return Entry(dtype, shape, 0, 0, 0, 0, tuple(found))

    def parts(self, name: str, shape: tuple[int, ...], slices: Any) -> list[Part]:
        """The parts of a tensor, which together have its size."""
        found = [self._part(name, shape, proto) for proto in slices]
        if sum(math.prod(part.shape) for part in found) != math.prod(shape):
            raise self.damaged(f"the parts of tensor {name!r} do not make up a whole")
        return found

    def _part(self, name: str, shape: tuple[int, ...], proto: Any) -> Part:
        if len(proto.extent) != len(shape):
            raise self.damaged(f"a part of tensor {name!r} has the wrong rank")
        start, lengths, encoded = [], [], []
        for extent, size in zip(proto.extent, shape, strict=True):
            has_length = extent.HasField("length")
            length = int(extent.length) if has_length else size
            begin = int(extent.start)
            # TensorFlow does not know parts of nothing, only whole axes of nothing.
            if begin < 0 or length < has_length or begin + length > size:
                raise self.damaged(f"a part of tensor {name!r} is not inside it")
            start.append(begin)
            lengths.append(length)
            encoded += [begin, length if has_length else -1]
        return Part(tuple(start), tuple(lengths), slice_key(name, encoded))

    def joined(
        self,
        name: str,
        dtype: np.dtype,
        shape: tuple[int, ...],
        parts: Iterable[tuple[Part, np.ndarray]],
    ) -> np.ndarray:
        """Joins the parts of a tensor, which must not overlap."""
        values = np.empty(shape, dtype)
        is_set = np.zeros(shape, bool)
        for part, content in parts:
            place = tuple(
                slice(begin, begin + length)
                for begin, length in zip(part.start, part.shape, strict=True)
            )
            if is_set[place].any():
                raise self.damaged(f"two parts of tensor {name!r} overlap")
            is_set[place] = True
            values[place] = content
        return values


def slice_key(name: str, bounds: Iterable[int]) -> bytes:
    """The key under which TensorFlow keeps a part of a tensor.

    The encoding keeps the order: keys of one tensor are in the order of its parts.

    Args:
        name: The tensor, without NUL characters.
        bounds: First index and length for each axis in turn; the length is -1 for all
            of an axis.
    """
    numbers = list(bounds)
    rank = len(numbers) // 2
    size = (rank.bit_length() + 7) // 8
    return b"".join(
        [
            b"\0",
            name.encode("utf-8"),
            b"\0\x01",
            bytes([size]),
            rank.to_bytes(size, "big"),
            *map(_ordered, numbers),
        ]
    )


def _ordered(number: int) -> bytes:
    """Encodes a number from -1 on: a one bit for each byte, then its bits."""
    if number < 0:
        return bytes([0x80 ^ (number & 0xFF)])
    size = 1
    while number >> (7 * size - 1):
        size += 1
    return (((1 << size) - 1) << 7 * size | number).to_bytes(size, "big")
