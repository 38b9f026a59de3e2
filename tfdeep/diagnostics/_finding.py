"""What a rule says of a layer."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from tfdeep._core._records import Record

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


@dataclasses.dataclass(frozen=True)
class Finding(Record):
    """One illness of one layer.

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
        evidence: What was measured, in words and numbers.
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


def findings_table(findings: Sequence[Finding]) -> str:
    """Findings for people: neighbouring layers of one kind together."""
    if not findings:
        return "Nothing found."
    return "\n".join(group_text(group) for group in grouped(findings))


def group_text(group: Sequence[Finding]) -> str:
    """What a group of findings says, for people."""
    first = group[0]
    where = first.layer or "the net"
    if len(group) > 1:
        where = f"{first.layer} ... {group[-1].layer} ({len(group)} layers)"
    since = min(finding.first_step for finding in group)
    return (
        f"{first.severity}: {first.kind} at {where}, since step {since}\n"
        + textwrap.indent(
            textwrap.fill(f"{first.evidence}.", 76)
            + "\n"
            + textwrap.fill(f"To mend: {first.remedy}.", 76),
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
