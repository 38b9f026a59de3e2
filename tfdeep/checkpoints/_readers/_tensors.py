"""The tensors of a file, before their values are read: names, shapes and dtypes."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np

_NARROW = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz"),
    )
}
_NUMPY = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "float16", "float32", "float64", "complex64", "complex128"),
)


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
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


def path_of(name: str) -> str:
    """A name as a path: PyTorch has dots between components.

    >>> path_of("layer1.0.conv1.weight")
    'layer1/0/conv1/weight'
    """
    return name.replace(".", "/")


def known_dtype(name: str) -> np.dtype | None:
    """The NumPy dtype of this name, if weights can have it."""
    return _NARROW.get(name) or (np.dtype(name) if name in _NUMPY else None)


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype that Keras calls by this name."""
    return known_dtype(name) or np.dtype(name)


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype holds floating point numbers, narrow ones included."""
    return bool(dtype.kind == "f" or dtype.name in _NARROW)
