"""Readers for the files that Keras 3 writes: `.weights.h5`, its shards, and `.keras`.

Keras addresses layers by class and position (`layers/dense_1/vars/0`), and keeps the
layer's name only as an attribute. These readers name each tensor by its layers'
names, and by its number within the layer: `hidden2/0`. Where two layers have the same
names, the place in the file is the name of both, as no other would be certain.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import threading
from typing import Any

import numpy as np

from tfdeep._core._explain import listing
from tfdeep.checkpoints._readers._checks import Checks, Limits
from tfdeep.checkpoints._readers._hdf5 import Dataset, Listing, Window, list_file
from tfdeep.checkpoints._readers._keras_legacy import LegacyKerasReader, is_legacy
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._tensors import TensorInfo
from tfdeep.checkpoints._readers._zip import Archive
from tfdeep.errors import UnknownFormatError


def open_hdf5(source: str, limits: Limits | None = None) -> Reader:
    """The reader for an HDF5 file of Keras 1, 2 or 3, by what the file holds."""
    limits = limits or Limits()
    found = list_file(Checks(source, "HDF5 file of Keras (.h5)", limits))
    reader = LegacyKerasReader if is_legacy(found) else KerasWeightsReader
    return reader(source, limits, found)


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
        self._set([found or list_file(self._checks)])

    def _set(self, listings: list[Listing]) -> None:
        """Names what one or more files hold together."""
        for found in listings:
            if is_legacy(found):
                raise self._checks.unknown(
                    "This is an HDF5 file of Keras 1 or 2.",
                    f"an attribute 'layer_names' in {found.checks.source!r}",
                    "a file that Keras 3 wrote",
                    "`tfdeep.checkpoints.open` finds its reader",
                )
        self._where = {path: found for found in listings for path in found.datasets}
        infos = _unique(_Tree(self._checks, listings).infos())
        crc = [self._crc(info) for info in infos]
        self._set_integrity(bool(crc) and None not in crc)
        size = sum(found.window.size for found in listings)
        self._accept(infos, size, max(found.expansion for found in listings))

    def _crc(self, info: TensorInfo) -> int | None:
        return self._where[info.location].datasets[info.location].crc

    def read(self, name: str) -> np.ndarray:
        info = self.info(name)
        values = self._where[info.location].read(info.location)
        crc = self._crc(info)
        if crc is not None:
            self._check_crc(name, values, crc)
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
        self._archive = Archive(self._checks)
        self._is_checked = False
        self._checking = threading.Lock()
        with self.closed_on_error():
            member = self._archive.members.get(self._MEMBER)
            if member is None:
                raise self._without_weights()
            if member.is_compressed:
                raise self._checks.unsafe(
                    "This archive is packed in a way that Keras does not use.",
                    f"{self._MEMBER!r} is compressed",
                    "stored members",
                )
            self._set([list_file(self._checks, Window(member.offset, member.size))])
            if member.crc is not None:
                self._set_integrity(True)

    def _without_weights(self) -> UnknownFormatError:
        fix = "pass the file of weights itself"
        if "model.weights.npz" in self._archive.members:
            fix = (
                "unpack 'model.weights.npz' and pass that, or load the model with "
                "Keras and save it where h5py is installed"
            )
        return self._checks.unknown(
            "This archive is not a Keras model.",
            f"members {listing(map(repr, self._archive.members))}, without one "
            f"{self._MEMBER!r}",
            "a `.keras` file as `model.save` writes it",
            fix,
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
    """Reads the files that a `.weights.json` of Keras 3 lists, as one."""

    format = "sharded Keras weights (.weights.json)"

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        Reader.__init__(self, source, limits)
        shards = self._shards()
        self._checks.count("members", len(shards))
        listings = [list_file(self._beside(shard)) for shard in shards]
        for shard, found in zip(shards, listings, strict=True):
            inside = {path.rpartition("/")[0] for path in found.datasets}
            unlike = inside.symmetric_difference(shards[shard])
            if unlike:
                reason = f"{shard!r} and the list differ in {listing(sorted(unlike))}"
                raise self._checks.damaged(reason)
        self._set(listings)

    def _beside(self, shard: str) -> Checks:
        path = os.path.join(os.path.dirname(self.source), shard)
        if not os.path.isfile(path):
            reason = f"the file {shard!r} that it names is not there"
            raise self._checks.damaged(reason)
        return dataclasses.replace(self._checks, source=path)

    def _shards(self) -> dict[str, set[str]]:
        """The groups that each file holds, by the file's name."""
        shards: dict[str, set[str]] = {}
        for group, names in self._json("weight_map").items():
            for name in names if isinstance(names, list) else [names]:
                shards.setdefault(self._bare(name), set()).add(group.strip("/"))
        if not shards:
            raise self._checks.damaged("it names no files")
        return shards

    def _bare(self, name: Any) -> str:
        is_bare = isinstance(name, str) and re.fullmatch(r"(?!\.)[^/\\:\0]+\.h5", name)
        if not is_bare:
            raise self._checks.unsafe(
                "This file names another one that is not beside it.",
                repr(name),
                "names of `.weights.h5` files in the same directory",
            )
        return str(name)


class _Tree:
    """The groups of one or more files that Keras 3 wrote, walked from the root."""

    def __init__(self, checks: Checks, listings: list[Listing]) -> None:
        self._checks = checks
        self._children: dict[str, list[str]] = collections.defaultdict(list)
        self._names: dict[str, str] = {}
        self._groups: set[str] = set()
        self._datasets: dict[str, Dataset] = {}
        for found in listings:
            for path, attributes in found.groups.items():
                self._add_group(path, attributes["name"])
            for path, dataset in found.datasets.items():
                if path in self._datasets or path in self._groups:
                    raise checks.damaged(f"{path!r} is there twice")
                self._datasets[path] = dataset
                self._children[_parent(path)].append(path)

    def _add_group(self, path: str, name: str | None) -> None:
        if name is not None and self._names.setdefault(path, name) != name:
            reason = f"{path!r} has two names, {self._names[path]!r} and {name!r}"
            raise self._checks.damaged(reason)
        if path and path not in self._groups:
            self._children[_parent(path)].append(path)
        self._groups.add(path)

    def infos(self) -> list[TensorInfo]:
        """The tensors of all layers."""
        found: list[TensorInfo] = []
        self._walk("", (), None, found)
        outside = self._datasets.keys() - {info.location for info in found}
        if outside:
            raise self._checks.unknown(
                "This HDF5 file is not one that Keras writes.",
                f"values in {listing(sorted(outside))}",
                "values in groups called 'vars' (Keras 3), or groups listed in an "
                "attribute 'layer_names' (Keras 1 and 2)",
                "convert it to `.npz` or safetensors",
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
            inner_class = None
            if child == "optimizer":  # Keras keeps its name, which says the class
                inner_class = _uncounted(self._names.get(inner, "")) or None
            elif not is_layer and group != "":
                inner_class = _uncounted(child.rpartition("/")[2])
            self._walk(child, (*names, self._layer_name(child)), inner_class, found)

    def _layer_name(self, group: str) -> str:
        variables = _inner(group, "vars")
        if group == "optimizer":
            return "optimizer"
        if variables in self._names:
            return self._names[variables]
        if not self._children[variables]:
            return group.rpartition("/")[2]
        raise self._checks.unknown(
            "This file keeps no names of its layers: a Keras older than 3.6 wrote it, "
            "and it can only be read by position.",
            f"{variables} has no name",
            "a file that Keras 3.6 or later wrote",
            "load it with Keras into the model that made it and save it again",
        )

    def _layer_variables(
        self, group: str, names: tuple[str, ...], layer_class: str | None
    ) -> list[TensorInfo]:
        paths = sorted(self._children[group], key=_by_number)
        for path in paths:
            if path in self._groups:
                reason = f"{path!r} is something other than values"
                raise self._checks.damaged(reason)
        return [
            dataclasses.replace(
                self._datasets[path].info,
                name="/".join((*names, path.rpartition("/")[2])),
                layer_class=layer_class,
                layer_variables=len(paths),
            )
            for path in paths
        ]


def _unique(infos: list[TensorInfo]) -> list[TensorInfo]:
    """Replaces names that several tensors share by their places in the file."""
    count = collections.Counter(info.name for info in infos)
    return [
        info if count[info.name] == 1 else dataclasses.replace(info, name=info.location)
        for info in infos
    ]


def _uncounted(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _inner(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _by_number(path: str) -> tuple[bool, str]:
    key = path.rpartition("/")[2]
    return not key.isdigit(), key.zfill(8)
