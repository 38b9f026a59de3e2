"""Reader for the HDF5 files of Keras 1 and 2, and of Keras 3 with `.h5`.

A group for each layer of the model carries the layer's name, and lists the names of
its weights as the program called them. Layers of the model Keras 3 builds are found by
these names, so they are brought into its form, with the layer's name in front:

| layer's group | weight in the file               | name                           |
|---------------|----------------------------------|--------------------------------|
| `hidden1`     | `hidden1/kernel:0`               | `hidden1/kernel`               |
| `hidden1`     | `dnn/hidden1/kernel:0`           | `hidden1/kernel`               |
| `hidden1`     | `dense_3/kernel:0`               | `hidden1/kernel`               |
| `encoder`     | `dense/kernel:0`, `conv/bias:0`  | `encoder/dense/kernel`, ...    |
| `lstm`        | `lstm/lstm_cell_2/kernel:0`      | `lstm/lstm_cell/kernel`        |
| `block1`      | `block1_W_1:0` (Keras 1)         | `block1/kernel`                |
| `depthwise`   | `depthwise/depthwise_kernel:0`   | `depthwise/kernel`             |

1. `:0` is dropped, and the number of a recurrent layer's cell, which Keras 3 does not
   count.
2. What stands in front of the layer's name is dropped: the scope of the model.
3. A weight without the layer's name gets it in front: it belongs to a model within the
   model. But if all weights of the layer begin with one and the same other name, that
   name is replaced: the layer was renamed after it was built. (A model with a single
   layer within a model looks the same; `rename` helps there.)
4. The kernel of a depthwise convolution, where no pointwise one follows it, is called
   as any other in Keras 3.
5. If this would give two weights of a layer one name, they keep their whole names
   behind the layer's.

Weights of the model itself, outside its layers, keep their names. Those of the
optimizer get `optimizer/` in front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdeep.checkpoints._readers._hdf5 import Dataset, Listing, list_file, read_dataset
from tfdeep.checkpoints._readers._limits import Limits
from tfdeep.checkpoints._readers._reader import Reader, TensorInfo, corrupt

_ROOTS = ("", "model_weights")
_TOP_LEVEL = "top_level_model_weights"
_OPTIMIZER = "optimizer_weights"
_CELL = re.compile(r"((?:lstm|gru|simple_rnn)_cell)_\d+$")
_KERAS_1 = {
    **{"W": "kernel", "b": "bias", "gamma": "gamma", "beta": "beta"},
    # It held the variance, whatever its name.
    **{"running_mean": "moving_mean", "running_std": "moving_variance"},
}


class LegacyKerasReader(Reader):
    """Reads a `.h5` file of Keras 1 or 2, of weights or of a whole model.

    The configuration of the model in it is never read. HDF5 keeps no checksum of the
    values, so they are unverified.

    Args:
        source: The file.
        limits: The most that it may declare.
        found: Its listing, if there is one already.
    """

    format = "Keras 1/2 HDF5 (.h5)"
    integrity = "unverified"

    def __init__(
        self, source: str, limits: Limits | None = None, found: Listing | None = None
    ) -> None:
        super().__init__(source, limits)
        self._found = found or list_file(source, self.limits, self.format)
        root = _root(self._found)
        if root is None:
            reason = "it has no attribute 'layer_names'"
            raise corrupt(source, self.format, reason)
        infos = []
        for layer in self._found.groups[root]["layer_names"]:
            weights = self._weights(_inner(root, layer), is_required=True)
            infos += _infos(weights, _names(layer, list(weights)))
        top_level = self._weights(_inner(root, _TOP_LEVEL))
        infos += _infos(top_level, [_plain(name) for name in top_level])
        optimizer = self._weights(_OPTIMIZER)
        infos += _infos(optimizer, [f"optimizer/{_plain(name)}" for name in optimizer])
        self._accept(infos, self._found.window.size, self._found.expansion)

    def _weights(self, group: str, is_required: bool = False) -> dict[str, Dataset]:
        """The arrays of a group by their names in the file."""
        if group not in self._found.groups:
            if is_required:
                raise corrupt(self.source, self.format, f"{group!r} is not there")
            return {}
        weights = {}
        for name in self._found.groups[group]["weight_names"] or ():
            path = _inner(group, name)
            if path not in self._found.datasets or name in weights:
                reason = f"{path!r} is not there, or listed twice"
                raise corrupt(self.source, self.format, reason)
            weights[name] = self._found.datasets[path]
        return weights

    def read(self, name: str) -> np.ndarray:
        return read_dataset(self._found, self.info(name).location, self.limits)


def is_legacy(found: Listing) -> bool:
    """Whether a listed file is one of Keras 1 or 2, and not of Keras 3."""
    return _root(found) is not None


def _root(found: Listing) -> str | None:
    """The group that lists the layers."""
    groups: Mapping[str, Mapping[str, Any]] = found.groups
    for root in _ROOTS:
        if root in groups and groups[root]["layer_names"] is not None:
            return root
    return None


def _names(layer: str, weights: Sequence[str]) -> list[str]:
    """The names of a layer's weights; the module says by which rule."""
    plain = [_plain(name) for name in weights]
    below = [_below(layer, name) for name in plain]
    if all(name is None for name in below):
        first = {name.partition("/")[0] for name in plain}
        is_renamed = len(first) == 1 and all("/" in name for name in plain)
        below = [name.partition("/")[2] if is_renamed else name for name in plain]
    names = [
        f"{layer}/{whole if rest is None else rest}"
        for whole, rest in zip(plain, below, strict=True)
    ]
    names = [_as_in_keras_3(name, names) for name in names]
    if len(set(names)) < len(names):
        return [f"{layer}/{name}" for name in plain]
    return names


def _as_in_keras_3(name: str, names: Sequence[str]) -> str:
    place, _, last = name.rpartition("/")
    is_alone = f"{place}/pointwise_kernel" not in names
    return f"{place}/kernel" if last == "depthwise_kernel" and is_alone else name


def _plain(name: str) -> str:
    components = name.strip("/").removesuffix(":0").split("/")
    return "/".join(_CELL.sub(r"\1", component) for component in components)


def _below(layer: str, name: str) -> str | None:
    """What follows the layer's name in a weight's name; None if it is not in it."""
    if f"/{layer}/" in f"/{name}":
        return f"/{name}".partition(f"/{layer}/")[2]
    old = re.fullmatch(rf"{re.escape(layer)}_(.+?)(?:_\d+)?", name)
    if old and old[1] in _KERAS_1:
        return _KERAS_1[old[1]]
    return None


def _infos(weights: Mapping[str, Dataset], names: Sequence[str]) -> list[TensorInfo]:
    return [
        TensorInfo(name, dataset.shape, dataset.dtype, dataset.path)
        for name, dataset in zip(names, weights.values(), strict=True)
    ]


def _inner(group: str, name: str) -> str:
    return f"{group}/{name.strip('/')}" if group else name.strip("/")
