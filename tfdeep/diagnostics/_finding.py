"""What a rule says about a layer."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from tfdeep._core._records import Record
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics._remedy import Remedy

# In the order in which one leads to another: what comes first is nearer the cause.
KINDS = (
    "bad_input",
    "bad_labels",
    "learning_rate",
    "output_mismatch",
    "axis_order",
    "frozen_but_trained",
    "input_scale",
    "target_scale",
    "equal_units",
    "poor_initialization",
    "linear_net",
    "heavy_dropout",
    "inference_gap",
    "update_too_large",
    "exploding_gradient",
    "saturated_units",
    "dead_units",
    "vanishing_gradient",
    "nonfinite",
    "no_gradient",
    "rank_collapse",
    "update_too_small",
    "loss_spike",
    "oscillating_loss",
    "slow_learning",
    "stalled",
    "overfitting",
)

SEVERITIES = ("critical", "warning")

_MOST_PARTS = 6  # layers, or ranges of layers, that a text names


Place = tuple[str, str]  # a kind, and the path of a layer


@dataclasses.dataclass(frozen=True)
class Finding(Record):
    """One problem of one layer.

    Attributes:
        kind: What it is; one of `tfdeep.diagnostics.KINDS`, or of a rule of your own.
        layer: Path of the layer; empty where it is the whole net.
        severity: "critical" if the layer cannot train like this, "warning" if it
            trains worse than it could.
        first_step: The first step at which it was seen.
        evidence: What was measured, as text.
        remedy: What helps, with the call that does it.
        explained_by: Kind and layer of the finding that this one follows from; None
            if it is a cause.
        explains: Kind and layer of each finding that follows from this one.
    """

    kind: str
    layer: str
    severity: str
    first_step: int
    evidence: str
    remedy: Remedy
    explained_by: Place | None = None
    explains: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "remedy", Remedy.of(self.remedy))

    @property
    def place(self) -> Place:
        """Kind and layer."""
        return self.kind, self.layer

    def __str__(self) -> str:
        where = self.layer or "the net"
        return f"{where}: {self.evidence} since step {self.first_step}; {self.remedy}"


def findings_table(
    findings: Sequence[Finding], layers: Sequence[LayerInfo] = ()
) -> str:
    """Findings as text: each cause, and in one line what follows from it.

    Args:
        findings: The findings, each cause followed by what follows from it.
        layers: The layers of the model, from the input to the output. Neighbors
            are then written as a range.
    """
    if not findings:
        return "Nothing found."
    parts = []
    told: set[Place] = set()
    for group in grouped([f for f in findings if f.explained_by is None]):
        parts.append(group_text(group, layers))
        follow = [f for f in findings if f.explained_by and f.place not in told]
        follow = [f for f in follow if f.place in group[0].explains]
        if follow:
            told.update(finding.place for finding in follow)
            parts.append(textwrap.indent(_follow_text(follow, layers), "  "))
    return "\n".join(parts)


def _follow_text(effects: Sequence[Finding], layers: Sequence[LayerInfo] = ()) -> str:
    """In one sentence, what follows from a cause."""
    kinds: dict[str, list[Finding]] = {}
    for finding in effects:
        kinds.setdefault(finding.kind, []).append(finding)
    parts = [f"{kind} at {_places(of, layers)}" for kind, of in kinds.items()]
    return textwrap.fill(f"From it follows {'; '.join(parts)}.", 76)


def group_text(group: Sequence[Finding], layers: Sequence[LayerInfo] = ()) -> str:
    """A group of findings as text.

    Args:
        group: Findings of the same kind and remedy, the worst first.
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
    """Puts findings of the same kind and remedy together, in each the worst first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.remedy.text), []).append(finding)
    return [sorted(group, key=severity_rank) for group in groups.values()]


def severity_rank(finding: Finding) -> int:
    """0 for the worst."""
    if finding.severity not in SEVERITIES:  # of your own rule
        return len(SEVERITIES)
    return SEVERITIES.index(finding.severity)


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
