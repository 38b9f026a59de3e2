"""A summary of the gradients that were recorded in a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfdeep._core._records import Record, counted, render_table, short_number, shorten
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics._causes import causes
from tfdeep.diagnostics._finding import Finding, findings_table
from tfdeep.diagnostics.rules._measures import median

History = Mapping[str, Mapping[str, np.ndarray]]

_MOST_ROWS = 60


@dataclasses.dataclass(frozen=True)
class VariableSummary:
    """The recorded gradients of one variable over a run.

    The kept steps are those in the history. A long run keeps only some of its steps,
    most of them from its beginning and its end.

    Attributes:
        path: The variable's path in its model.
        norm_at_start: Median L2 norm over the first tenth of the kept steps.
        norm_at_end: Median L2 norm over the last tenth of them.
        largest_norm: The largest finite L2 norm of any of them.
        clipped_fraction: Fraction of those with a gradient whose gradient was
            shortened.
        update_ratio: Median of update norm over weight norm.
        nonfinite_steps: Number of kept steps whose gradient has no finite norm.
        first_nonfinite_step: The first of them, or None.
        steps_with_gradient: Number of kept steps that had a gradient at all.
    """

    path: str
    norm_at_start: float
    norm_at_end: float
    largest_norm: float
    clipped_fraction: float
    update_ratio: float
    nonfinite_steps: int
    first_nonfinite_step: int | None
    steps_with_gradient: int


@dataclasses.dataclass(frozen=True)
class MonitorReport(Record):
    """What a `GradientMonitor` recorded, summed up by variable.

    Attributes:
        steps: Number of steps of the run.
        variables: One summary a variable, from the input to the output.
        remarks: What stands out, as text.
        findings: What the rules found: each cause, then what follows from it.
    """

    steps: int
    variables: tuple[VariableSummary, ...]
    remarks: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    # From the input to the output, to print findings at neighbors as ranges.
    _layers: tuple[LayerInfo, ...] = dataclasses.field(
        default=(), repr=False, compare=False
    )

    @property
    def causes(self) -> tuple[Finding, ...]:
        """Those of the findings that follow from no other, the likeliest first."""
        return causes(self.findings)

    def __str__(self) -> str:
        rows = [
            (
                v.path,
                short_number(v.norm_at_start),
                short_number(v.norm_at_end),
                short_number(v.largest_norm),
                f"{v.clipped_fraction:.0%}",
                short_number(v.update_ratio),
            )
            for v in self.variables
        ]
        table = render_table(
            f"Gradients over {counted(self.steps, 'step')}",
            ["variable", "norm, start", "end", "largest", "clipped", "update/weight"],
            shorten(rows, _MOST_ROWS),
            notes=self.remarks,
            align="lrrrrr",
        )
        return f"{findings_table(self.findings, self._layers)}\n\n{table}"


def summarize(history: History, steps: np.ndarray | None = None) -> MonitorReport:
    """Sums up recorded gradients, for a table or for your own rules.

    Args:
        history: `GradientMonitor.history`: by variable, the arrays `norm`,
            `clipped_norm`, `largest_entry` (in gradient units) and `update_ratio`,
            one value a step.
        steps: The numbers of the steps, if not every step is there. Defaults to 0, 1,
            2, ...

    Returns:
        A `MonitorReport`, which prints as a table.

    Example:

    >>> norm = np.array([4.0, 2.0, 1.0, 1.0])
    >>> ratio = np.full(4, 1e-3)
    >>> report = tfdeep.diagnostics.summarize(
    ...     {"hidden1/kernel": {
    ...         "norm": norm,
    ...         "clipped_norm": np.minimum(norm, 2.0),
    ...         "largest_entry": norm / 2,
    ...         "update_ratio": ratio,
    ...     }}
    ... )
    >>> summary = report.variables[0]
    >>> summary.norm_at_start, summary.norm_at_end, summary.clipped_fraction
    (4.0, 1.0, 0.25)
    """
    rows = max((len(r["norm"]) for r in history.values() if "norm" in r), default=0)
    if steps is None:
        steps = np.arange(rows)
    summaries = tuple(_summary(path, r, steps) for path, r in history.items())
    total = int(steps[-1]) + 1 if len(steps) else 0
    return MonitorReport(total, summaries, tuple(_remarks(summaries, rows)))


def _summary(
    path: str, recorded: Mapping[str, np.ndarray], steps: np.ndarray
) -> VariableSummary:
    nothing = np.empty(0, np.float32)
    norm = recorded.get("norm", nothing)
    clipped = recorded.get("clipped_norm", nothing)
    tenth = max(len(norm) // 10, 1)
    nonfinite = np.flatnonzero(np.isinf(norm))
    with np.errstate(invalid="ignore"):
        # A float32 norm is good to about 1e-7; a gradient of exactly the clip norm
        # was not shortened.
        shortened = clipped < norm * (1 - 1e-5)
    known = ~np.isnan(norm)
    return VariableSummary(
        path=path,
        norm_at_start=float(median(norm[:tenth])),
        norm_at_end=float(median(norm[-tenth:])),
        largest_norm=float(np.max(norm[np.isfinite(norm)], initial=0.0)),
        clipped_fraction=float(shortened[known].mean()) if known.any() else 0.0,
        update_ratio=float(median(recorded.get("update_ratio", nothing))),
        nonfinite_steps=len(nonfinite),
        first_nonfinite_step=int(steps[nonfinite[0]]) if len(nonfinite) else None,
        steps_with_gradient=int(known.sum()),
    )


def _remarks(summaries: tuple[VariableSummary, ...], rows: int) -> list[str]:
    remarks = []
    silent = [s.path for s in summaries if rows and not s.steps_with_gradient]
    if silent:
        remarks.append(f"No gradient at any step: {', '.join(silent)}.")
    broken = [s for s in summaries if s.first_nonfinite_step is not None]
    if broken:
        first = min(broken, key=lambda s: s.first_nonfinite_step or 0)
        remarks.append(
            f"Gradients whose norm is not finite, first in {first.path} at step "
            f"{first.first_nonfinite_step}."
        )
    kernels = [s for s in summaries if s.path.endswith("kernel") and s.norm_at_end > 0]
    if len(kernels) > 1:
        weakest = min(kernels, key=lambda s: s.norm_at_end)
        strongest = max(kernels, key=lambda s: s.norm_at_end)
        remarks.append(
            f"At the end {weakest.path} has the smallest gradient of the kernels, "
            f"{strongest.norm_at_end / weakest.norm_at_end:.3g} times smaller than "
            f"that of {strongest.path}."
        )
    return remarks
