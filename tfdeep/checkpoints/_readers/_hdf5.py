"""Reads HDF5 files without letting the HDF5 library into this process.

A child process (`_hdf5_child`) lists the file and says where its values are; plain
values are then read from there as bytes of the file. Only values that are compressed
or kept in pieces are decoded by the child. It has limited time and memory, and loads
no plugins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any, BinaryIO, cast

import numpy as np

from tfdeep._core._explain import explain
from tfdeep.checkpoints._readers import _hdf5_child
from tfdeep.checkpoints._readers._limits import (
    DEFLATE,
    Limits,
    dtype_of,
    number_of_bytes,
)
from tfdeep.checkpoints._readers._reader import TensorInfo, corrupt, empty_bytes, fill
from tfdeep.errors import (
    CheckpointError,
    LimitError,
    MissingDependencyError,
    UnsafeFileError,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_CHILD = str(pathlib.Path(__file__).with_name("_hdf5_child.py"))
_MEMORY = 2 << 30
_TO_START = 2
_SLOWEST = 20_000_000
_INHERITED = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_KEPT_AS_BYTES = ("bfloat16", "float8_")


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a file that is the HDF5 file.

    Attributes:
        begin: Where it begins.
        size: How many bytes it has.
    """

    begin: int
    size: int


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One array of a file.

    Attributes:
        path: Its path in the file, without a slash in front.
        shape: Its shape.
        dtype: Its dtype, as Keras writes it.
        is_big_endian: Whether its bytes are in the order that few machines have.
        offset: Where its values are in the window, or None if the child must decode
            them.
        is_compressed: Whether it is deflated.
        crc: The CRC-32 of its little-endian bytes, if the file says it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    is_big_endian: bool
    offset: int | None
    is_compressed: bool
    crc: int | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """What an HDF5 file holds.

    Attributes:
        source: The file.
        kind: What it should be, for messages.
        window: The part of it that was listed.
        identity: What tells whether the file is still the same.
        groups: The attributes of each group, by path; the root's path is "".
        datasets: The arrays by path, in the file's order.
    """

    source: str
    kind: str
    window: Window
    identity: tuple[int, ...]
    groups: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, Dataset]

    @property
    def expansion(self) -> int:
        """How many bytes one byte of the file can become."""
        is_compressed = any(dataset.is_compressed for dataset in self.datasets.values())
        return DEFLATE if is_compressed else 1


def list_file(
    source: str, limits: Limits, kind: str, window: Window | None = None
) -> Listing:
    """Lists the groups and arrays of an HDF5 file.

    Args:
        source: The file.
        limits: The most that it may declare.
        kind: What the file should be, for messages.
        window: The part of the file to list; None for all of it.

    Raises:
        CorruptFileError: If it is damaged, or nobody can say what it holds.
        UnsafeFileError: If it reaches outside itself, or needs plugins.
        LimitError: If it declares too much, or takes too long.
    """
    with open(source, "rb") as file:
        window = window or Window(0, os.fstat(file.fileno()).st_size)
        file.seek(window.begin)
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise corrupt(source, kind, "it does not begin like one")
        identity = _identity(file)
        child = _Child(source, kind, limits, window)
        members, tensors = limits.members, limits.tensors
        with child.start(file, {"members": members, "tensors": tensors}) as output:
            answer = child.answer(output)
    groups: dict[str, Mapping[str, Any]] = {}
    datasets: dict[str, Dataset] = {}
    try:
        for entry in answer["groups"]:
            path = _string(entry.pop("path"))
            groups[path] = _attributes(entry)
        for entry in answer["datasets"]:
            dataset = _dataset(source, limits, kind, window, entry)
            datasets[dataset.path] = dataset
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise corrupt(source, kind, "its structure is not clear") from error
    _check_overlap(source, kind, datasets)
    return Listing(source, kind, window, identity, groups, datasets)


def read_dataset(listing: Listing, path: str, limits: Limits) -> np.ndarray:
    """Reads one array of a listed file.

    Args:
        listing: The listing.
        path: The array's path, one of `listing.datasets`.
        limits: The limits that the file was listed with.

    Raises:
        CorruptFileError: If the values cannot be read as they were listed, or the file
            is another one by now.
    """
    source, kind = listing.source, listing.kind
    dataset = listing.datasets[path]
    dtype = dtype_of(source, path, dataset.dtype)
    count = number_of_bytes(source, path, dataset.shape, dataset.dtype)
    values = empty_bytes(count)
    with open(source, "rb") as file:
        if _identity(file) != listing.identity:
            raise corrupt(source, kind, "it was changed while it was being read")
        if count == 0:
            is_complete = True
        elif dataset.offset is not None:
            is_complete = fill(file, listing.window.begin + dataset.offset, values)
        else:
            child = _Child(source, kind, limits, listing.window)
            request = {"path": path, "count": count}
            with child.start(file, request, count) as output:
                child.answer(output)
                filled = output.readinto(values.data)  # type: ignore[attr-defined]
                is_complete = filled == count and not output.read(1)
    if not is_complete:
        raise corrupt(source, kind, f"the values of {path!r} are not complete")
    if dataset.is_big_endian and dataset.offset is not None:
        values = values.reshape(-1, dtype.itemsize)[:, ::-1].reshape(-1)
    if dtype == np.bool_ and count and values.max() > 1:
        raise corrupt(source, kind, f"the values of {path!r} are not all true or false")
    return values.view(dtype).reshape(dataset.shape)


class _Child:
    """Starts the child, ends it when its time is over, and reads its answer."""

    def __init__(self, source: str, kind: str, limits: Limits, window: Window) -> None:
        self._source, self._kind = source, kind
        self._limits, self._window = limits, window
        self._is_late = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def start(
        self, file: BinaryIO, request: dict[str, object], count: int = 0
    ) -> Iterator[IO[bytes]]:
        """The child's output, while it runs.

        Args:
            file: The open file.
            request: What to do.
            count: How many bytes it will decode.
        """
        seconds = self._limits.seconds + count // _SLOWEST
        request = {
            **request,
            "begin": self._window.begin,
            "size": self._window.size,
            "seconds": seconds,
            "memory": _MEMORY + 2 * count,
            "paths": _paths(),
        }
        self._process = self._started(file, json.dumps(request))
        output = cast("IO[bytes]", self._process.stdout)
        timer = threading.Timer(seconds + _TO_START, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            yield output
        finally:
            timer.cancel()
            self._process.kill()
            output.close()
            self._process.wait()
            timer.join()

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
                    received=f"{self._source!r}; {sys.executable!r}: {error}",
                    expected="a Python interpreter at `sys.executable`",
                    fix="convert the file to safetensors where Python can start one; "
                    "nothing was changed",
                )
            ) from error

    def _end_late(self) -> None:
        self._is_late.set()
        if self._process is not None:
            self._process.kill()

    def answer(self, output: IO[bytes]) -> dict[str, Any]:
        """The first line of the output, or the error that it asks for."""
        line = output.readline(_hdf5_child.LONGEST_ANSWER + 2)
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no answer")
            answer = json.loads(line)
            fault = answer.get("fault")
            if fault is None:
                return dict(answer)
            raise self._error(**fault)
        except CheckpointError:
            raise
        except (ValueError, RecursionError, TypeError, AttributeError) as error:
            raise self._silence() from error

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
            self._limits.check_count(self._source, name, count)
        if kind == "unsafe":
            return UnsafeFileError(
                explain(
                    "This file asks to be read in a way that no file Keras writes "
                    "does.",
                    received=f"{self._source!r}: {reason} at {place!r}",
                    expected="groups and plain values within the file",
                    fix="do not use this file; nothing was changed",
                )
            )
        if kind == "import":
            return MissingDependencyError(
                explain(
                    "h5py is needed to read this file.",
                    received=f"{self._source!r}; {reason}",
                    expected="h5py and NumPy, which a second Python process imports",
                    fix="`pip install h5py`; nothing was changed",
                )
            )
        if kind == "long":
            reason = f"its names take more than {_hdf5_child.LONGEST_ANSWER} bytes"
        return corrupt(self._source, self._kind, reason)

    def _silence(self) -> CheckpointError:
        """The error for a child that ended without an answer."""
        process = self._process
        code = None
        if process is not None and not self._is_late.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_TO_START)
        if self._is_late.is_set() or code in _OUT_OF_TIME:
            return LimitError(
                explain(
                    f"Listing this {self._kind} does not come to an end.",
                    received=f"{self._source!r}: more than {self._limits.seconds} s",
                    expected=f"at most {self._limits.seconds} s of processor time "
                    "(seconds)",
                    fix="copy or download it again; if it is sound and very large, "
                    "`tfdeep.checkpoints.Limits(seconds=...)`; nothing was changed",
                )
            )
        return corrupt(self._source, self._kind, f"listing it failed (code {code})")


def _signals(*names: str) -> tuple[int, ...]:
    import signal

    return tuple(-getattr(signal, name) for name in names if hasattr(signal, name))


_OUT_OF_TIME = _signals("SIGXCPU")


@functools.cache
def _paths() -> tuple[str, ...]:
    """Where h5py and NumPy are, which need not be in the child's own path."""
    found = []
    for name in ("h5py", "numpy"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found.append(str(pathlib.Path(spec.origin).parent.parent))
    return tuple(dict.fromkeys(found))


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


def _attributes(entry: dict[str, Any]) -> dict[str, Any]:
    for name in ("layer_names", "weight_names"):
        entry[name] = [_string(text) for text in entry[name]] if name in entry else None
    for name in ("name", "keras_version", "backend"):
        entry[name] = _string(entry[name]) if name in entry else None
    return entry


def _dataset(
    source: str, limits: Limits, kind: str, window: Window, entry: dict[str, Any]
) -> Dataset:
    """One entry of the child's answer, checked against what the file can hold."""
    path, dtype = _string(entry["path"]), _string(entry["dtype"])
    declared, itemsize = entry["declared"], _whole(entry["itemsize"])
    if dtype == "opaque" and str(declared).startswith(_KEPT_AS_BYTES):
        # HDF5 has no such type; Keras writes the bytes and says what they are.
        dtype = _string(declared)
    shape = tuple(_whole(n) for n in entry["shape"])
    layout, stored = entry["layout"], _whole(entry["stored"])
    is_compressed = entry["is_compressed"] is True
    size = stored if layout == "chunked" else window.size
    info = TensorInfo(path, shape, dtype, path)
    limits.check_tensors(source, [info], DEFLATE if is_compressed else 1, size)
    if dtype_of(source, path, dtype).itemsize != itemsize:
        raise corrupt(source, kind, f"{path!r} of dtype {dtype} with {itemsize} bytes")
    offset = None
    if layout == "contiguous":
        offset = _whole(entry["offset"])
        if stored != info.nbytes or offset + stored > window.size:
            raise corrupt(source, kind, f"{path!r} is not within the file")
    crc = entry["crc32"]
    return Dataset(
        path=path,
        shape=shape,
        dtype=dtype,
        is_big_endian=entry["order"] == "big",
        offset=offset,
        is_compressed=is_compressed,
        crc=None if crc is None else _whole(crc),
    )


def _check_overlap(source: str, kind: str, datasets: Mapping[str, Dataset]) -> None:
    """Raises if two arrays share bytes: each byte would count more than once."""
    spans = []
    for dataset in datasets.values():
        count = number_of_bytes(source, dataset.path, dataset.shape, dataset.dtype)
        if dataset.offset is not None and count:
            spans.append((dataset.offset, dataset.offset + count, dataset.path))
    end, before = 0, ""
    for first, last, path in sorted(spans):
        if first < end:
            raise corrupt(source, kind, f"{before!r} and {path!r} share bytes")
        end, before = last, path


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value
