"""Reader for TensorFlow checkpoints: TF1 `Saver`, TF2 objects, SavedModel variables."""

from __future__ import annotations

import collections
import os

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tfdeep.checkpoints._reader import Reader, TensorInfo, corrupt

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_REPEATED = "_all_variables/"
_TABLE_END = 0xDB4775248B80FB57.to_bytes(8, "little")


class TFCheckpointReader(Reader):
    """Reads a TensorFlow checkpoint by the names its variables had.

    A TF1 `Saver` stores values under the variables' names. An object-based
    checkpoint stores them under the attributes that led to them, and keeps the
    variables' names in a graph of objects beside them; that graph is data and is read
    here, no object is made from it.

    TensorFlow checks a CRC of every tensor it reads.
    """

    format = "TensorFlow checkpoint"
    integrity = "verified"

    def __init__(self, source: str, prefix: str) -> None:
        super().__init__(source)
        self._prefix = prefix
        try:
            self._reader = tf.train.load_checkpoint(prefix)
            shapes = self._reader.get_variable_to_shape_map()
            dtypes = self._reader.get_variable_to_dtype_map()
            names = self._variable_names(list(shapes))
        except (*_READ_ERRORS, UnicodeDecodeError) as error:
            raise corrupt(source, self.format, _first_line(error)) from error
        self.variables = [
            TensorInfo(
                name=names[key],
                shape=tuple(shapes[key]),
                dtype=dtypes[key].name,
                location=key,
            )
            for key in sorted(names, key=names.__getitem__)
        ]

    def _variable_names(self, keys: list[str]) -> dict[str, str]:
        """The name of each stored variable, by its key in the checkpoint."""
        if _OBJECT_GRAPH not in keys:
            return {key: key for key in keys}
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.ParseFromString(self._reader.get_tensor(_OBJECT_GRAPH))
        full_names = {
            attribute.checkpoint_key: attribute.full_name
            for node in graph.nodes
            for attribute in node.attributes
            if attribute.full_name
        }
        names = {
            key: full_names.get(key, _attributes(key))
            for key in keys
            if key != _OBJECT_GRAPH
        }
        # Keras' `model.export` stores each variable twice, once in a list of its own.
        once = {name for key, name in names.items() if not key.startswith(_REPEATED)}
        names = {
            key: name
            for key, name in names.items()
            if not (key.startswith(_REPEATED) and name in once)
        }
        # Keras names the variables of a subclassed model without their layers, and two
        # objects may hold variables of one name. The attributes that lead to them,
        # `model/hidden1/_kernel`, tell them apart.
        count = collections.Counter(names.values())
        return {
            key: name if count[name] == 1 else _attributes(key)
            for key, name in names.items()
        }

    def read(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self._reader.get_tensor(self.info(name).location))
        except _READ_ERRORS as error:
            raise corrupt(self.source, self.format, _first_line(error)) from error


def _is_table(path: str) -> bool:
    """Whether a file ends as TensorFlow's sorted tables do, and with them V1 files."""
    if os.path.getsize(path) < len(_TABLE_END):
        return False
    with open(path, "rb") as file:
        file.seek(-len(_TABLE_END), os.SEEK_END)
        return file.read() == _TABLE_END


def _attributes(key: str) -> str:
    return key.removesuffix(_VALUE).replace("/_", "/")


def checkpoint_prefix(source: str) -> str | None:
    """The prefix of the checkpoint that `source` names, or None if it names none.

    Args:
        source: A prefix, its `.index` file, a directory with a `checkpoint` file, a
            SavedModel, or the one file of the first format.
    """
    saved_model = os.path.join(source, "variables", "variables")
    candidates = [source, source.removesuffix(".index"), saved_model]
    for prefix in candidates:
        if os.path.isfile(f"{prefix}.index"):
            return prefix
    if os.path.isfile(source) and _is_table(source):
        return source
    if os.path.isdir(source):
        latest = tf.train.latest_checkpoint(source)
        return None if latest is None else str(latest)
    return None


# TensorFlow's reader reports damage as any of these.
_READ_ERRORS = (
    tf.errors.OpError,
    IndexError,
    MemoryError,
    RuntimeError,
    ValueError,
)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
