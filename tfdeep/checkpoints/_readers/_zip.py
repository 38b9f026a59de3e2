"""Reads members of a zip archive without trusting its table of contents.

Python's `zipfile` reads the table of contents. Members are not extracted: names are
keys, never paths.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zipfile
import zlib

import numpy as np
from zlib_ng import zlib_ng

from tfdeep.checkpoints._readers._checks import DEFLATE, Checks
from tfdeep.checkpoints._readers._reader import Closeable, empty_bytes, fill
from tfdeep.errors import UnsafeFileError

_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED, _UTF_8 = 0x1, 0x800
_CHUNK = 1 << 22
_LONGEST_TAIL = 22 + 65_535  # the end record, and the longest comment behind it

_LISTING_FAULTS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError),
    *(NotImplementedError, struct.error, OverflowError, RuntimeError),
)


def member_names(source: str, limit: int) -> list[str]:
    """The first names in an archive; empty if it cannot be listed."""
    try:
        with zipfile.ZipFile(source) as archive:
            return archive.namelist()[:limit]
    except _LISTING_FAULTS:
        return []


@dataclasses.dataclass(frozen=True)
class Member:
    """One member of an archive.

    It takes `stored` bytes from `offset` on, and has `size` bytes when it is inflated.
    Its CRC-32 is None if the archive has none.
    """

    name: str
    offset: int
    stored: int
    size: int
    is_compressed: bool
    crc: int | None


class Archive(Closeable):
    """The members of a zip archive.

    Args:
        checks: The checks of the file.

    Attributes:
        members: The members by name, in the archive's order.
    """

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        try:
            with zipfile.ZipFile(checks.source) as archive:
                infos = archive.infolist()
        except _LISTING_FAULTS as error:
            raise checks.damaged(error) from error
        if not infos:
            raise checks.damaged("it has no members")
        checks.count("members", len(infos))
        self._file = open(checks.source, "rb")  # noqa: SIM115 - closed by `close`
        with self.closed_on_error():
            self._size = os.fstat(self._file.fileno()).st_size
            self.members: dict[str, Member] = {}
            for info in infos:
                if info.filename in self.members:
                    raise self._unsafe(f"two members called {info.filename!r}")
                self.members[info.filename] = self._member(info)
            self._check_overlap(infos)
            self._check_count(len(infos))

    def _member(self, info: zipfile.ZipInfo) -> Member:
        name = info.filename
        if info.flag_bits & _ENCRYPTED:
            raise self._unsafe(f"{name!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._unsafe(f"{name!r} is packed by method {info.compress_type}")
        if info.volume:
            raise self._unsafe(f"{name!r} is on another disk")
        is_compressed = info.compress_type == zipfile.ZIP_DEFLATED
        most = info.compress_size * (DEFLATE if is_compressed else 1)
        if info.file_size > most or (
            not is_compressed and info.file_size != info.compress_size
        ):
            raise self._unsafe(
                f"{name!r} of {info.compress_size} bytes declares {info.file_size}"
            )
        header = self._bytes_at(info.header_offset, _LOCAL.size)
        signature, *_, name_length, extra_length = _LOCAL.unpack(header)
        if signature != b"PK\x03\x04":
            raise self._checks.damaged(f"no member begins at byte {info.header_offset}")
        offset = info.header_offset + _LOCAL.size
        raw = self._bytes_at(offset, name_length)
        encoding = "utf-8" if info.flag_bits & _UTF_8 else "cp437"
        if raw.decode(encoding, "replace") != info.orig_filename:
            # No checksum covers a name, but it is stored in two places.
            raise self._checks.damaged(f"{name!r} has another name in its own header")
        offset += name_length + extra_length
        if offset + info.compress_size > self._size:
            raise self._checks.damaged(f"{name!r} ends after the end of the file")
        # Some writers leave the CRC out, which then reads as zero.
        crc = info.CRC if info.CRC or not info.file_size else None
        return Member(
            name, offset, info.compress_size, info.file_size, is_compressed, crc
        )

    def _check_overlap(self, infos: list[zipfile.ZipInfo]) -> None:
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            member = self.members[info.filename]
            if info.header_offset < end:
                raise self._unsafe(f"{info.filename!r} lies within another member")
            end = member.offset + member.stored

    def _check_count(self, count: int) -> None:
        """Raises if the end of the archive names another number of members.

        Python reads what the table of contents seems to hold, which damage may cut.
        """
        tail_size = min(self._size, _LONGEST_TAIL)
        tail = self._bytes_at(self._size - tail_size, tail_size)
        place = tail.rfind(b"PK\x05\x06")
        said = int.from_bytes(tail[place + 10 : place + 12], "little")
        if said != min(count, 0xFFFF):  # larger archives store it elsewhere
            raise self._checks.damaged(f"it has {count} members but declares {said}")

    def read(self, name: str) -> np.ndarray:
        """All bytes of a member, whose CRC is checked."""
        member = self.members[name]
        if member.is_compressed:
            packed = self._bytes_at(member.offset, member.stored)
            unpacked = self._unpacked(name, packed, member.size + 1)
            values = np.frombuffer(unpacked, np.uint8)
        else:
            values = self._values_at(member.offset, member.size)
        if len(values) != member.size:
            raise self._checks.damaged(f"{name!r} does not have {member.size} bytes")
        self._check_crc(member, zlib_ng.crc32(values.data))
        return values

    def read_start(self, name: str, count: int) -> bytes:
        """At most the first `count` bytes of a member, unchecked."""
        member = self.members[name]
        values = self._bytes_at(member.offset, min(member.stored, count))
        return self._unpacked(name, values, count) if member.is_compressed else values

    def check(self, name: str) -> None:
        """Checks the CRC of a stored member, without keeping its bytes."""
        member, crc = self.members[name], 0
        for start in range(0, member.stored, _CHUNK):
            count = min(_CHUNK, member.stored - start)
            part = self._values_at(member.offset + start, count)
            crc = zlib_ng.crc32(part.data, crc)
        self._check_crc(member, crc)

    def _check_crc(self, member: Member, crc: int) -> None:
        if member.crc is not None and crc != member.crc:
            raise self._checks.damaged(f"{member.name!r} does not match its checksum")

    def close(self) -> None:
        """Closes the archive."""
        self._file.close()

    def _unpacked(self, name: str, packed: bytes, count: int) -> bytes:
        """Inflates at most `count` bytes of a member."""
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, count)
        except zlib.error as error:
            raise self._checks.damaged(f"{name!r}: {error}") from error

    def _bytes_at(self, offset: int, count: int) -> bytes:
        return self._values_at(offset, count).tobytes()

    def _values_at(self, offset: int, count: int) -> np.ndarray:
        if offset < 0 or offset + count > self._size:
            raise self._checks.damaged("it ends too soon")
        values = empty_bytes(count)
        if not fill(self._file, offset, values):
            raise self._checks.damaged("it ends too soon")
        return values

    def _unsafe(self, reason: str) -> UnsafeFileError:
        return self._checks.unsafe(
            "This archive has features that no program uses to save weights.",
            reason,
            "plain members, stored or deflated, one after the other",
        )
