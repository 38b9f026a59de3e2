"""Finds the reader for a file of weights."""

from __future__ import annotations

import builtins
import os

from tfdeep._core._explain import explain
from tfdeep.checkpoints._keras_files import KerasArchiveReader, KerasWeightsReader
from tfdeep.checkpoints._reader import Reader, corrupt
from tfdeep.checkpoints._tf_checkpoint import TFCheckpointReader, checkpoint_prefix
from tfdeep.errors import UnknownFormatError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK"
_KINDS = {
    ".weights.h5": KerasWeightsReader.format,
    ".h5": "HDF5 file",
    ".keras": KerasArchiveReader.format,
}


def open(source: str | os.PathLike[str]) -> Reader:
    """Opens a file of weights for reading, whatever its format.

    No code from the file is run. Close the reader after use, or use it in a `with`
    statement.

    Args:
        source: A Keras 3 `.weights.h5` or `.keras` file, the prefix of a TensorFlow
            checkpoint (TF1 `Saver` or object-based), a directory that holds one, or a
            SavedModel directory.

    Returns:
        A reader with `variables`, `read(name)` and `integrity`.

    Raises:
        UnknownFormatError: If it is none of these.
        CorruptFileError: If it is damaged or cut short.
        UnsafeFileError: If it points outside itself.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3], num_outputs=2)
    >>> model.save_weights(tmp_path / "net.weights.h5")
    >>> with tfdeep.checkpoints.open(tmp_path / "net.weights.h5") as reader:
    ...     [(info.name, info.shape) for info in reader.variables][:2]
    [('hidden1/0', (4, 3)), ('hidden1/1', (3,))]
    """
    path = os.fspath(source)
    prefix = checkpoint_prefix(path)
    if prefix is not None:
        return TFCheckpointReader(path, prefix)
    if os.path.isfile(path):
        with builtins.open(path, "rb") as file:
            start = file.read(8)
        if start == _HDF5:
            return KerasWeightsReader(path)
        if start.startswith(_ZIP):
            return KerasArchiveReader(path)
        for suffix, kind in _KINDS.items():
            if path.endswith(suffix):
                raise corrupt(path, kind, "it does not begin like one")
    raise UnknownFormatError(
        explain(
            "This is no file of weights that tfdeep reads.",
            received=f"{path!r}: {_what_is(path)}",
            expected="a Keras 3 `.weights.h5` or `.keras` file, the prefix of a "
            "TensorFlow checkpoint, or a directory that holds one",
            fix="check the path; a checkpoint `model.ckpt-10.index` is passed as "
            "'model.ckpt-10'; nothing was changed",
        )
    )


def _what_is(path: str) -> str:
    if os.path.isdir(path):
        return "a directory without a checkpoint"
    return (
        "an unknown kind of file" if os.path.isfile(path) else "there is no such file"
    )
