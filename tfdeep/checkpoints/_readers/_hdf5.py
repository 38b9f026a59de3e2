"""Reads HDF5 files without letting the HDF5 library into this process.

On some damaged files the library never returns, cannot be interrupted, or allocates
memory without end. What is trusted, and what is not:

- The file is not trusted, and neither is the library while it reads the file. It runs
  in a child process (`_hdf5_child`) with limited processor time and memory, which loads
  no plugins and writes no files, and is ended when it does not come to an end.
- What the child says is not trusted. It lists the file; each shape, dtype and offset is
  checked here against what the file can hold, and plain values are then read here, as
  bytes of the file. The child decodes only values that are compressed or in chunks.
- The program of the child is trusted: it is ours, and starts without the user's
  environment and working directory.

The limit is on processor time, from when the child has imported h5py. Time by the clock
counts only without any progress, such as reading from the file: a slow disk or a busy
machine does not make a file a bad one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any, BinaryIO, cast

import numpy as np

from tfdeep._core._explain import explain
from tfdeep.checkpoints._readers import _hdf5_child
from tfdeep.checkpoints._readers._checks import DEFLATE, Checks
from tfdeep.checkpoints._readers._reader import empty_bytes, fill
from tfdeep.checkpoints._readers._tensors import TensorInfo
from tfdeep.errors import CheckpointError, LimitError, MissingDependencyError

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_CHILD = str(pathlib.Path(__file__).with_name("_hdf5_child.py"))
_MEMORY = 2 << 30
_PATIENCE = 120.0  # seconds without progress
_TO_END = 2.0  # seconds from its last word to its end
_SLOWEST = 20_000_000  # bytes decoded in a second of processor time
_BUSY = 10  # how many times as long that takes where others use the processor, too
_OUT_OF_TIME = -getattr(signal, "SIGXCPU", 0)
_INHERITED = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_KEPT_AS_BYTES = ("bfloat16", "float8_")


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a file that is the HDF5 file."""

    begin: int
    size: int


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One array of a file.

    `info` has its path in the file, without a slash in front. Its values begin at
    `offset` in the window, or the child must decode them. `crc` is the CRC-32 of its
    little-endian bytes, if the file has one.
    """

    info: TensorInfo
    is_big_endian: bool
    offset: int | None
    is_compressed: bool
    crc: int | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """What an HDF5 file holds: the attributes of its groups, and its arrays, by path.

    The root's path is "". `identity` tells whether the file is still the same.
    """

    checks: Checks
    window: Window
    identity: tuple[int, ...]
    groups: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, Dataset]

    @property
    def expansion(self) -> int:
        """How many bytes one byte of the file can become."""
        is_compressed = any(dataset.is_compressed for dataset in self.datasets.values())
        return DEFLATE if is_compressed else 1

    def read(self, path: str) -> np.ndarray:
        """Reads one array.

        Args:
            path: The array's path, one of `datasets`.

        Raises:
            CorruptFileError: If the values cannot be read as they were listed, or the
                file is another one by now.
        """
        checks, dataset = self.checks, self.datasets[path]
        info = dataset.info
        dtype = checks.dtype(path, info.dtype)
        values = empty_bytes(info.nbytes)
        with open(checks.source, "rb") as file:
            if _identity(file) != self.identity:
                raise checks.damaged("it was changed while it was being read")
            if not info.nbytes:
                is_complete = True
            elif dataset.offset is not None:
                is_complete = fill(file, self.window.begin + dataset.offset, values)
            else:
                request = {"path": path, "count": info.nbytes}
                with _Child(checks, self.window, file, request) as child:
                    is_complete = child.fill(values.data)
        if not is_complete:
            raise checks.damaged(f"the values of {path!r} are not complete")
        if dataset.is_big_endian and dataset.offset is not None:
            values = values.reshape(-1, dtype.itemsize)[:, ::-1].reshape(-1)
        if dtype == np.bool_ and values.size and values.max() > 1:
            raise checks.damaged(f"the values of {path!r} are not all true or false")
        return values.view(dtype).reshape(info.shape)


def list_file(checks: Checks, window: Window | None = None) -> Listing:
    """Lists the groups and arrays of an HDF5 file.

    Args:
        checks: The checks of the file.
        window: The part of the file to list; None for all of it.

    Raises:
        CorruptFileError: If it is damaged, or its structure is not clear.
        UnsafeFileError: If it reaches outside itself, or needs plugins.
        LimitError: If it declares too much, or takes too long.
    """
    with open(checks.source, "rb") as file:
        window = window or Window(0, os.fstat(file.fileno()).st_size)
        file.seek(window.begin)
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise checks.damaged("it does not begin like such a file")
        identity = _identity(file)
        limits = checks.limits
        request = {"members": limits.members, "tensors": limits.tensors}
        with _Child(checks, window, file, request) as child:
            answer = child.message()
    try:
        groups = {_text(e.pop("path")): _attributes(e) for e in answer["groups"]}
        found = [_dataset(checks, window, entry) for entry in answer["datasets"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise checks.damaged("its structure is not clear") from error
    at = [(d.offset, d.info.nbytes) for d in found if d.offset is not None]
    checks.apart(at, window.size)
    datasets = {dataset.info.name: dataset for dataset in found}
    return Listing(checks, window, identity, groups, datasets)


class _Child(contextlib.AbstractContextManager["_Child"]):
    """The child process: started, watched, and ended when it is no longer needed.

    Args:
        checks: The checks of the file.
        window: The part of the file to read.
        file: The open file.
        request: What to do; with a `count`, how many bytes to decode.
    """

    def __init__(
        self, checks: Checks, window: Window, file: BinaryIO, request: dict[str, Any]
    ) -> None:
        self._checks = checks
        count = request.get("count", 0)
        self._seconds = checks.limits.seconds + count // _SLOWEST
        request = {
            **request,
            **dataclasses.asdict(window),
            "seconds": self._seconds,
            "memory": _MEMORY + 2 * count,
            "paths": _paths(),
        }
        self._process = self._started(file, json.dumps(request))
        self._output = cast("IO[bytes]", self._process.stdout)
        self._progress = time.monotonic()
        # Decoding one large chunk shows no progress until it is done.
        self._patience = _PATIENCE + _BUSY * count / _SLOWEST
        self._is_done, self._is_stuck = threading.Event(), threading.Event()
        self._watch = threading.Thread(target=self._end_if_stuck, daemon=True)
        self._watch.start()

    def _started(self, file: BinaryIO, request: str) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-I", _CHILD, request],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                explain(
                    "HDF5 files are read by a second Python process, which cannot be "
                    "started here.",
                    received=f"{self._checks.source!r}; {sys.executable!r}: {error}",
                    expected="a Python interpreter at `sys.executable`",
                    fix="convert the file to safetensors where Python can start one; "
                    "nothing was changed",
                )
            ) from error

    def __exit__(self, *exception: object) -> None:
        self._is_done.set()
        self._process.kill()
        self._output.close()
        self._process.wait()
        self._watch.join()

    def _end_if_stuck(self) -> None:
        while not self._is_done.wait(min(1.0, _PATIENCE / 4)):
            if time.monotonic() - self._progress > self._patience:
                self._is_stuck.set()
                self._process.kill()
                return

    def message(self) -> dict[str, Any]:
        """What the child says next, or the error that it asks for."""
        while True:
            line = self._output.readline(_hdf5_child.LONGEST_MESSAGE + 2)
            self._progress = time.monotonic()
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("no message")
                message = dict(json.loads(line))
                if "fault" in message:
                    raise self._error(**message["fault"])
            except CheckpointError:
                raise
            except (ValueError, RecursionError, TypeError, AttributeError) as error:
                raise self._silence() from error
            if "progress" not in message:
                return message

    def fill(self, values: memoryview) -> bool:
        """Fills `values` with what the child decodes; False if that is incomplete."""
        done = 0
        while done < len(values):
            count = self.message().get("bytes")
            if type(count) is not int or not 0 < count <= len(values) - done:
                return False
            part = values[done : done + count]
            if self._output.readinto(part) < count:  # type: ignore[attr-defined]
                return False
            done += count
        return True

    def _error(
        self,
        kind: str,
        reason: object = "",
        place: object = "",
        name: str = "",
        count: int = 0,
    ) -> Exception:
        """The error that the child asks for."""
        if kind == "limit" and name in ("members", "tensors"):
            self._checks.count(name, count)
        if kind == "unsafe":
            return self._checks.unsafe(
                "Reading this file needs parts of HDF5 that Keras does not use.",
                f"{reason} at {place!r}",
                "groups and plain values within the file",
            )
        if kind == "time":
            return self._too_slow()
        if kind == "import":
            return MissingDependencyError(
                explain(
                    "h5py is needed to read this file.",
                    received=f"{self._checks.source!r}; {reason}",
                    expected="h5py and NumPy, which a second Python process imports",
                    fix="`pip install h5py`; nothing was changed",
                )
            )
        return self._checks.damaged(reason)

    def _silence(self) -> CheckpointError:
        """The error for a child that ended without an answer."""
        code = None
        if not self._is_stuck.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_TO_END)
        if self._is_stuck.is_set():
            return self._endless(
                f"no progress for {self._patience:.0f} s",
                "some progress",
                "try again when the disk and the machine are less busy; copy the file "
                "or download it again",
            )
        if code == _OUT_OF_TIME:
            return self._too_slow()
        return self._checks.damaged(f"listing it failed (code {code})")

    def _too_slow(self) -> LimitError:
        return self._endless(
            f"more than {self._seconds} s",
            f"at most {self._seconds} s of processor time (seconds)",
            "copy or download it again; if it is intact and very large, "
            "`tfdeep.checkpoints.Limits(seconds=...)`",
        )

    def _endless(self, reason: str, expected: str, fix: str) -> LimitError:
        what = "Reading this HDF5 file does not come to an end."
        return self._checks.too_much(what, reason, expected, fix)


@functools.cache
def _paths() -> tuple[str, ...]:
    """Where h5py and NumPy are, which need not be in the child's own path."""
    specs = [importlib.util.find_spec(name) for name in ("h5py", "numpy")]
    origins = [spec.origin for spec in specs if spec is not None and spec.origin]
    return tuple(
        dict.fromkeys(str(pathlib.Path(origin).parent.parent) for origin in origins)
    )


def _environment() -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        # Neither a directory of plugins nor any plugin at all.
        "HDF5_PLUGIN_PATH": str(pathlib.Path(_CHILD).with_name("no plugins")),
        "HDF5_PLUGIN_PRELOAD": "::",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        # Each thread of a linear algebra library would take address space.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _identity(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


# What the child says, checked.


def _attributes(entry: dict[str, Any]) -> dict[str, Any]:
    for name in ("layer_names", "weight_names"):
        entry[name] = [_text(text) for text in entry[name]] if name in entry else None
    entry["name"] = _text(entry["name"]) if "name" in entry else None
    return entry


def _dataset(checks: Checks, window: Window, entry: dict[str, Any]) -> Dataset:
    """One array, checked against what the file can hold."""
    path, dtype = _text(entry["path"]), _text(entry["dtype"])
    declared, itemsize = entry["declared"], _whole(entry["itemsize"])
    if dtype == "opaque" and str(declared).startswith(_KEPT_AS_BYTES):
        # HDF5 has no such type; Keras writes the bytes and says what they are.
        dtype = _text(declared)
    info = TensorInfo(path, tuple(map(_whole, entry["shape"])), dtype, path)
    storage, stored = entry["storage"], _whole(entry["stored"])
    is_compressed = entry["is_compressed"] is True
    size = stored if storage == "chunked" else window.size
    checks.tensors([info], size, DEFLATE if is_compressed else 1)
    if checks.dtype(path, dtype).itemsize != itemsize:
        raise checks.damaged(f"{path!r} of dtype {dtype} with {itemsize} bytes")
    offset = None
    if storage == "contiguous":
        offset = _whole(entry["offset"])
        if stored != info.nbytes:
            raise checks.damaged(f"{path!r} has {stored} bytes in the file")
    crc = None if entry["crc32"] is None else _whole(entry["crc32"])
    return Dataset(info, entry["order"] == "big", offset, is_compressed, crc)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value
