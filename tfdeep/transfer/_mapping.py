"""Several files as one array, without reading them.

A batch of shuffled rows comes from many files at once. Gathering from each file and
putting the pieces together copies every row twice; from one array it is one copy.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence

import numpy as np

CAN_JOIN = sys.platform in ("linux", "darwin")
PAGE = mmap.ALLOCATIONGRANULARITY  # bytes; a file begins at a multiple of it

_MAP_FIXED = 0x10  # on both systems; Python's `mmap` cannot ask for a place


def joined(paths: Sequence[str], sizes: Sequence[int], stride: int) -> np.ndarray:
    """Maps files one behind the other; the pages are the page cache's own.

    Args:
        paths: The files. Whoever cuts one while it is mapped kills the process that
            reads behind its end.
        sizes: Their sizes, in bytes.
        stride: From where one file begins to where the next does, in bytes; a multiple
            of `PAGE`. What lies between must not be read.

    Returns:
        Bytes, of shape `(len(paths) * stride,)`. They must not be written to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def place(address: int | None, size: int, access: int, flags: int, fd: int) -> int:
        found: int = libc.mmap(address, size, access, flags, fd, 0)
        if found == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return found

    total = len(paths) * stride
    base = place(None, total, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    memory = (ctypes.c_ubyte * total).from_address(base)
    # Not when Python ends: threads of TensorFlow may still be reading then.
    weakref.finalize(memory, libc.munmap, base, total).atexit = False
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            place(
                base + i * stride,
                size,
                mmap.PROT_READ,
                mmap.MAP_SHARED | _MAP_FIXED,
                descriptor,
            )
        finally:
            os.close(descriptor)
    return np.ctypeslib.as_array(memory)
