"""Reader for `.safetensors` files, and for those spread over several."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.checkpoints._readers._reader import Reader, parse_json
from tfdeep.checkpoints._readers._tensors import TensorInfo

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
        checks = self._checks
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > size - 8:
            raise checks.damaged("its header is longer than the file")
        checks.count("header_bytes", length)
        text = self._file.read(length)
        checks.count("tensors", text.count(b'"dtype"'))
        header = self._parsed(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(text, str) for text in metadata.values()
        ):
            raise checks.damaged("its metadata is not text")
        self._begin = 8 + length
        self._spans = {name: self._span(name, entry) for name, entry in header.items()}
        infos = [
            TensorInfo(name, tuple(entry["shape"]), _DTYPES[entry["dtype"]], name)
            for name, entry in header.items()
        ]
        self._accept(infos, size)
        end = 0
        for name, (first, last) in sorted(self._spans.items(), key=lambda x: x[1]):
            if first != end or last - first != self.info(name).nbytes:
                raise checks.damaged(f"tensor {name!r} is not where it should be")
            end = last
        if self._begin + end != size:
            left = size - self._begin - end
            raise checks.damaged(f"{left} bytes belong to no tensor")
        self._crc = self._checksums(metadata)
        self._set_integrity(self._crc is not None)

    def _parsed(self, header: bytes) -> dict[str, Any]:
        try:
            if not header.startswith(b"{"):
                raise ValueError("its header is not a JSON object")
            return dict(parse_json(header))
        except (ValueError, RecursionError) as error:
            raise self._checks.damaged(error) from error

    def _span(self, name: str, entry: Any) -> tuple[int, int]:
        """Where a tensor begins and ends behind the header."""
        keys = {"dtype", "shape", "data_offsets"}
        if not isinstance(entry, dict) or entry.keys() != keys:
            raise self._checks.damaged(f"tensor {name!r} is not described")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            self._checks.dtype(name, str(dtype))
            raise self._checks.damaged(f"tensor {name!r} of dtype {dtype!r}")
        if not (_are_whole(shape) and _are_whole(offsets) and len(offsets) == 2):
            raise self._checks.damaged(f"tensor {name!r} has no shape or place")
        return offsets[0], offsets[1]

    def _checksums(self, metadata: dict[str, str]) -> dict[str, int] | None:
        if DIGEST not in metadata:
            return None
        try:
            crc = parse_json(metadata[DIGEST].encode())
        except (ValueError, RecursionError) as error:
            raise self._checks.damaged(error) from error
        if not isinstance(crc, dict) or crc.keys() != self._spans.keys():
            raise self._checks.damaged("its checksums are not those of its tensors")
        return crc

    def read(self, name: str) -> np.ndarray:
        info = self.info(name)
        first, last = self._spans[name]
        content = self._read_bytes(self._file, self._begin + first, last - first)
        values = content.view(self._checks.dtype(name, info.dtype)).reshape(info.shape)
        if self._crc is not None:
            self._check_crc(name, values, self._crc[name])
        return values

    def close(self) -> None:
        self._file.close()


class ShardedSafetensorsReader(Reader):
    """Reads the files that a `.safetensors.index.json` lists, as one."""

    format = "safetensors, in several files"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        super().__init__(source, limits)
        files = self._json("weight_map")
        if not all(isinstance(file, str) for file in files.values()):
            raise self._checks.damaged("it does not name its files")
        self._checks.count("members", len(set(files.values())))
        shards: dict[str, SafetensorsReader] = {}
        self._shards = shards
        with self.closed_on_error():
            for file in dict.fromkeys(files.values()):
                shards[file] = SafetensorsReader(self._beside(file), limits)
            held = {i.name: file for file in shards for i in shards[file].variables}
            if held != files:
                raise self._checks.damaged("it does not list what its files hold")
            self._of = {name: shards[file] for name, file in files.items()}
            infos = [shard.info(name) for name, shard in self._of.items()]
            size = sum(os.path.getsize(shard.source) for shard in shards.values())
            self._accept(infos, size)
        every = {shard.integrity for shard in shards.values()}
        self._set_integrity(every == {"verified"})

    def _beside(self, file: str) -> str:
        """The path of a file that is named, which must lie in the same directory."""
        if file != os.path.basename(file) or file in ("", ".", ".."):
            raise self._checks.unsafe(
                "This file names a part that may be somewhere else.",
                repr(file),
                "the name of a file in the same directory",
            )
        path = os.path.join(os.path.dirname(self.source), file)
        if not os.path.isfile(path):
            raise self._checks.damaged(f"{file!r} is missing")
        return path

    def read(self, name: str) -> np.ndarray:
        return self._of[name].read(name)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)
