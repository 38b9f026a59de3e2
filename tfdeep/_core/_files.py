"""Files that are there whole or not at all, on this machine or elsewhere.

`replaced` is the one way in which tfdeep puts a file in its place. `directory_at` gives
the same few operations for a local directory and for one that `tf.io.gfile` knows.
TensorFlow is imported for the latter only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A temporary file carries the name of its writer's machine: only there does its lock
# tell whether the writer is alive.
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
TEMPORARY = re.compile(r"\..+-[0-9a-f]{8}-[0-9a-f]{16}\.tmp")

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DAY = 24 * 3600.0  # seconds


def is_remote(path: str) -> bool:
    """Whether a path names a scheme, such as `gs://`."""
    return _REMOTE.match(path) is not None


@contextlib.contextmanager
def replaced(path: str, overwrite: bool = True) -> Iterator[str]:
    """Yields the path of a new, empty file; at the end it takes the place of `path`.

    The content is on the disk before it gets its name, and the name is on the disk
    when the `with` ends. After an error nothing is left and `path` is as it was.

    Args:
        path: Where the file is to be.
        overwrite: Whether to replace a file that is there. If not, that one stays, and
            there is no error.
    """
    directory, name = os.path.split(os.path.abspath(path))
    temporary, descriptor = _new_file(directory, name)
    try:
        yield temporary
        os.chmod(temporary, stat.S_IMODE(os.fstat(descriptor).st_mode))
        _sync(temporary, os.O_RDWR)
        if fcntl is None:
            os.close(descriptor)  # Windows does not rename what is open
            descriptor = -1
        _rename(temporary, path, overwrite)
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be full or broken
            os.remove(temporary)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    if os.name != "nt":  # where directories cannot be opened
        _sync(directory, os.O_RDONLY)


def _temporary(name: str) -> str:
    """A name that no other writer has."""
    return f".{name}-{_HOST}-{secrets.token_hex(8)}.tmp"


def _new_file(directory: str, name: str) -> tuple[str, int]:
    """The path of a new temporary file and its descriptor, which is locked."""
    while True:
        path = os.path.join(directory, _temporary(name))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        # Before it was locked, another may have taken it for a dead writer's.
        if _take_lock(descriptor) and (fcntl is None or os.fstat(descriptor).st_nlink):
            return path, descriptor
        os.close(descriptor)


def _rename(temporary: str, path: str, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, path)  # unlike `replace`, it fails if one is there
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            overwrite = not os.path.exists(path)
    if overwrite:
        os.replace(temporary, path)
    else:
        with contextlib.suppress(OSError):  # a sweep removes it
            os.remove(temporary)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: str, flags: int = os.O_RDWR) -> Iterator[bool]:
    """Yields whether the lock of a file is ours, for the time of the `with`."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield _take_lock(descriptor)
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int) -> bool:
    """Takes the lock of an open file, unless another has it.

    The kernel gives it back when the process ends, however it ends. True as well where
    there are no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


class Directory:
    """A directory on this machine, which need not exist."""

    def __init__(self, path: str) -> None:
        self.path = path

    def at(self, name: str) -> str:
        """The path of a file in it."""
        return os.path.join(self.path, name)

    def exists(self) -> bool:
        return os.path.isdir(self.path)

    def make(self) -> None:
        os.makedirs(self.path, exist_ok=True)

    def names(self) -> list[str]:
        """What it holds; nothing if it does not exist."""
        try:
            return os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no regular file of that name."""
        try:
            status = os.lstat(self.at(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str, count: int) -> bytes:
        """The first bytes of a file, at most `count`."""
        with open(self.at(name), "rb") as file:
            return file.read(count)

    def write(self, name: str, chunks: Iterable[bytes], overwrite: bool = True) -> None:
        """Writes a file; see `replaced`."""
        with replaced(self.at(name), overwrite) as path:
            descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
            try:
                for chunk in chunks:
                    rest = memoryview(chunk)
                    while len(rest):
                        rest = rest[os.write(descriptor, rest) :]
            finally:
                os.close(descriptor)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.at(name))

    def remove_itself(self) -> None:
        """Removes the directory; an OSError if it is not empty."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.path)

    def free(self) -> int | None:
        """Bytes that can be written to it; None if that is not known."""
        return shutil.disk_usage(self.path).free

    def lock(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Yields whether the lock of that name is ours, for the time of the `with`."""
        return _locked(self.at(name), os.O_RDWR | os.O_CREAT)

    @contextlib.contextmanager
    def copied(self, names: Iterable[str]) -> Iterator[Directory]:
        """Yields a local directory that has these files."""
        yield self

    def sweep(self) -> None:
        """Removes the temporary files of writers that are dead for certain.

        Those are the files of this machine that are not locked, where locks work, and
        any file that was not written to for a day.
        """
        names = [name for name in self.names() if TEMPORARY.fullmatch(name)]
        try:
            locks_work = bool(names) and self._locks_work()
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    is_old = time.time() - os.stat(self.at(name)).st_mtime > _DAY
                    is_local = locks_work and f"-{_HOST}-" in name
                    with _locked(self.at(name)) as is_free:
                        if is_old or (is_local and is_free):
                            os.remove(self.at(name))
        except OSError:
            pass  # it is for the next one to sweep

    def _locks_work(self) -> bool:
        """Some file systems grant every lock to everyone."""
        path, descriptor = _new_file(self.path, "lock")
        try:
            with _locked(path) as is_free:
                return not is_free
        finally:
            os.close(descriptor)
            os.remove(path)


class RemoteDirectory(Directory):
    """A directory that `tf.io.gfile` knows, such as `gs://bucket/cache`.

    There are no locks and no sweeps, and `overwrite=False` looks for the file before it
    writes. A file is written under a temporary name first: it has its own when it is
    whole, as far as the file system renames atomically.
    """

    def at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self) -> bool:
        with _gfile(self.path) as gfile:
            return bool(gfile.isdir(self.path))

    def make(self) -> None:
        with _gfile(self.path) as gfile:
            gfile.makedirs(self.path)

    def names(self) -> list[str]:
        with _gfile(self.path) as gfile:
            found = gfile.listdir(self.path) if gfile.isdir(self.path) else []
        return [name.rstrip("/") for name in found]

    def size(self, name: str) -> int | None:
        with contextlib.suppress(FileNotFoundError), _gfile(name) as gfile:
            status = gfile.stat(self.at(name))
            return None if status.is_directory else int(status.length)
        return None

    def read(self, name: str, count: int) -> bytes:
        with _gfile(name) as gfile, gfile.GFile(self.at(name), "rb") as file:
            return bytes(file.read(count))

    def write(self, name: str, chunks: Iterable[bytes], overwrite: bool = True) -> None:
        if not overwrite and self.size(name) is not None:
            return
        temporary = self.at(_temporary(name))
        with _gfile(name) as gfile:
            try:
                with gfile.GFile(temporary, "wb") as file:
                    for chunk in chunks:
                        file.write(bytes(chunk))
                gfile.rename(temporary, self.at(name), overwrite=True)
            except BaseException:
                if gfile.exists(temporary):
                    gfile.remove(temporary)
                raise

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _gfile(name) as gfile:
            gfile.remove(self.at(name))

    def remove_itself(self) -> None:
        if self.names():
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self.path)
        # An object store has no directory where there is no object.
        with contextlib.suppress(FileNotFoundError), _gfile(self.path) as gfile:
            gfile.rmtree(self.path)

    def free(self) -> int | None:
        return None

    def lock(self, name: str) -> contextlib.AbstractContextManager[bool]:
        return contextlib.nullcontext(True)

    @contextlib.contextmanager
    def copied(self, names: Iterable[str]) -> Iterator[Directory]:
        """Yields a temporary directory; what was mapped in it can be read after it."""
        with tempfile.TemporaryDirectory(
            prefix="tfdeep-", ignore_cleanup_errors=True
        ) as path:
            copy = Directory(path)
            with _gfile(self.path) as gfile:
                for name in names:
                    gfile.copy(self.at(name), copy.at(name))
            yield copy

    def sweep(self) -> None:
        pass


def directory_at(path: str) -> Directory:
    """The directory at a local path or at one that `tf.io.gfile` knows."""
    return RemoteDirectory(path) if is_remote(path) else Directory(path)


@contextlib.contextmanager
def _gfile(path: str) -> Iterator[Any]:
    """Yields `tf.io.gfile`, whose errors become those of the operating system."""
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), path) from error
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, str(error), path) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, str(error), path) from error
