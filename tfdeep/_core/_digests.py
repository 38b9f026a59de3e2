"""Digests and checksums of text, bytes and arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from zlib_ng import zlib_ng


def bytes_of(values: np.ndarray) -> memoryview:
    """The bytes of an array in C order, without a copy if it is in that order.

    Of text, the bytes of each string and where it ends.
    """
    if values.dtype == object:
        texts = [bytes(text) for text in values.ravel()]
        ended = (len(text).to_bytes(8, "little") + text for text in texts)
        return memoryview(b"".join(ended))
    flat: np.ndarray = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).data


def digest(*parts: str | bytes | memoryview) -> str:
    """SHA-256 of the parts and of where each ends, in hexadecimal digits.

    >>> digest("a", "bc") == digest("ab", "c")
    False
    """
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def digest_of(values: Any) -> str:
    """The digest of an array: of its dtype, its shape and every bit of its values."""
    array = np.asarray(values)
    return digest(str(array.dtype), str(array.shape), bytes_of(array))


def crc32(data: Any, start: int = 0) -> int:
    """CRC-32 of bytes, as a continuation of the CRC-32 of what came before them.

    >>> crc32(b"bc", crc32(b"a")) == crc32(b"abc")
    True
    """
    return int(zlib_ng.crc32(data, start))
