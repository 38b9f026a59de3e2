"""What a cache directory holds; checking it and removing from it."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence

from tfdeep._core._explain import explain, listing
from tfdeep._core._files import directory_at
from tfdeep._core._records import Record, counted, human_bytes, render_table
from tfdeep.errors import CacheError, CorruptCacheError
from tfdeep.transfer._shards import CacheEntry, Entry, entries

_KEY_SHOWN = 10  # characters of a key that tell entries apart


@dataclasses.dataclass(frozen=True)
class CacheListing(Record):
    """The entries of a cache directory.

    Attributes:
        cache_dir: The directory.
        entries: What it holds, by key.
        problems: By key, what `verify_cache` found to be damaged.
    """

    cache_dir: str
    entries: tuple[CacheEntry, ...]
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all entries, in bytes."""
        return sum(entry.bytes for entry in self.entries)

    def __str__(self) -> str:
        count = counted(len(self.entries), "entry", "entries")
        notes = [text for _, text in sorted(self.problems.items())]
        if not self.entries:
            notes.append("Nothing in this directory was made by `cache_frozen`.")
        return render_table(
            f"{self.cache_dir}: {count}, {human_bytes(self.bytes)}",
            ["key", "state", "examples", "size", "made", "frozen part"],
            [_row(entry) for entry in self.entries],
            notes=notes,
            align="llrrll",
        )


def list_cache(cache_dir: str | os.PathLike[str]) -> CacheListing:
    """Lists what `cache_frozen` has left in a directory. Examples are not read.

    Args:
        cache_dir: The directory that was given to `cache_frozen`.

    Returns:
        A `tfdeep.transfer.CacheListing`, which prints as a table.

    Raises:
        CacheError: If there is no such directory.

    Example:

    >>> tfdeep.transfer.list_cache(tmp_path).entries
    ()
    """
    if not directory_at(os.fspath(cache_dir)).exists():
        raise CacheError(
            explain(
                "There is no such cache.",
                received=f"{os.fspath(cache_dir)!r}, which is not a directory",
                expected="the `cache_dir` of `cache_frozen`",
                fix="check the path; nothing was changed",
            )
        )
    return CacheListing(os.fspath(cache_dir), entries(cache_dir))


def verify_cache(
    cache_dir: str | os.PathLike[str], keys: Sequence[str] = ()
) -> CacheListing:
    """Reads every byte of chosen entries and compares it with its checksum.

    Args:
        cache_dir: The directory that was given to `cache_frozen`.
        keys: Their keys, or the first characters of them; none means all entries.

    Returns:
        A `tfdeep.transfer.CacheListing` whose `problems` say what is damaged.

    Raises:
        CacheError: If there is no such directory or entry.

    Example:

    >>> tfdeep.transfer.verify_cache(tmp_path).problems
    {}
    """
    found, problems = [], {}
    for entry in _chosen(cache_dir, keys):
        try:
            Entry(cache_dir, entry.key).verify()
        except CorruptCacheError as error:
            problems[entry.key] = str(error)
            entry = dataclasses.replace(entry, state="damaged")
        found.append(entry)
    return CacheListing(os.fspath(cache_dir), tuple(found), problems)


def remove_cache(
    cache_dir: str | os.PathLike[str], keys: Sequence[str] = ()
) -> CacheListing:
    """Removes chosen entries, finished or not, damaged or whole.

    Args:
        cache_dir: The directory that was given to `cache_frozen`.
        keys: Their keys, or the first characters of them; none means all entries.

    Returns:
        A `tfdeep.transfer.CacheListing` of what was removed.

    Raises:
        CacheError: If there is no such directory or entry, or it holds other files.

    Example:

    >>> tfdeep.transfer.remove_cache(tmp_path).bytes
    0
    """
    chosen = _chosen(cache_dir, keys)
    for entry in chosen:
        Entry(cache_dir, entry.key).remove()
    return CacheListing(os.fspath(cache_dir), chosen)


def _chosen(
    cache_dir: str | os.PathLike[str], keys: Sequence[str]
) -> tuple[CacheEntry, ...]:
    entries = list_cache(cache_dir).entries
    known = [entry.key for entry in entries]
    chosen = {_completed(key, known) for key in keys} if keys else set(known)
    return tuple(entry for entry in entries if entry.key in chosen)


def _completed(start: str, known: Sequence[str]) -> str:
    found = [key for key in known if start and key.startswith(start)]
    if len(found) != 1:
        raise CacheError(
            explain(
                "This is not the key of one entry.",
                received=f"{start!r}, with which {len(found)} keys begin",
                expected=f"one of {listing(key[:_KEY_SHOWN] for key in known)}",
                fix="`tfdeep cache ls` shows the keys; nothing was changed",
            )
        )
    return found[0]


def _row(entry: CacheEntry) -> tuple[str, ...]:
    told = {k: str(entry.description.get(k, "?")) for k in ("model", "boundary")}
    made = datetime.datetime.fromtimestamp(entry.created) if entry.created else None
    shards = f" {entry.shards_done}/{entry.shards}" if entry.state == "partial" else ""
    return (
        entry.key[:_KEY_SHOWN],
        entry.state + shards,
        f"{entry.rows:,}" if entry.rows else "?",
        human_bytes(entry.bytes),
        f"{made:%Y-%m-%d}" if made else "",
        f"{told['model']} to {told['boundary']}" if entry.description else "",
    )
