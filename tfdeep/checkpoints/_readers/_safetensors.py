"""Reader for `.safetensors` files, and for those spread over several."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from tfdeep._core._explain import explain
from tfdeep.checkpoints._readers._limits import Limits, dtype_of
from tfdeep.checkpoints._readers._reader import Reader, TensorInfo, corrupt
from tfdeep.errors import CheckpointError, UnsafeFileError

_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"BOOL": "bool", "C64": "complex64"},
}
NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Where `tfdeep.save_subset` keeps the CRC-32 of each tensor.
DIGEST = "tfdeep.crc32"


class SafetensorsReader(Reader):
    """Reads a `.safetensors` file, one tensor at a time.

    The format keeps no checksum, so values are unverified, unless
    `tfdeep.save_subset` wrote the file: it adds one for each tensor.
    """

    format = "safetensors"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        super().__init__(source, limits)
        self._file = open(source, "rb")  # noqa: SIM115 - closed by `close`
        with self.closed_on_error():
            self._list()

    def _list(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > size - 8:
            raise self._damaged("its header is longer than the file")
        self.limits.check_count(self.source, "header_bytes", length)
        text = self._file.read(length)
        self.limits.check_count(self.source, "tensors", text.count(b'"dtype"'))
        header = self._parsed(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(text, str) for text in metadata.values()
        ):
            raise self._damaged("its metadata is not text")
        self._begin = 8 + length
        self._spans = {name: self._span(name, entry) for name, entry in header.items()}
        infos = [
            TensorInfo(name, _shape(entry), _DTYPES[entry["dtype"]], name)
            for name, entry in header.items()
        ]
        self._accept(infos, size)
        end = 0
        for name, (first, last) in sorted(self._spans.items(), key=lambda x: x[1]):
            if first != end or last - first != self.info(name).nbytes:
                raise self._damaged(f"tensor {name!r} is not where it should be")
            end = last
        if self._begin + end != size:
            raise self._damaged(f"{size - self._begin - end} bytes belong to no tensor")
        self._crc = self._checksums(metadata)
        self.integrity = "verified" if self._crc is not None else "unverified"

    def _parsed(self, header: bytes) -> dict[str, Any]:
        try:
            if not header.startswith(b"{"):
                raise ValueError("its header is no JSON object")
            parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        return dict(parsed)

    def _span(self, name: str, entry: Any) -> tuple[int, int]:
        is_entry = isinstance(entry, dict) and entry.keys() == {
            *("dtype", "shape", "data_offsets")
        }
        if not is_entry:
            raise self._damaged(f"tensor {name!r} is not described")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            dtype_of(self.source, name, str(dtype))
            raise self._damaged(f"tensor {name!r} of dtype {dtype!r}")
        if not (_are_whole(shape) and _are_whole(offsets) and len(offsets) == 2):
            raise self._damaged(f"tensor {name!r} has no shape or place")
        return offsets[0], offsets[1]

    def _checksums(self, metadata: dict[str, str]) -> dict[str, int] | None:
        if DIGEST not in metadata:
            return None
        try:
            crc = json.loads(metadata[DIGEST])
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        if not isinstance(crc, dict) or crc.keys() != self._spans.keys():
            raise self._damaged("its checksums are not those of its tensors")
        return crc

    def read(self, name: str) -> np.ndarray:
        info = self.info(name)
        first, last = self._spans[name]
        dtype = dtype_of(self.source, name, info.dtype)
        values = self.read_values(
            self._file, self._begin + first, last - first, dtype, info.shape
        )
        if self._crc is not None:
            self.check_crc(name, values, self._crc[name])
        return values

    def close(self) -> None:
        self._file.close()

    def _damaged(self, reason: object) -> CheckpointError:
        return corrupt(self.source, self.format, reason)


class ShardedSafetensorsReader(Reader):
    """Reads the files that a `.safetensors.index.json` lists, as one."""

    format = "safetensors, in several files"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        super().__init__(source, limits)
        files = self._files()
        self.limits.check_count(source, "members", len(set(files.values())))
        self._shards: dict[str, SafetensorsReader] = {}
        with self.closed_on_error():
            for file in dict.fromkeys(files.values()):
                path = in_same_directory(source, file)
                self._shards[file] = SafetensorsReader(path, limits)
            self._of = {}
            for name, file in files.items():
                self._of[name] = self._shards[file]
            held = {i.name: f for f, s in self._shards.items() for i in s.variables}
            if held != files:
                reason = "it does not list what its files hold"
                raise corrupt(source, self.format, reason)
            infos = [shard.info(name) for name, shard in self._of.items()]
            size = sum(os.path.getsize(shard.source) for shard in self._shards.values())
            self._accept(infos, size)
        every = {shard.integrity for shard in self._shards.values()}
        self.integrity = "verified" if every == {"verified"} else "unverified"

    def _files(self) -> dict[str, str]:
        self.limits.check_count(
            self.source, "header_bytes", os.path.getsize(self.source)
        )
        try:
            with open(self.source, "rb") as file:
                text = file.read().decode("utf-8")
            files = json.loads(text, object_pairs_hook=unique_keys)["weight_map"]
            if not all(isinstance(file, str) for file in files.values()):
                raise ValueError("it does not name its files")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise corrupt(self.source, self.format, repr(e)) from e
        return dict(files)

    def read(self, name: str) -> np.ndarray:
        return self._of[name].read(name)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def in_same_directory(source: str, file: str) -> str:
    """The path of a file that `source` names, which must lie beside it."""
    path = os.path.join(os.path.dirname(source), file)
    is_bare = file == os.path.basename(file) and file not in ("", ".", "..")
    if not is_bare:
        raise UnsafeFileError(
            explain(
                "This file names a part that may lie elsewhere.",
                received=f"{source!r}: {file!r}",
                expected="the name of a file in the same directory",
                fix="do not use this file; nothing was changed",
            )
        )
    if not os.path.isfile(path):
        raise corrupt(source, "list of files", f"{file!r} is missing")
    return path


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused if a key is there twice: readers would not agree."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _shape(entry: dict[str, Any]) -> tuple[int, ...]:
    return tuple(entry["shape"])


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in values
    )
