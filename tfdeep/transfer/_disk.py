"""The calls that touch the disk when a cache is written.

All of them go through `disk`; tests put an object in its place whose k-th call fails.
This module and those of the store know nothing of TensorFlow.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Files carry the name of their writer's machine: a lock tells who is alive only there.
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_NONCE = 16  # hexadecimal digits
UNIQUE = f"[0-9a-f]{{8}}-[0-9a-f]{{{_NONCE}}}"

_DAY = 24 * 3600.0  # seconds


class Disk:
    """The system's own calls."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def remove(self, path: str) -> None:
        os.remove(path)

    def makedirs(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def listdir(self, path: str | os.PathLike[str]) -> list[str]:
        return os.listdir(path)

    def free(self, path: str) -> int:
        return shutil.disk_usage(path).free

    def lock(self, descriptor: int) -> bool:
        """Takes the lock of an open file, unless another has it.

        The kernel gives it back when the process ends, however it ends. True as well
        where there are no locks.
        """
        if fcntl is None:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        return True


disk = Disk()


class NewFile:
    """A file under a name that no other writer has, locked until it is closed.

    Args:
        directory: Where.
        stem: What the name begins with.
        suffix: What it ends with.
    """

    def __init__(self, directory: str, stem: str, suffix: str) -> None:
        self.size = 0
        while True:
            unique = f"{_HOST}-{secrets.token_hex(_NONCE // 2)}"
            self.name = f"{stem}-{unique}{suffix}"
            self.path = os.path.join(directory, self.name)
            self._descriptor = disk.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL
            )
            if disk.lock(self._descriptor) and not self._is_swept():
                break
            self.close()

    def _is_swept(self) -> bool:
        """Whether another took it for a dead one's before it was locked."""
        return fcntl is not None and os.fstat(self._descriptor).st_nlink == 0

    def write(self, data: memoryview) -> None:
        self.size += len(data)
        while len(data):
            written = disk.write(self._descriptor, data)
            if written <= 0:
                raise OSError(errno.EIO, "nothing was written", self.path)
            data = data[written:]

    def sync(self) -> None:
        disk.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            disk.close(descriptor)

    def discard(self) -> None:
        """Closes and removes it; the disk may be full or broken."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            disk.remove(self.path)


def write_json(directory: str, name: str, content: dict[str, Any]) -> None:
    """Puts a file in its place, whole or not at all."""
    file = NewFile(directory, name, ".tmp")
    try:
        file.write(memoryview(json.dumps(content).encode()))
        file.sync()
        if fcntl is None:
            file.close()  # Windows does not rename what is open
        disk.replace(file.path, os.path.join(directory, name))
    except BaseException:
        file.discard()
        raise
    file.close()


def sync_directory(path: str) -> None:
    """Makes new names in a directory last, where the system can."""
    if os.name == "nt":
        return  # directories cannot be opened there
    descriptor = disk.open(path, os.O_RDONLY)
    try:
        disk.fsync(descriptor)
    finally:
        disk.close(descriptor)


@contextlib.contextmanager
def try_lock(path: str, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[bool]:
    """Whether the lock of a file is ours, for the time of the `with`."""
    descriptor = disk.open(path, flags)
    try:
        yield disk.lock(descriptor)
    finally:
        disk.close(descriptor)


def sweep(
    directory: str, names: Collection[str], is_kept: Callable[[str], bool]
) -> None:
    """Removes what writers have left behind that are dead for certain.

    Those are the files of this machine that are not locked, where locks work, and any
    file that was not written to for a day.

    Args:
        directory: Where.
        names: The files.
        is_kept: Whether a file is to stay; asked when its writer has closed it.
    """
    if not names:
        return
    try:
        locks_work = _locks_work(directory)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(directory, name)
                idle = time.time() - os.stat(path).st_mtime > _DAY
                local = locks_work and f"-{_HOST}-" in name
                with try_lock(path, os.O_RDWR) as is_free:
                    if (idle or (local and is_free)) and not is_kept(name):
                        disk.remove(path)
    except OSError:
        pass  # it is for the next one to sweep


def _locks_work(directory: str) -> bool:
    """Some file systems grant every lock to everyone."""
    file = NewFile(directory, "lock", ".tmp")
    try:
        with try_lock(file.path, os.O_RDWR) as is_free:
            return not is_free
    finally:
        file.discard()
