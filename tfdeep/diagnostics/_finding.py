"""What a rule says about a layer."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from tfdeep._core._records import Record
from tfdeep._keras._architecture import LayerInfo

KINDS = (
    "nonfinite",
    "no_gradient",
    "frozen_but_trained",
    "dead_units",
    "saturated_units",
    "exploding_gradient",
    "vanishing_gradient",
    "poor_initialization",
    "input_scale",
    "rank_collapse",
    "update_too_large",
    "update_too_small",
    "loss_spike",
    "stalled",
)

SEVERITIES = ("critical", "warning")

_MOST_PARTS = 6  # layers, or ranges of layers, that a text names


@dataclasses.dataclass(frozen=True)
class Finding(Record):
    """One problem of one layer.

    Attributes:
        kind: What it is; one of "nonfinite", "no_gradient",
            "frozen_but_trained", "dead_units", "saturated_units",
            "exploding_gradient", "vanishing_gradient", "poor_initialization",
            "input_scale", "rank_collapse", "update_too_large", "update_too_small",
            "loss_spike" and "stalled".
        layer: Path of the layer; empty where it is the whole net.
        severity: "critical" if the layer cannot train like this, "warning" if it
            trains worse than it could.
        first_step: The first step at which it was seen.
        evidence: What was measured, as text.
        remedy: What helps, with the call that does it.
    """

    kind: str
    layer: str
    severity: str
    first_step: int
    evidence: str
    remedy: str

    def __str__(self) -> str:
        where = self.layer or "the net"
        return f"{where}: {self.evidence} since step {self.first_step}; {self.remedy}"


def findings_table(
    findings: Sequence[Finding], layers: Sequence[LayerInfo] = ()
) -> str:
    """Findings as text; layers with the same problem are told together.

    Args:
        findings: The findings, in the order in which to print them.
        layers: The layers of the model, from the input to the output. Neighbors
            are then written as a range.
    """
    if not findings:
        return "Nothing found."
    return "\n".join(group_text(group, layers) for group in grouped(findings))


def group_text(group: Sequence[Finding], layers: Sequence[LayerInfo] = ()) -> str:
    """A group of findings as text.

    Args:
        group: Findings of the same kind, severity and remedy.
        layers: As for `findings_table`.
    """
    first = group[0]
    where = _place(first)
    evidence = first.evidence
    count = len({finding.layer for finding in group})
    if count > 1:
        # Do not claim for all layers what was measured at one.
        if any(finding.evidence != evidence for finding in group):
            evidence = f"{where}: {evidence}"
        where = f"{_places(group, layers)} ({count} layers)"
    since = min(finding.first_step for finding in group)
    return (
        f"{first.severity}: {first.kind} at {where}, since step {since}\n"
        + textwrap.indent(
            textwrap.fill(f"{evidence}.", 76)
            + "\n"
            + textwrap.fill(f"Fix: {first.remedy}.", 76),
            "  ",
        )
    )


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Puts findings of the same kind, severity and remedy together."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        key = (finding.kind, finding.severity, finding.remedy)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def neighbors(
    findings: Sequence[Finding], layers: Sequence[LayerInfo]
) -> list[list[Finding]]:
    """Sorts findings from input to output, and splits them where layers lie between.

    Args:
        findings: Some findings of one kind.
        layers: The layers of the model, from the input to the output. Others are
            not neighbors of any.
    """
    # Layers with kernels are neighbors with an activation between them, too.
    sick = {finding.layer for finding in findings}
    order = [x.path for x in layers if x.kernel or x.path in sick]
    place = {path: i for i, path in enumerate(order)}
    last: int | None = None
    runs: list[list[Finding]] = []
    for finding in sorted(findings, key=lambda f: place.get(f.layer, -1)):
        here = place.get(finding.layer)
        if last is not None and here is not None and here - last <= 1:
            runs[-1].append(finding)
        else:
            runs.append([finding])
        last = here
    return runs


def _place(finding: Finding) -> str:
    return finding.layer or "the net"


def _places(group: Sequence[Finding], layers: Sequence[LayerInfo]) -> str:
    """Names the layers of a group: "h1 ... h7, h9"."""
    parts: list[str] = []
    for run in neighbors(group, layers):
        names = list(dict.fromkeys(_place(finding) for finding in run))
        parts += [f"{names[0]} ... {names[-1]}"] if len(names) > 2 else names
    parts = list(dict.fromkeys(parts))
    shown = ", ".join(parts[:_MOST_PARTS])
    return shown if len(parts) <= _MOST_PARTS else f"{shown}, ..."
