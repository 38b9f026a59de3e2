"""Reader for TensorFlow checkpoints: TF1 `Saver`, TF2 objects, SavedModel variables."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tfdeep.checkpoints._readers._checks import Checks, Limits
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._tensors import TensorInfo
from tfdeep.checkpoints._readers._tf_index import Entry, Index, TFChecks, read_index
from tfdeep.checkpoints._readers._tf_table import MAGIC, crc32c, masked, varint
from tfdeep.checkpoints._readers._tf_v1 import EXPANSION, V1File

_KIND = "TensorFlow checkpoint"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_REPEATED = "_all_variables/"
_NODES = 1
# One object of the graph; an optimizer of very many variables is the longest.
_LONGEST_NODE = 1 << 24
_LONGEST_STATE = 1 << 24


class TFCheckpointReader(Reader):
    """Reads a TensorFlow checkpoint by the names its variables had.

    A TF1 `Saver` stores values under the variables' names. An object-based
    checkpoint stores them under the attributes that led to them, and keeps the
    variables' names in a graph of objects beside them; that graph is data and is read
    here, no object is made from it.

    TensorFlow's own reader aborts the process when an index is impossible. So the
    index is read and checked here, and so are the values and their checksums.
    """

    format = _KIND
    integrity = "verified"

    def __init__(self, source: str, prefix: str, limits: Limits | None = None) -> None:
        super().__init__(source, limits)
        self._tf = TFChecks(source, self.format, self._checks.limits)
        self._entries: Mapping[str, Entry] = {}
        self._files: Mapping[int, str] = {}
        self._v1: V1File | None = None
        with self.closed_on_error():
            try:
                self._list(prefix)
            except OSError as error:
                raise self._checks.damaged(error) from error

    def _list(self, prefix: str) -> None:
        if os.path.isfile(f"{prefix}.index"):
            index = read_index(prefix, self._tf)
            self._entries, self._files = index.tensors, index.files
            names = self._variable_names(index)
            tensors = {
                key: (entry.dtype, entry.shape) for key, entry in index.tensors.items()
            }
            size, expansion = index.size, 1
        else:
            self._v1 = V1File(prefix, self._tf)
            tensors = self._v1.tensors
            names = {key: key for key in tensors}
            size, expansion = self._v1.size, EXPANSION
        infos = [
            TensorInfo(names[key], tensors[key][1], tensors[key][0], key)
            for key in sorted(names, key=names.__getitem__)
        ]
        self._accept(infos, size, expansion)

    def _variable_names(self, index: Index) -> dict[str, str]:
        """The name of each stored variable, by its key in the checkpoint."""
        if _OBJECT_GRAPH not in index.others:
            return {key: key for key in index.tensors}
        graph = self._text(index.others[_OBJECT_GRAPH])
        full_names = self._full_names(graph)
        names = {key: full_names.get(key, _attributes(key)) for key in index.tensors}
        # Keras' `model.export` stores each variable twice, once in a list of its own.
        once = {name for key, name in names.items() if not key.startswith(_REPEATED)}
        names = {
            key: name
            for key, name in names.items()
            if not (key.startswith(_REPEATED) and name in once)
        }
        # Keras names the variables of a subclassed model without their layers, and two
        # objects may hold variables of one name. The attributes that lead to them,
        # `model/hidden1/_kernel`, tell them apart, and if these are `x` and `_x`, the
        # keys do.
        for other_name in (_attributes, str):
            count = collections.Counter(names.values())
            names = {
                key: name if count[name] == 1 else other_name(key)
                for key, name in names.items()
            }
        return names

    def _full_names(self, content: bytes) -> dict[str, str]:
        """The names that the graph of objects gives the variables, by their keys."""
        nodes: list[list[tuple[str, str]]] = []
        slots: list[tuple[int, int, str]] = []
        count = 0
        kind = trackable_object_graph_pb2.TrackableObjectGraph.TrackableObject
        for number, field in self._tf.fields(content):
            if number != _NODES:
                continue
            node = self._tf.parsed(kind, field, _LONGEST_NODE)
            # Each of these belongs to a tensor; most nodes have none of them.
            count += len(node.attributes) + len(node.slot_variables)
            self._checks.count("tensors", count // 2)
            self._checks.count("tensors", len(nodes) // 16)
            nodes.append([(a.checkpoint_key, a.full_name) for a in node.attributes])
            slots += [
                (s.slot_variable_node_id, s.original_variable_node_id, s.slot_name)
                for s in node.slot_variables
            ]
        names = {key: name for node in nodes for key, name in node if name}
        # A slot of an optimizer is named after its variable, unless it has a name.
        for slot, original, slot_name in slots:
            if not (0 <= slot < len(nodes) and 0 <= original < len(nodes)):
                raise self._checks.damaged("an optimizer slot has no variable")
            if len(nodes[slot]) == len(nodes[original]) == 1:
                (key, name), (_, owner) = nodes[slot][0], nodes[original][0]
                if owner and not name:
                    names[key] = f"{owner}/{slot_name}"
        return names

    def _text(self, entry: Entry) -> bytes:
        """Reads a single text: its length, a checksum of the length, its bytes."""
        if (entry.dtype, entry.shape) != ("string", ()):
            raise self._checks.damaged("its object graph is not text")
        self._checks.count("header_bytes", entry.size)
        content = self._stored(entry).tobytes()
        try:
            length, begin = varint(content, 0, len(content))
        except ValueError as error:
            raise self._checks.damaged(error) from error
        if begin + 4 + length != len(content) or length >> 32:
            raise self._checks.damaged("its object graph is cut short")
        # The checksum covers the length as four bytes, not as it is stored.
        plain = length.to_bytes(4, "little")
        checksum = content[begin : begin + 4]
        if (
            masked(crc32c(plain)) != int.from_bytes(checksum, "little")
            or masked(crc32c(plain + content[begin:])) != entry.crc
        ):
            raise self._checks.damaged("its object graph does not match its checksum")
        return content[begin + 4 :]

    def read(self, name: str) -> np.ndarray:
        info = self.info(name)
        try:
            if self._v1 is not None:
                return self._v1.read(info.location)
            entry = self._entries[info.location]
            if not entry.parts:
                return self._values(name, entry)
            dtype = self._checks.dtype(name, entry.dtype)
            parts = ((p, self._values(name, stored)) for p, stored in entry.parts)
            return self._tf.joined(name, dtype, entry.shape, parts)
        except OSError as error:
            raise self._checks.damaged(error) from error

    def _values(self, name: str, entry: Entry) -> np.ndarray:
        content = self._stored(entry)
        if masked(crc32c(content)) != entry.crc:
            raise self._checks.damaged(f"tensor {name!r} does not match its checksum")
        dtype = self._checks.dtype(name, entry.dtype)
        return content.view(dtype).reshape(entry.shape)

    def _stored(self, entry: Entry) -> np.ndarray:
        """The bytes of an entry."""
        with open(self._files[entry.shard], "rb") as file:
            return self._read_bytes(file, entry.offset, entry.size)

    def close(self) -> None:
        if self._v1 is not None:
            self._v1.close()


def _is_table(path: str) -> bool:
    """Whether a file ends as TensorFlow's sorted tables do, and with them V1 files."""
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) < len(MAGIC):
                return False
            file.seek(-len(MAGIC), os.SEEK_END)
            return file.read() == MAGIC
    except OSError as error:
        raise Checks(path, _KIND, Limits()).damaged(error) from error


def _attributes(key: str) -> str:
    return key.removesuffix(_VALUE).replace("/_", "/")


def checkpoint_prefix(source: str) -> str | None:
    """The prefix of the checkpoint that `source` names, or None if it names none.

    Args:
        source: A prefix, its `.index` file, a directory with a `checkpoint` file, a
            SavedModel, or the one file of the first format.

    Raises:
        UnsafeFileError: If the `checkpoint` file names one in another directory.
    """
    saved_model = os.path.join(source, "variables", "variables")
    candidates = [source, source.removesuffix(".index"), saved_model]
    for prefix in candidates:
        if os.path.isfile(f"{prefix}.index"):
            return prefix
    if os.path.isfile(source) and _is_table(source):
        return source
    if os.path.isfile(os.path.join(source, "checkpoint")):
        return _latest(source)
    return None


def _is_inside(directory: str, other: str) -> bool:
    """Whether `other` is `directory` or in it, when all links are followed."""
    try:
        inside, place = os.path.realpath(directory), os.path.realpath(other)
        return os.path.commonpath([inside, place]) == inside
    except ValueError:  # NUL characters, or another drive
        return False


def _latest(directory: str) -> str | None:
    """The checkpoint that the `checkpoint` file of a directory names."""
    path = os.path.join(directory, "checkpoint")
    try:
        size = os.path.getsize(path)
        if size > _LONGEST_STATE:
            raise ValueError(f"{size} bytes")
        state = tf.train.get_checkpoint_state(directory)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n")[0]
        checks = Checks(path, "`checkpoint` file", Limits())
        raise checks.damaged(reason) from error
    if state is None:
        return None
    prefix = str(state.model_checkpoint_path)  # TensorFlow has added the directory
    here = os.path.join(directory, os.path.basename(prefix))
    if os.path.isfile(f"{here}.index"):  # the directory may have been moved
        return here
    if not _is_inside(directory, os.path.dirname(prefix)):
        raise Checks(path, _KIND, Limits()).unsafe(
            "This directory's latest checkpoint is in another directory.",
            f"it names {prefix!r}",
            "the name of a checkpoint in the same directory",
            "pass the checkpoint itself, `directory/name` without `.index`",
        )
    if os.path.isfile(f"{prefix}.index"):
        return prefix
    return prefix if os.path.isfile(prefix) and _is_table(prefix) else None
