"""Says, variable by variable, whether a model holds what a file holds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep.checkpoints._open import open as open_checkpoint
from tfdeep.checkpoints._plan import Rename, Transform, make_plan
from tfdeep.checkpoints._readers._limits import Limits
from tfdeep.checkpoints._targets import find_targets

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one variable of a model compares with a file.

    Attributes:
        path: The variable's path in the model.
        source: The names of its tensors in the file; empty if it has none.
        state: "equal" (to the last bit), "different" or "absent" (in the file).
        difference: The largest absolute difference of an entry, in units of the
            weight; NaN where there is none to take.
        reason: What does not fit, where values cannot be compared.
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
    targets = find_targets(model, include, exclude, transform, layout, optimizer)
    separator = "." if layout == "torch" else "/"
    entries = {}
    with open_checkpoint(source, limits=limits, allow_remote=allow_remote) as reader:
        wanted = targets.for_tensors(reader.variables)
        plan = make_plan(wanted, reader.variables, rename, separator, cast)
        for match in plan.matched:
            tensors = [reader.read(name) for name in match.sources]
            try:
                values = plan.converters[match.path](*tensors)
            except Exception as error:  # whatever a transform of the caller's raises
                entries[match.path] = Comparison(
                    match.path,
                    match.source,
                    "different",
                    np.nan,
                    f"its values: {error}",
                )
                continue
            own = np.asarray(targets.variables[match.path].numpy())
            entries[match.path] = _compared(match.path, match.source, own, values)
        for unfit in plan.mismatched:
            entries[unfit.path] = Comparison(
                unfit.path, unfit.source, "different", np.nan, unfit.reason
            )
        for path in plan.missing:
            entries[path] = Comparison(path, "", "absent", np.nan)
        return CompareReport(
            reader.source,
            reader.format,
            reader.integrity,
            tuple(entries[target.path] for target in targets.wanted),
            plan.unused,
        )


def _compared(path: str, source: str, own: np.ndarray, other: np.ndarray) -> Comparison:
    if own.shape == other.shape and own.tobytes() == other.tobytes():
        return Comparison(path, source, "equal", 0.0)
    if own.shape != other.shape:
        return Comparison(path, source, "different", np.nan, f"shape {other.shape}")
    wide = own.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        differences = np.abs(wide[0] - wide[1])
        known = differences[~np.isnan(differences)]
        difference = float(known.max()) if known.size else np.nan
    return Comparison(path, source, "different", difference)
