"""Compares a model with a file of weights, variable by variable."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep.checkpoints._apply import Restore
from tfdeep.checkpoints._matching import Transform
from tfdeep.checkpoints._names import Rename
from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.checkpoints._report import Match, Mismatch
from tfdeep.checkpoints._request import Request

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one variable of a model compares with a file.

    Attributes:
        path: The variable's path in the model.
        source: The names of its tensors in the file; empty if it has none.
        state: "equal" (to the last bit), "different" or "absent" (in the file).
        difference: The largest absolute difference of an entry, in units of the
            weight; NaN where values cannot be compared.
        reason: Why values cannot be compared.
    """

    path: str
    source: str
    state: str
    difference: float
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class CompareReport(Record):
    """How a model compares with a file. It prints as a table.

    Attributes:
        source: The file.
        format: What kind of file it is.
        integrity: "verified" if the file carries checksums, else "unverified".
        variables: One entry for each selected variable.
        unused: Names of tensors that no selected variable has.
    """

    source: str
    format: str
    integrity: str
    variables: tuple[Comparison, ...]
    unused: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every selected variable is equal to the last bit."""
        return all(entry.state == "equal" for entry in self.variables)

    def __str__(self) -> str:
        count = sum(entry.state == "equal" for entry in self.variables)
        rows: list[Sequence[object]] = [
            (
                entry.path,
                entry.state,
                "" if np.isnan(entry.difference) else f"{entry.difference:.3g}",
                entry.reason or entry.source,
            )
            for entry in self.variables
        ]
        return render_table(
            f"{count} of {len(rows)} variables equal {self.source}\n"
            f"({self.format}, {self.integrity})",
            ["variable", "", "difference", "in the file"],
            shorten(rows, _MOST_ROWS),
            align="llrl",
        )


def compare(
    model: Any,
    source: str | os.PathLike[str],
    include: Patterns = None,
    exclude: Patterns = None,
    rename: Rename = None,
    transform: Transform = None,
    layout: str | None = None,
    cast: bool = False,
    optimizer: bool = False,
    limits: Limits | None = None,
    allow_remote: bool = False,
) -> CompareReport:
    """Says of each variable whether it equals what a file holds; changes nothing.

    Use it to verify a restore, or to see what fine-tuning has changed.

    Args:
        model: A built model.
        source: A file or directory of weights; see `tfdeep.checkpoints.open`.
        include: As in `tfdeep.restore`, like the rest.
        exclude: See `tfdeep.restore`.
        rename: See `tfdeep.restore`.
        transform: See `tfdeep.restore`.
        layout: See `tfdeep.restore`.
        cast: See `tfdeep.restore`.
        optimizer: See `tfdeep.restore`.
        limits: See `tfdeep.restore`.
        allow_remote: See `tfdeep.restore`.

    Returns:
        A `CompareReport`, which prints as a table.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3], num_outputs=2)
    >>> model.save_weights(tmp_path / "net.weights.h5")
    >>> tfdeep.checkpoints.compare(model, tmp_path / "net.weights.h5").is_equal
    True
    """
    request = Request(
        model=model,
        source=source,
        include=include,
        exclude=exclude,
        rename=rename,
        transform=transform,
        layout=layout,
        cast=cast,
        optimizer=optimizer,
        limits=limits,
        allow_remote=allow_remote,
    )
    with Restore.opened(request) as ready:
        reader, matching = ready.reader, ready.matching
        entries = {}
        for match in matching.matched:
            tensors = [reader.read(name) for name in match.sources]
            own = np.asarray(ready.variables[match.path].numpy())
            try:
                values = matching.converters[match.path](*tensors)
            except Exception as error:  # whatever a transform of the caller's raises
                reason = f"its values: {error}"
                entries[match.path] = _different(match, reason)
            else:
                entries[match.path] = _compared(match, own, values)
        for unfit in matching.mismatched:
            entries[unfit.path] = _different(unfit, unfit.reason)
        for path in matching.missing:
            entries[path] = Comparison(path, "", "absent", np.nan)
        return CompareReport(
            reader.source,
            reader.format,
            reader.integrity,
            tuple(entries[path] for path in ready.variables if path in entries),
            matching.unused,
        )


def _different(pair: Match | Mismatch, reason: str) -> Comparison:
    return Comparison(pair.path, pair.source, "different", np.nan, reason)


def _compared(match: Match, own: np.ndarray, other: np.ndarray) -> Comparison:
    if own.shape != other.shape:
        return _different(match, f"shape {other.shape}")
    if own.tobytes() == other.tobytes():
        return Comparison(match.path, match.source, "equal", 0.0)
    with np.errstate(invalid="ignore"):
        differences = np.abs(own.astype(np.float64) - other.astype(np.float64))
    known = differences[~np.isnan(differences)]
    difference = float(known.max()) if known.size else np.nan
    return Comparison(match.path, match.source, "different", difference)
