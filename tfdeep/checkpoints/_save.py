"""Writes chosen variables of a model to a file, completely or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from zlib_ng import zlib_ng

from tfdeep._core._explain import explain, listing
from tfdeep._core._files import Directory, replaced
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, counted, human_bytes, render_table, shorten
from tfdeep.checkpoints._invalid import invalid
from tfdeep.checkpoints._matching import match_by_name
from tfdeep.checkpoints._open import open as open_checkpoint
from tfdeep.checkpoints._readers._reader import bytes_of
from tfdeep.checkpoints._readers._safetensors import DIGEST, NAMES
from tfdeep.checkpoints._targets import Targets, find_targets

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class SaveReport(Record):
    """What `save_subset` wrote. It prints as a table.

    Attributes:
        path: The file, or directory for a TensorFlow checkpoint.
        saved: The paths of the variables in it.
        bytes: How large it is.
    """

    path: str
    saved: tuple[str, ...]
    bytes: int

    def __str__(self) -> str:
        return render_table(
            f"Saved {counted(len(self.saved), 'variable')} to {self.path}"
            f" ({human_bytes(self.bytes)})",
            ["variable"],
            shorten([(path,) for path in self.saved], _MOST_ROWS),
        )


def save_subset(
    model: Any,
    path: str | os.PathLike[str],
    include: Patterns = None,
    exclude: Patterns = None,
) -> SaveReport:
    """Writes chosen variables of a model to a file that `restore` reads.

    Use it to keep the layers that are worth reusing. The file appears complete or not
    at all: it is written beside its place, forced to the disk and renamed. It carries a
    checksum of each tensor, so that `restore` finds damage.

    | path | |
    |---|---|
    | `.weights.h5` | Keras' own: `load_weights` of a model of just these layers \
reads it. Whole layers only |
    | `.safetensors`, `.npz` | tensors under the paths of the variables |
    | `.ckpt` | a directory with a TensorFlow checkpoint and the file `checkpoint` \
that names it; `tf.train.load_checkpoint` reads it |

    Args:
        model: A built model.
        path: Where to write; the suffix says in which format.
        include: A pattern or a list of patterns over the model's paths; the variables
            to save. None saves all.
        exclude: A pattern or a list of patterns; the variables to leave out.

    Returns:
        A `SaveReport`, which prints as a table.

    Raises:
        InvalidArgumentError: If the suffix is none of these, or only a part of a layer
            would go to a `.weights.h5`.
        SelectionError: If a pattern selects nothing.
        OSError: If it cannot be written, with what was there before as it was.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> report = tfdeep.save_subset(model, tmp_path / "h.safetensors", "hidden[12]")
    >>> len(report.saved)
    4
    """
    target = os.fspath(path)
    suffix = next((s for s in _WRITERS if target.endswith(s)), None)
    if suffix is None:
        raise invalid(
            "`save_subset` does not know this kind of file.",
            received=f"path={target!r}",
            expected=f"a path that ends in one of {listing(_WRITERS)}",
            fix="choose one of these",
        )
    if suffix != ".ckpt":  # which makes its directory
        _check_directory(target)
    targets = find_targets(model, include, exclude)
    _WRITERS[suffix](model, targets, target)
    saved = tuple(wanted.path for wanted in targets.wanted)
    return SaveReport(target, saved, _size(target))


def _check_directory(path: str) -> None:
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            explain(
                "The directory to write to does not exist.",
                received=repr(path),
                expected="a file in a directory that exists",
                fix=f"make the directory {directory!r} first; nothing was changed",
            )
        )


def _values(targets: Targets) -> dict[str, np.ndarray]:
    variables = targets.variables
    return {t.path: np.asarray(variables[t.path].numpy()) for t in targets.wanted}


def _crc(values: np.ndarray) -> int:
    return int(zlib_ng.crc32(bytes_of(values)))


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(entry.stat().st_size for entry in os.scandir(path))


# Each format.


def _write_safetensors(model: Any, targets: Targets, path: str) -> None:
    values = _values(targets)
    unknown = [n for n, a in values.items() if a.dtype.name not in NAMES]
    if unknown or "__metadata__" in values:
        raise invalid(
            "A safetensors file cannot hold this.",
            received=listing(unknown or ["__metadata__"]),
            expected="real numbers under names other than '__metadata__'",
            fix="leave it out with `exclude`, or write a `.ckpt`",
        )
    checksums = {name: _crc(array) for name, array in values.items()}
    header: dict[str, Any] = {"__metadata__": {DIGEST: json.dumps(checksums)}}
    end = 0
    for name, array in values.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of eight bytes

    with replaced(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in values.values():
            file.write(bytes_of(array))


def _write_npz(model: Any, targets: Targets, path: str) -> None:
    values = _values(targets)
    unknown = [name for name, array in values.items() if array.dtype.kind == "V"]
    if unknown:
        raise invalid(
            "NumPy's archives cannot hold this dtype.",
            received=f"{values[unknown[0]].dtype.name} of {listing(unknown)}",
            expected="dtypes of NumPy itself",
            fix="write a `.safetensors` file",
        )

    # `numpy.savez` reserves the names `file` and `allow_pickle`.
    with (
        replaced(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, array in values.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_checkpoint(model: Any, targets: Targets, path: str) -> None:
    """Writes a new checkpoint into the directory, then has `checkpoint` name it."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise invalid(
            "A TensorFlow checkpoint is several files, in a directory.",
            received=f"{path!r}, which is a file",
            expected="a directory, or nothing",
            fix="choose another path",
        )
    values = _values(targets)
    folder = Directory(path)
    folder.make()
    old = set(folder.names())
    number = 1 + max((_number(name) for name in old), default=0)
    name = f"weights-{number}"
    try:
        tf.raw_ops.SaveV2(
            prefix=os.path.join(path, name),
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=list(values.values()),
        )
        new = sorted(set(folder.names()) - old)
        for file in new:
            with open(os.path.join(path, file), "rb+") as written:
                os.fsync(written.fileno())
    except BaseException as error:
        for file in set(folder.names()) - old:
            folder.remove(file)
        if isinstance(error, tf.errors.OpError):
            raise OSError(f"{path!r} cannot be written: {error.message}") from error
        raise
    text = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
    folder.write("checkpoint", [text.encode()])
    for file in old:
        if _number(file):
            folder.remove(file)


def _number(file: str) -> int:
    """The number of a checkpoint of ours, by one of its files; else 0."""
    match = re.fullmatch(r"weights-(\d+)\.(index|data-\d{5}-of-\d{5})", file)
    return int(match.group(1)) if match else 0


def _write_keras_weights(model: Any, targets: Targets, path: str) -> None:
    # HDF5 may crash the process when a disk is full: so the file is made in memory, and
    # there must be room for what Keras writes.
    with tempfile.TemporaryDirectory(prefix="tfdeep-") as directory:
        _check_room(directory, model)
        whole = os.path.join(directory, "whole.weights.h5")
        model.save_weights(whole)
        kept = _datasets(targets, whole)
        with (
            h5py.File(whole, "r") as source,
            h5py.File(path, "w", driver="core", backing_store=False) as target,
        ):
            _copy_group(source, target, kept)
            target.flush()
            image = target.id.get_file_image()

    with replaced(path) as temporary, open(temporary, "wb") as file:
        file.write(image)


def _check_room(directory: str, model: Any) -> None:
    values = sum(int(np.prod(w.shape)) * 8 for w in model.weights)
    if shutil.disk_usage(directory).free < values + 20_000 * len(model.weights):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory)


def _datasets(targets: Targets, whole: str) -> set[str]:
    """Where Keras has put the wanted variables in a file of all of them."""
    with open_checkpoint(whole) as reader:
        matching = match_by_name(targets.wanted, reader.variables)
        unfit = [*matching.missing, *(m.path for m in matching.mismatched)]
        if unfit:
            raise invalid(
                "Keras does not write these variables where their layers are.",
                received=listing(unfit),
                expected="layers that save their variables as they are",
                fix="write a `.safetensors` file",
            )
        kept = {reader.info(match.source).location for match in matching.matched}
        left = {info.location for info in reader.variables} - kept
    layers = {place.rpartition("/")[0] for place in kept}
    parted = sorted({place.rpartition("/")[0] for place in left} & layers)
    if parted:
        raise invalid(
            "A `.weights.h5` file holds whole layers.",
            received=f"only some of the variables in {listing(parted)}",
            expected="patterns over layers, such as 'hidden[12]'",
            fix="write a `.safetensors` file",
        )
    return kept


def _copy_group(source: Any, target: Any, kept: set[str]) -> None:
    """Copies the groups around the kept datasets, and counts layers of a class anew.

    Keras numbers the layers of a class in their order: `dense`, `dense_1`.
    """
    target.attrs.update(source.attrs)
    count: Counter[str] = Counter()
    ordered = sorted(source, key=_as_counted)
    for name in ordered:
        child = source[name]
        place = child.name.lstrip("/")
        if isinstance(child, h5py.Dataset):
            if place in kept:
                copy = target.create_dataset(name, data=child[()])
                copy.attrs.update(child.attrs)
                copy.attrs["crc32"] = _crc(copy[()])
            continue
        inside = f"{place}/"
        if name == "vars" and not any(k.startswith(inside) for k in kept):
            group = target.create_group(name)
            group.attrs.update(child.attrs)
        elif any(k.startswith(inside) for k in kept):
            new = name
            if "vars" not in source and source.name != "/":  # a list of layers
                base = re.sub(r"_\d+$", "", name)
                new = base if not count[base] else f"{base}_{count[base]}"
                count[base] += 1
            _copy_group(child, target.create_group(new), kept)


def _as_counted(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(?:_(\d+))?", name)
    return (match.group(1), int(match.group(2) or 0)) if match else (name, 0)


_WRITERS: Mapping[str, Callable[[Any, Targets, str], None]] = {
    ".weights.h5": _write_keras_weights,
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".ckpt": _write_checkpoint,
}
