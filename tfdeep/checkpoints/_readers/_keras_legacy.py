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
2. Anything in front of the layer's name is dropped: the scope of the model.
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

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.checkpoints._readers._hdf5 import Listing, list_file
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._tensors import TensorInfo

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
        self._found = found or list_file(self._checks)
        root = _root(self._found)
        if root is None:
            raise self._checks.damaged("it has no attribute 'layer_names'")
        infos = []
        for layer in self._found.groups[root]["layer_names"]:
            group = _inner(root, layer)
            if group not in self._found.groups:
                raise self._checks.damaged(f"{group!r} is not there")
            weights = self._weights(group)
            names = _names(layer, [info.name for info in weights])
            infos += [
                dataclasses.replace(info, name=name)
                for info, name in zip(weights, names, strict=True)
            ]
        others = ((_inner(root, _TOP_LEVEL), ""), (_OPTIMIZER, "optimizer/"))
        for group, prefix in others:
            infos += [
                dataclasses.replace(info, name=prefix + _plain(info.name))
                for info in self._weights(group)
            ]
        self._accept(infos, self._found.window.size, self._found.expansion)

    def _weights(self, group: str) -> list[TensorInfo]:
        """The arrays of a group under the names that it lists; none without it."""
        weights: dict[str, TensorInfo] = {}
        attributes = self._found.groups.get(group, {})
        for name in attributes.get("weight_names") or ():
            path = _inner(group, name)
            if path not in self._found.datasets or name in weights:
                reason = f"{path!r} is not there, or listed twice"
                raise self._checks.damaged(reason)
            info = self._found.datasets[path].info
            weights[name] = dataclasses.replace(info, name=name)
        return list(weights.values())

    def read(self, name: str) -> np.ndarray:
        return self._found.read(self.info(name).location)


def is_legacy(found: Listing) -> bool:
    """Whether a listed file is one of Keras 1 or 2, and not of Keras 3."""
    return _root(found) is not None


def _root(found: Listing) -> str | None:
    """The group that lists the layers."""
    for root in _ROOTS:
        if found.groups.get(root, {}).get("layer_names") is not None:
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


def _inner(group: str, name: str) -> str:
    return f"{group}/{name.strip('/')}" if group else name.strip("/")
