"""Finds the reader for a file of weights."""

from __future__ import annotations

import builtins
import os

from tfdeep._core._explain import explain, listing
from tfdeep._core._files import is_remote
from tfdeep.checkpoints._readers._checks import Checks, Limits
from tfdeep.checkpoints._readers._keras import (
    KerasArchiveReader,
    ShardedKerasReader,
    open_hdf5,
)
from tfdeep.checkpoints._readers._npz import NpzReader
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._remote import RemoteReader
from tfdeep.checkpoints._readers._safetensors import (
    SafetensorsReader,
    ShardedSafetensorsReader,
)
from tfdeep.checkpoints._readers._tf_checkpoint import (
    TFCheckpointReader,
    checkpoint_prefix,
)
from tfdeep.checkpoints._readers._torch import (
    TorchReader,
    is_legacy_torch,
    legacy_torch_error,
)
from tfdeep.checkpoints._readers._zip import member_names
from tfdeep.errors import UnknownFormatError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK"
_KINDS = {
    ".h5": "HDF5 file",
    ".keras": KerasArchiveReader.format,
    ".npz": NpzReader.format,
    ".safetensors": SafetensorsReader.format,
    ".pt": TorchReader.format,
    ".pth": TorchReader.format,
}
_MEMBERS = 64  # that are looked at to tell what an archive is


def open(
    source: str | os.PathLike[str],
    limits: Limits | None = None,
    allow_remote: bool = False,
) -> Reader:
    """Opens a file of weights for reading, whatever its format.

    No code from the file is run. Close the reader after use, or use it in a `with`
    statement.

    | | formats |
    |---|---|
    | Keras 3 | `.weights.h5`, `.weights.json` with its shards, `.keras` |
    | Keras 1 and 2 | `.h5`, of weights or of a model |
    | TensorFlow | the prefix of a checkpoint (TF1 `Saver` of both versions, \
object-based), a directory that holds one, a SavedModel directory |
    | PyTorch | `.pt`, `.pth`, `.bin` that `torch.save` wrote since 1.6 |
    | others | `.safetensors`, its `.safetensors.index.json` with shards, `.npz` |

    Args:
        source: A path.
        limits: The most that the file may declare; see `tfdeep.checkpoints.Limits`.
        allow_remote: Whether `source` may be a URL that `tf.io.gfile` reads, such as
            `gs://bucket/net.weights.h5`. It is copied to a temporary directory, which
            is removed when the reader is closed.

    Returns:
        A reader with `variables`, `read(name)` and `integrity`.

    Raises:
        UnknownFormatError: If it is in none of these formats.
        CorruptFileError: If it is damaged or cut short.
        UnsafeFileError: If it points outside itself, or would run code.
        LimitError: If it declares more than `limits`.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3], num_outputs=2)
    >>> model.save_weights(tmp_path / "net.weights.h5")
    >>> with tfdeep.checkpoints.open(tmp_path / "net.weights.h5") as reader:
    ...     [(info.name, info.shape) for info in reader.variables][:2]
    [('hidden1/0', (4, 3)), ('hidden1/1', (3,))]
    """
    path = os.fspath(source)
    if is_remote(path):
        return RemoteReader(path, allow_remote, lambda copy: open(copy, limits))
    prefix = checkpoint_prefix(path)
    if prefix is not None:
        return TFCheckpointReader(path, prefix, limits)
    if os.path.isfile(path):
        return _open_file(path, limits)
    prefixes = _prefixes(path)
    if prefixes:
        one = "" if len(prefixes) == 1 else "one of these: "
        raise _unknown(
            path,
            "a directory without a file `checkpoint` that says which of its "
            "checkpoints to read",
            f"pass {one}{listing(map(repr, prefixes))}; nothing was changed",
        )
    raise _unknown(path, "a directory without a checkpoint")


def _prefixes(directory: str) -> list[str]:
    """The prefixes of the checkpoints in a directory."""
    if not os.path.isdir(directory):
        return []
    names = sorted(name for name in os.listdir(directory) if name.endswith(".index"))
    return [os.path.join(directory, name.removesuffix(".index")) for name in names]


def _open_file(path: str, limits: Limits | None) -> Reader:
    with builtins.open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(_HDF5):
        return open_hdf5(path, limits)
    if start.startswith(_ZIP):
        return _open_archive(path, limits)
    if is_legacy_torch(start):
        raise legacy_torch_error(path)
    if path.endswith(".weights.json"):
        return ShardedKerasReader(path, limits)
    if path.endswith(".safetensors.index.json"):
        return ShardedSafetensorsReader(path, limits)
    if path.endswith(".safetensors") and start[8:9] == b"{":
        return SafetensorsReader(path, limits)
    for suffix, kind in _KINDS.items():
        if path.endswith(suffix):
            checks = Checks(path, kind, limits or Limits())
            raise checks.damaged("it does not begin like such a file")
    if start[8:9] == b"{":
        return SafetensorsReader(path, limits)
    raise _unknown(path, "an unknown kind of file")


def _open_archive(path: str, limits: Limits | None) -> Reader:
    """Tells an archive by its members, or else by its name."""
    names = member_names(path, _MEMBERS)
    if any(name.endswith("data.pkl") for name in names):
        return TorchReader(path, limits)
    if names and all(name.endswith(".npy") for name in names):
        return NpzReader(path, limits)
    if path.endswith(".npz"):
        return NpzReader(path, limits)
    if path.endswith((".pt", ".pth", ".bin")):
        return TorchReader(path, limits)
    return KerasArchiveReader(path, limits)


def _unknown(
    path: str,
    what: str,
    fix: str = "check the path; a checkpoint `model.ckpt-10.index` is passed as "
    "'model.ckpt-10'; nothing was changed",
) -> UnknownFormatError:
    if not os.path.exists(path):
        what = "there is no such file"
    return UnknownFormatError(
        explain(
            "tfdeep cannot read this file as weights.",
            received=f"{path!r}: {what}",
            expected="a Keras `.weights.h5`, `.keras` or `.h5` file, a TensorFlow "
            "checkpoint's prefix or directory, a PyTorch `.pt`, a `.safetensors` or "
            "`.npz` file",
            fix=fix,
        )
    )
