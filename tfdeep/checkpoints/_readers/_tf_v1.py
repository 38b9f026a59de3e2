"""Reads the single-file checkpoints that TensorFlow wrote before 2016."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from tensorflow.core.framework import versions_pb2
from tensorflow.core.util import saved_tensor_slice_pb2

from tfdeep.checkpoints._readers._reader import Closeable
from tfdeep.checkpoints._readers._tf_index import Part, TFChecks
from tfdeep.checkpoints._readers._tf_table import Table

# The field of a tensor's message that holds values of a dtype. Most whole numbers are
# kept in as many bytes as they need, so that one byte can become eight.
_FIELDS = {
    **{"float32": "float_val", "float64": "double_val", "bool": "bool_val"},
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int_val"),
    **{"int64": "int64_val", "uint32": "uint32_val", "uint64": "uint64_val"},
    **{"float16": "half_val", "bfloat16": "half_val"},
    **{"complex64": "scomplex_val", "complex128": "dcomplex_val"},
}
_OF_BITS = ("float16", "bfloat16")
EXPANSION = 8

_META, _DATA = 1, 2
_TENSOR, _VERSIONS = 1, 2


class V1File(Closeable):
    """Lists and reads the tensors of a checkpoint of the first format.

    Every block of the file has a checksum, which is checked when it is read. `tensors`
    has the dtype and shape of each tensor, by its name.
    """

    def __init__(self, path: str, checks: TFChecks) -> None:
        self._checks = checks
        self._table = Table(path, checks)
        self.size = self._table.size
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._parts: dict[str, list[Part]] = {}
        self._lock = threading.Lock()
        with self.closed_on_error():
            self._list()

    def _list(self) -> None:
        checks = self._checks
        listing = self._table.get(b"")
        if listing is None:
            raise checks.damaged("it does not list its tensors")
        checks.count("header_bytes", len(listing))
        for number, meta in checks.fields(listing):
            if number != _META:
                raise checks.damaged("its list of tensors holds values")
            for inner, content in checks.fields(meta):
                if inner == _TENSOR:
                    self._add(content)
                elif inner == _VERSIONS:
                    checks.version(checks.parsed(versions_pb2.VersionDef, content))

    def _add(self, content: memoryview) -> None:
        checks = self._checks
        checks.count("tensors", len(self._parts) + 1)
        meta = checks.parsed(saved_tensor_slice_pb2.SavedSliceMeta, content)
        name = meta.name
        checks.name(name)
        if name in self._parts:
            raise checks.damaged(f"two tensors are called {name!r}")
        dtype, shape = (
            checks.dtype_name(name, meta.type),
            checks.shape(name, meta.shape),
        )
        self._parts[name] = checks.parts(name, shape, meta.slice)
        if dtype != "string":
            checks.nbytes(name, shape, dtype)
            self.tensors[name] = dtype, shape

    def read(self, name: str) -> np.ndarray:
        """Reads the values of one tensor."""
        dtype, shape = self.tensors[name]
        parts = self._parts[name]
        if len(parts) == 1:
            return self._values(name, dtype, parts[0])
        return self._checks.joined(
            name,
            self._checks.dtype(name, dtype),
            shape,
            ((part, self._values(name, dtype, part)) for part in parts),
        )

    def _values(self, name: str, dtype: str, part: Part) -> np.ndarray:
        with self._lock:
            content = self._table.get(part.key)
        if content is None:
            raise self._checks.damaged(f"the values of tensor {name!r} are missing")
        kind = saved_tensor_slice_pb2.SavedTensorSlices
        data = self._checks.parsed(kind, content, longest=None).data
        if data.name != name or dtype not in _FIELDS:
            raise self._checks.damaged(f"tensor {name!r} has values of another one")
        numpy_dtype = self._checks.dtype(name, dtype)
        values = _numbers(getattr(data.data, _FIELDS[dtype]), numpy_dtype, dtype)
        if values is None or len(values) != math.prod(part.shape):
            raise self._checks.damaged(f"tensor {name!r} lacks some of its values")
        return values.reshape(part.shape)

    def close(self) -> None:
        """Closes the file."""
        self._table.close()


def _numbers(field: Any, dtype: np.dtype, name: str) -> np.ndarray | None:
    """The values of a field as an array, or None if they are not of the dtype."""
    if name in _OF_BITS:
        bits = _numbers(field, np.dtype("uint16"), "uint16")
        return None if bits is None else bits.view(dtype)
    if dtype.kind == "c":
        if len(field) % 2:
            return None
        part = np.dtype(f"f{dtype.itemsize // 2}")
        return np.fromiter(field, part, len(field)).view(dtype)
    if dtype.itemsize < 4 and dtype.kind in "iu":
        wide = np.fromiter(field, np.int32, len(field))
        values = wide.astype(dtype)
        return values if np.array_equal(values, wide) else None
    return np.fromiter(field, dtype, len(field))
