"""What `restore` and `plan_restore` report: plain values that print as a table."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdeep._core._explain import listing
from tfdeep._core._records import Record, counted, render_table, shorten
from tfdeep.checkpoints._torch_layout import Conversion

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is done to values between the file and the variable.

    Attributes:
        conversion: How the layout of another framework is changed into Keras'.
        transformed: Whether a function from `transform=` is applied.
        cast_from: The dtype in the file, if it is converted; else empty.
    """

    conversion: Conversion = Conversion.NONE
    transformed: bool = False
    cast_from: str = ""


@dataclasses.dataclass(frozen=True)
class Match:
    """A variable and what fills it.

    Attributes:
        path: The variable's path in the model.
        sources: The names of its tensors in the file; nearly always one.
        renamed: The path that `rename` or a common prefix gives the first of them, or
            None if it is the tensor's own.
        shape: The variable's shape.
        dtype: The variable's dtype.
        steps: What is done to the values.
        note: The same in words: "transposed", "cast from float64"; empty if nothing is.
    """

    path: str
    sources: tuple[str, ...]
    renamed: str | None
    shape: tuple[int, ...]
    dtype: str
    steps: Steps
    note: str

    @property
    def source(self) -> str:
        """The names of its tensors as one text."""
        return " + ".join(self.sources)


class MismatchKind(str, enum.Enum):
    """Why a tensor does not fit the variable of its name."""

    LAYER_CLASS = "layer_class"
    LAYER_VARIABLES = "layer_variables"
    SHARED = "shared"
    SHAPE = "shape"
    CONVERSION = "conversion"
    DTYPE = "dtype"
    NEEDS_CAST = "needs_cast"
    VALUES = "values"
    NONFINITE = "nonfinite"


_REASONS = {
    MismatchKind.LAYER_CLASS: "the file's layer is a {0}, the model's is a {1}",
    MismatchKind.LAYER_VARIABLES: "the file's layer has {0} variables, the model's "
    "has {1}",
    MismatchKind.SHARED: "{0} already fills {1}",
    MismatchKind.SHAPE: "shape {0} in the file, {1} in the model",
    MismatchKind.CONVERSION: "shape {0} in the file: {1}",
    MismatchKind.DTYPE: "dtype {0} in the file, {1} in the model",
    MismatchKind.NEEDS_CAST: "dtype {0} in the file, {1} in the model "
    "(`cast=True` converts)",
    MismatchKind.VALUES: "its values: {0}",
    MismatchKind.NONFINITE: "{0} NaN or infinite values",
}


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A variable and the tensor of its name, which does not fit.

    Attributes:
        path: The variable's path in the model.
        source: The names of its tensors in the file.
        kind: What differs.
        found: What the file has there: a class, a count, a shape, a dtype or an error.
        wanted: What the model has there; empty if nothing is to be compared.
    """

    path: str
    source: str
    kind: MismatchKind
    found: str
    wanted: str = ""

    @property
    def reason(self) -> str:
        """What differs, in words."""
        return _REASONS[self.kind].format(self.found, self.wanted)


@dataclasses.dataclass(frozen=True)
class Probe:
    """The model's outputs for a batch, before and after it was restored.

    Attributes:
        before: Its outputs before, one array each.
        after: Its outputs after.
    """

    before: tuple[np.ndarray, ...]
    after: tuple[np.ndarray, ...]

    @property
    def largest_change(self) -> float:
        """The largest absolute difference of an entry."""
        pairs = zip(self.before, self.after, strict=True)
        changes = [np.abs(np.subtract(a, b, dtype=np.float64)) for a, b in pairs]
        return max((float(change.max(initial=0)) for change in changes), default=0.0)


@dataclasses.dataclass(frozen=True)
class RestoreReport(Record):
    """What was restored, and what was not.

    It prints as a table. `to_json()` is a plan that `restore(plan=...)` follows.

    Attributes:
        source: The file.
        format: What kind of file it is.
        integrity: "verified" if the file carries checksums, else "unverified".
        restored: The variables that were filled (with `dry_run`, that would be).
        missing: Paths of selected variables that the file has no tensor for.
        mismatched: Selected variables whose tensor does not fit.
        unused: Names of tensors that no selected variable uses.
        dry_run: True if nothing was changed.
        probe: The model's outputs for `probe=`, before and after; None without.
        failure: Why the call is refused (with `dry_run`, would be); else empty.
    """

    source: str
    format: str
    integrity: str
    restored: tuple[Match, ...]
    missing: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]
    dry_run: bool
    probe: Probe | None = None
    failure: str = ""

    @property
    def renamed(self) -> tuple[Match, ...]:
        """The entries of `restored` whose name in the file differs from the model's."""
        return tuple(match for match in self.restored if match.renamed is not None)

    @property
    def transformed(self) -> tuple[Match, ...]:
        """The entries of `restored` whose values are changed on their way."""
        return tuple(match for match in self.restored if match.steps != Steps())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python values; of a probe, the largest change."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(RestoreReport)
        }
        values["restored"] = [dataclasses.asdict(match) for match in self.restored]
        values["mismatched"] = [
            {**dataclasses.asdict(mismatch), "reason": mismatch.reason}
            for mismatch in self.mismatched
        ]
        if self.probe is not None:
            values["probe"] = {"largest_change": self.probe.largest_change}
        return values

    def __str__(self) -> str:
        done = "Would restore" if self.dry_run else "Restored"
        done = f"{done} {counted(len(self.restored), 'variable')}"
        if self.failure:
            done = f"Would fail: {self.failure}"
        rows: list[Sequence[object]] = [
            (m.path, m.shape, m.dtype, f"{m.source} ({m.note})" if m.note else m.source)
            for m in self.restored
        ]
        rows += [(path, "", "", "missing in the file") for path in self.missing]
        rows += [(m.path, "", "", f"does not fit: {m.reason}") for m in self.mismatched]
        notes = []
        if self.unused:
            notes.append(f"not used: {listing(self.unused, limit=6)}")
        if self.probe is not None:
            change = self.probe.largest_change
            notes.append(f"outputs of the probe changed by up to {change:.3g}")
        return render_table(
            f"{done} from {self.source}\n({self.format}, {self.integrity})",
            ["variable", "shape", "dtype", "from"],
            shorten(rows, _MOST_ROWS),
            notes=notes,
        )
