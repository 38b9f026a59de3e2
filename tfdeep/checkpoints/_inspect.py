"""Lists what a file of weights holds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from tfdeep._core import _paths
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, human_bytes, render_table, shorten
from tfdeep.checkpoints._names import pattern_over_paths
from tfdeep.checkpoints._open import open as open_checkpoint
from tfdeep.checkpoints._readers._tensors import TensorInfo

_MOST_ROWS = 200


@dataclasses.dataclass(frozen=True)
class InspectReport(Record):
    """The tensors of a file. It prints as a table.

    Attributes:
        source: The file.
        format: What kind of file it is.
        integrity: "verified" if the file carries checksums, else "unverified".
        variables: The selected tensors, in the file's order.
    """

    source: str
    format: str
    integrity: str
    variables: tuple[TensorInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python values."""
        values = super().to_dict()
        for entry, info in zip(values["variables"], self.variables, strict=True):
            entry["bytes"] = info.nbytes
        return values

    def __str__(self) -> str:
        total = human_bytes(sum(info.nbytes for info in self.variables))
        rows: list[Sequence[object]] = [
            (i.name, i.shape, i.dtype, human_bytes(i.nbytes)) for i in self.variables
        ]
        return render_table(
            f"{len(rows)} tensors, {total}, in {self.source}\n"
            f"({self.format}, {self.integrity})",
            ["name", "shape", "dtype", "size"],
            shorten(rows, _MOST_ROWS),
            align="lllr",
        )


def inspect(
    source: str | os.PathLike[str],
    include: Patterns = None,
    exclude: Patterns = None,
    allow_remote: bool = False,
) -> InspectReport:
    """Lists the tensors of a file, by the names that the file has for them.

    Patterns match whole components of these names, whether the file has dots or
    slashes between components.
    """
    with open_checkpoint(source, allow_remote=allow_remote) as reader:
        tensors = reader.variables
        if include is not None or exclude is not None:
            paths = [info.path for info in tensors]
            include, exclude = _over_paths(include), _over_paths(exclude)
            chosen = set(_paths.select(paths, include, exclude, what="tensor"))
            tensors = [info for info in tensors if info.path in chosen]
        return InspectReport(
            reader.source, reader.format, reader.integrity, tuple(tensors)
        )


def _over_paths(patterns: Patterns) -> Patterns:
    if patterns is None:
        return None
    return [pattern_over_paths(pattern) for pattern in _paths.as_patterns(patterns)]
