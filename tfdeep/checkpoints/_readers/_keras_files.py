"""Readers for the files that Keras 3 writes: `.weights.h5`, its shards, and `.keras`.

Keras addresses layers by class and position (`layers/dense_1/vars/0`), and keeps the
layer's name only as an attribute. These readers name each tensor by its layers'
names, and by its number within the layer: `hidden2/0`. Where two layers have the same
names, the place in the file is the name of both, as no other would be certain.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdeep._core._explain import explain, listing
from tfdeep.checkpoints._readers._hdf5 import Listing, Window, list_file, read_dataset
from tfdeep.checkpoints._readers._keras_legacy import LegacyKerasReader, is_legacy
from tfdeep.checkpoints._readers._limits import Limits
from tfdeep.checkpoints._readers._reader import Reader, TensorInfo, corrupt
from tfdeep.checkpoints._readers._safetensors import unique_keys
from tfdeep.checkpoints._readers._zip import Archive
from tfdeep.errors import UnknownFormatError, UnsafeFileError


def open_hdf5(source: str, limits: Limits | None = None) -> Reader:
    """The reader for an HDF5 file of Keras 1, 2 or 3, by what the file holds."""
    limits = limits or Limits()
    found = list_file(source, limits, "HDF5 file of Keras (.h5)")
    if is_legacy(found):
        return LegacyKerasReader(source, limits, found)
    return KerasWeightsReader(source, limits, found)


class KerasWeightsReader(Reader):
    """Reads a Keras 3 `.weights.h5` file.

    HDF5 keeps no checksum of the values, so they are unverified, unless
    `tfdeep.save_subset` wrote the file: it adds one to each tensor.

    Args:
        source: The file.
        limits: The most that it may declare.
        found: Its listing, if there is one already.
    """

    format = "Keras weights (.weights.h5)"

    def __init__(
        self, source: str, limits: Limits | None = None, found: Listing | None = None
    ) -> None:
        super().__init__(source, limits)
        found = found or list_file(source, self.limits, self.format)
        self._set([found])

    def _set(self, listings: list[Listing]) -> None:
        """Names what one or more files hold together."""
        for found in listings:
            if is_legacy(found):
                raise UnknownFormatError(
                    explain(
                        "This is an HDF5 file of Keras 1 or 2.",
                        received=repr(found.source),
                        expected="a file that Keras 3 wrote",
                        fix="`tfdeep.checkpoints.open` finds its reader; nothing was "
                        "changed",
                    )
                )
        self._where = {path: found for found in listings for path in found.datasets}
        tree = _Tree(self.source, self.format, listings)
        infos = _unique(tree.infos())
        crc = {
            info.name: self._where[info.location].datasets[info.location].crc
            for info in infos
        }
        self._crc = crc
        is_checked = bool(crc) and None not in crc.values()
        self.integrity = "verified" if is_checked else "unverified"
        size = sum(found.window.size for found in listings)
        self._accept(infos, size, max(found.expansion for found in listings))

    def read(self, name: str) -> np.ndarray:
        path = self.info(name).location
        values = read_dataset(self._where[path], path, self.limits)
        if self._crc[name] is not None:
            self.check_crc(name, values, self._crc[name])
        return values


class KerasArchiveReader(KerasWeightsReader):
    """Reads the weights of a `.keras` file; its configuration is never looked at.

    The zip archive carries a CRC of the weights, which is checked before they are
    used.
    """

    format = "Keras model (.keras)"

    _MEMBER = "model.weights.h5"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        Reader.__init__(self, source, limits)
        self._archive = Archive(source, self.format, self.limits)
        self._is_checked = False
        self._checking = threading.Lock()
        with self.closed_on_error():
            member = self._archive.members.get(self._MEMBER)
            if member is None:
                raise self._without_weights()
            if member.is_compressed:
                raise UnsafeFileError(
                    explain(
                        "This archive is packed in a way that Keras does not use.",
                        received=f"{source!r}: {self._MEMBER!r} is compressed",
                        expected="stored members",
                        fix="do not use this file; nothing was changed",
                    )
                )
            window = Window(member.offset, member.size)
            self._set([list_file(source, self.limits, self.format, window)])
            if member.crc is not None:
                self.integrity = "verified"

    def _without_weights(self) -> UnknownFormatError:
        names = listing(map(repr, self._archive.members))
        fix = "pass the file of weights itself"
        if "model.weights.npz" in self._archive.members:
            fix = (
                "unpack 'model.weights.npz' and pass that, or load the model with "
                "Keras and save it where h5py is installed"
            )
        return UnknownFormatError(
            explain(
                "This archive is no Keras model.",
                received=f"{self.source!r} without one {self._MEMBER!r}: {names}",
                expected="a file that `model.save('model.keras')` wrote",
                fix=f"{fix}; nothing was changed",
            )
        )

    def read(self, name: str) -> np.ndarray:
        with self._checking:
            if not self._is_checked:
                self._archive.check(self._MEMBER)
                self._is_checked = True
        return super().read(name)

    def close(self) -> None:
        self._archive.close()


class ShardedKerasReader(KerasWeightsReader):
    """Reads weights that Keras spread over several files, by their `.weights.json`.

    The JSON file says which of the `.weights.h5` files beside it holds which layer.
    """

    format = "sharded Keras weights (.weights.json)"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        Reader.__init__(self, source, limits)
        shards = self._shards()
        self.limits.check_count(source, "members", len(shards))
        directory = os.path.dirname(source)
        listings = []
        for shard in shards:
            path = os.path.join(directory, shard)
            if not os.path.isfile(path):
                reason = f"the file {shard!r} that it names is not there"
                raise corrupt(source, self.format, reason)
            listings.append(list_file(path, self.limits, self.format))
        for shard, found in zip(shards, listings, strict=True):
            inside = {path.rpartition("/")[0] for path in found.datasets}
            unlike = inside.symmetric_difference(shards[shard])
            if unlike:
                reason = f"{shard!r} and the list differ in {listing(sorted(unlike))}"
                raise corrupt(source, self.format, reason)
        self._set(listings)

    def _shards(self) -> dict[str, set[str]]:
        """The groups that each file holds, by the file's name."""
        self.limits.check_count(
            self.source, "header_bytes", os.path.getsize(self.source)
        )
        try:
            with open(self.source, "rb") as file:
                content = json.load(file, object_pairs_hook=unique_keys)
            groups = dict(content["weight_map"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise corrupt(self.source, self.format, error) from error
        shards: dict[str, set[str]] = {}
        for group, names in groups.items():
            names = names if isinstance(names, list) else [names]
            for name in names:
                shards.setdefault(self._bare(name), set()).add(group.strip("/"))
        if not shards:
            raise corrupt(self.source, self.format, "it names no files")
        return shards

    def _bare(self, name: Any) -> str:
        is_bare = isinstance(name, str) and re.fullmatch(r"(?!\.)[^/\\:\0]+\.h5", name)
        if not is_bare:
            raise UnsafeFileError(
                explain(
                    "This file names another one that is not beside it.",
                    received=f"{self.source!r}: {name!r}",
                    expected="names of `.weights.h5` files in the same directory",
                    fix="do not use this file; nothing was changed",
                )
            )
        return str(name)


class _Tree:
    """The groups of one or more files that Keras 3 wrote, walked from the root."""

    def __init__(self, source: str, kind: str, listings: list[Listing]) -> None:
        self._source, self._kind = source, kind
        self._children: dict[str, list[str]] = collections.defaultdict(list)
        self._names: dict[str, str] = {}
        self._groups: set[str] = set()
        self._datasets: dict[str, Any] = {}
        for found in listings:
            self._add_groups(found.groups)
            for path, dataset in found.datasets.items():
                if path in self._datasets or path in self._groups:
                    raise corrupt(source, kind, f"{path!r} is there twice")
                self._datasets[path] = dataset
                self._children[_parent(path)].append(path)

    def _add_groups(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        for path, attributes in groups.items():
            name = attributes["name"]
            if name is not None and self._names.setdefault(path, name) != name:
                reason = f"{path!r} has two names, {self._names[path]!r} and {name!r}"
                raise corrupt(self._source, self._kind, reason)
            if path and path not in self._groups:
                self._children[_parent(path)].append(path)
            self._groups.add(path)

    def infos(self) -> list[TensorInfo]:
        """The tensors of all layers."""
        found: list[TensorInfo] = []
        self._walk("", (), None, found)
        outside = self._datasets.keys() - {info.location for info in found}
        if outside:
            raise UnknownFormatError(
                explain(
                    "This HDF5 file is none that Keras writes.",
                    received=f"{self._source!r} with {listing(sorted(outside))}",
                    expected="values in groups called 'vars' (Keras 3), or groups "
                    "listed in an attribute 'layer_names' (Keras 1 and 2)",
                    fix="convert it to `.npz` or safetensors; nothing was changed",
                )
            )
        return found

    def _walk(
        self,
        group: str,
        names: tuple[str, ...],
        layer_class: str | None,
        found: list[TensorInfo],
    ) -> None:
        variables = _inner(group, "vars")
        is_layer = variables in self._groups
        if is_layer:
            found += self._layer_variables(variables, names, layer_class)
        for child in self._children[group]:
            if child == variables or child not in self._groups:
                continue
            inner = _inner(child, "vars")
            if inner not in self._groups:
                # A list of layers, such as `layers`: its entries carry class names.
                self._walk(child, names, None, found)
                continue
            name = self._layer_name(child)
            is_entry = not is_layer and group != ""
            last = child.rpartition("/")[2]
            inner_class = re.sub(r"_\d+$", "", last) if is_entry else None
            if child == "optimizer":  # Keras keeps its name, which says the class
                inner_class = re.sub(r"_\d+$", "", self._names.get(inner, "")) or None
            self._walk(child, (*names, name), inner_class, found)

    def _layer_name(self, group: str) -> str:
        if group == "optimizer":
            return "optimizer"
        variables = _inner(group, "vars")
        if variables in self._names:
            return self._names[variables]
        if not self._children[variables]:
            return group.rpartition("/")[2]
        raise UnknownFormatError(
            explain(
                "This file keeps no names of its layers: a Keras older than 3.6 wrote "
                "it, and it can only be read by position.",
                received=f"{self._source!r}: {variables} has no name",
                expected="a file that Keras 3.6 or later wrote",
                fix="load it with Keras into the model that made it and save it again; "
                "nothing was changed",
            )
        )

    def _layer_variables(
        self, group: str, names: tuple[str, ...], layer_class: str | None
    ) -> list[TensorInfo]:
        paths = sorted(self._children[group], key=_by_number)
        for path in paths:
            if path in self._groups:
                reason = f"{path!r} is something else than values"
                raise corrupt(self._source, self._kind, reason)
        return [
            TensorInfo(
                name="/".join((*names, path.rpartition("/")[2])),
                shape=self._datasets[path].shape,
                dtype=self._datasets[path].dtype,
                location=path,
                layer_class=layer_class,
                layer_variables=len(paths),
            )
            for path in paths
        ]


def _unique(infos: list[TensorInfo]) -> list[TensorInfo]:
    """Where several have the same name, none of them gets it."""
    count = collections.Counter(info.name for info in infos)
    return [
        info if count[info.name] == 1 else dataclasses.replace(info, name=info.location)
        for info in infos
    ]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _inner(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _by_number(path: str) -> tuple[bool, str]:
    key = path.rpartition("/")[2]
    return not key.isdigit(), key.zfill(8)
