"""Readers for the two files that Keras 3 writes: `.weights.h5` and `.keras`.

Keras addresses layers by class and position (`layers/dense_1/vars/0`), and keeps the
layer's name only as an attribute. These readers name each tensor by its layers'
names, and by its number within the layer: `hidden2/0`.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain
from tfdeep.checkpoints._reader import Reader, TensorInfo, corrupt
from tfdeep.errors import CheckpointError, UnknownFormatError, UnsafeFileError

_DEEPEST = 64


class KerasWeightsReader(Reader):
    """Reads a Keras 3 `.weights.h5` file.

    HDF5 keeps no checksum of the values, so they are unverified.
    """

    format = "Keras weights (.weights.h5)"
    integrity = "unverified"

    def __init__(self, source: str, content: io.BytesIO | None = None) -> None:
        super().__init__(source)
        try:
            self._file = h5py.File(content or source, "r")
        except OSError as error:
            raise corrupt(source, self.format, error) from error
        try:
            self.variables = self._list()
        except CheckpointError:
            self.close()
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            self.close()
            raise corrupt(source, self.format, error) from error

    def _list(self) -> list[TensorInfo]:
        if "layer_names" in self._file.attrs:
            raise UnknownFormatError(
                explain(
                    "This is an HDF5 file of Keras 1 or 2.",
                    received=repr(self.source),
                    expected="a file that Keras 3 wrote",
                    fix="load it in the Keras that wrote it and save it with "
                    "`tf.train.Checkpoint(model).write(path)`; nothing was changed",
                )
            )
        found: list[TensorInfo] = []
        self._walk(self._file, (), None, 0, found)
        return found

    def _walk(
        self,
        group: Any,
        names: tuple[str, ...],
        layer_class: str | None,
        depth: int,
        found: list[TensorInfo],
    ) -> None:
        if depth > _DEEPEST:
            raise self._unsafe(group.name, "groups nested too deep")
        children = list(group)
        for child in children:
            if group.get(child, getlink=True).__class__ is not h5py.HardLink:
                raise self._unsafe(f"{group.name}/{child}", "a link to another place")
        if "vars" in children:
            found += self._layer_variables(group["vars"], names, layer_class)
        for child in children:
            inner = group[child]
            if child == "vars" or not isinstance(inner, h5py.Group):
                continue
            if "vars" not in inner:
                # A list of layers, such as `layers`: its entries carry class names.
                self._walk(inner, names, None, depth + 1, found)
                continue
            name = self._layer_name(inner["vars"], child)
            is_entry = "vars" not in children and group.name != "/"
            inner_class = re.sub(r"_\d+$", "", child) if is_entry else None
            self._walk(inner, (*names, name), inner_class, depth + 1, found)

    def _layer_name(self, variables: Any, child: str) -> str:
        if variables.parent.name == "/optimizer":
            return "optimizer"
        name = variables.attrs.get("name")
        if isinstance(name, str):
            return name
        if len(variables) == 0:
            return child
        raise UnknownFormatError(
            explain(
                "This file keeps no names of its layers: a Keras older than 3.6 wrote "
                "it, and it can only be read by position.",
                received=f"{self.source!r}: {variables.name} has no name",
                expected="a file that Keras 3.6 or later wrote",
                fix="load it with Keras into the model that made it and save it again; "
                "nothing was changed",
            )
        )

    def _layer_variables(
        self, group: Any, names: tuple[str, ...], layer_class: str | None
    ) -> list[TensorInfo]:
        keys = sorted(group, key=lambda key: (not key.isdigit(), key.zfill(8)))
        infos = []
        for key in keys:
            dataset = group[key]
            if not isinstance(dataset, h5py.Dataset):
                raise self._unsafe(f"{group.name}/{key}", "something else than values")
            if dataset.external or dataset.is_virtual:
                raise self._unsafe(dataset.name, "values kept in another file")
            infos.append(
                TensorInfo(
                    name="/".join((*names, key)),
                    shape=tuple(int(n) for n in dataset.shape),
                    dtype=str(dataset.attrs.get("dtype", dataset.dtype.name)),
                    location=dataset.name.lstrip("/"),
                    layer_class=layer_class,
                    layer_variables=len(keys),
                )
            )
        return infos

    def _unsafe(self, place: str, reason: str) -> UnsafeFileError:
        return UnsafeFileError(
            explain(
                "This file asks to be read in a way that no file Keras writes does.",
                received=f"{self.source!r}: {reason} at {place!r}",
                expected="groups and plain values within the file",
                fix="do not use this file; nothing was changed",
            )
        )

    def read(self, name: str) -> np.ndarray:
        info = self.info(name)
        try:
            values = np.asarray(self._file[info.location][()])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise corrupt(self.source, self.format, error) from error
        if info.dtype == "bfloat16":
            values = values.view(tf.bfloat16.as_numpy_dtype)
        return values

    def close(self) -> None:
        self._file.close()


class KerasArchiveReader(KerasWeightsReader):
    """Reads the weights of a `.keras` file; its configuration is never looked at.

    The zip archive carries a CRC of the weights, which is checked before they are
    used.
    """

    format = "Keras model (.keras)"
    integrity = "verified"

    _MEMBER = "model.weights.h5"

    def __init__(self, source: str) -> None:
        try:
            with zipfile.ZipFile(source) as archive:
                if archive.namelist().count(self._MEMBER) != 1:
                    raise UnknownFormatError(
                        explain(
                            "This archive is no Keras model.",
                            received=f"{source!r} without one {self._MEMBER!r}",
                            expected="a file that `model.save('model.keras')` wrote",
                            fix="pass the file of weights itself; nothing was changed",
                        )
                    )
                member = archive.getinfo(self._MEMBER)
                if member.compress_type != zipfile.ZIP_STORED:
                    raise UnsafeFileError(
                        explain(
                            "This archive is packed in a way that Keras does not use.",
                            received=f"{source!r}: {self._MEMBER!r} is compressed",
                            expected="stored members",
                            fix="do not use this file; nothing was changed",
                        )
                    )
                content = io.BytesIO(archive.read(self._MEMBER))
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
            raise corrupt(source, self.format, error) from error
        super().__init__(source, content)
