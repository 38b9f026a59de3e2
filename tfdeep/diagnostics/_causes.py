"""Which finding follows from which.

A net with one fault shows many symptoms. Pixels of 0 to 255 make the first updates too
large, those kill the units, and dead units pass on no gradient. The graph below says
which kind of finding can lead to which; the cause is what nothing else explains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tfdeep.diagnostics._finding import KINDS, Finding

_STEPS = (
    "update_too_large",
    "exploding_gradient",
    "nonfinite",
    "loss_spike",
    "oscillating_loss",
)
_LOST = ("saturated_units", "dead_units", "no_gradient", "rank_collapse")
_SLOW = ("update_too_small", "slow_learning", "stalled")
_AT_THE_END = (*_STEPS, *_LOST, *_SLOW)  # of what goes wrong behind the last layer
_ALL = (*_AT_THE_END, "vanishing_gradient")

# What each kind can lead to.
LEADS_TO: dict[str, tuple[str, ...]] = {
    "bad_input": (*_ALL, "input_scale", "bad_labels", "target_scale"),
    "bad_labels": (*_AT_THE_END, "output_mismatch", "target_scale", "overfitting"),
    "learning_rate": (*_ALL, "target_scale", "overfitting"),
    "output_mismatch": (*_AT_THE_END, "target_scale", "overfitting"),
    "axis_order": (*_ALL, "overfitting"),
    "input_scale": (*_ALL, "poor_initialization", "overfitting"),
    "target_scale": _AT_THE_END,
    "equal_units": (*_LOST, "vanishing_gradient", *_SLOW, "poor_initialization"),
    "poor_initialization": _ALL,
    "linear_net": _SLOW,
    "heavy_dropout": (*_SLOW, "loss_spike", "oscillating_loss", "rank_collapse"),
    "inference_gap": ("overfitting",),
    "update_too_large": (*_STEPS, *_LOST, "vanishing_gradient", "stalled"),
    "exploding_gradient": (*_STEPS, *_LOST, "vanishing_gradient", "stalled"),
    "saturated_units": ("vanishing_gradient", "no_gradient", "rank_collapse", *_SLOW),
    "dead_units": ("vanishing_gradient", "no_gradient", "rank_collapse", *_SLOW),
    "vanishing_gradient": ("no_gradient", "rank_collapse", *_SLOW),
    "nonfinite": ("no_gradient", "rank_collapse", *_SLOW, "loss_spike"),
    "no_gradient": ("rank_collapse", *_SLOW),
    "rank_collapse": _SLOW,
    "update_too_small": ("slow_learning", "stalled"),
    "loss_spike": ("oscillating_loss",),
    "oscillating_loss": ("slow_learning", "stalled"),
    "slow_learning": ("stalled",),
}

# By how many steps a cause may be seen later than what follows from it: some rules
# need more steps than others.
_LATER = 30


def explained(
    findings: Sequence[Finding], layers: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """Says of each finding which one it follows from, and puts the causes first.

    Args:
        findings: The findings of one net, in any order.
        layers: Paths of the layers, from the input to the output.

    Returns:
        The findings: each cause, then what follows from it.
    """
    place = {path: i for i, path in enumerate(layers)}
    by_kind: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: place.get(f.layer, -1)):
        by_kind.setdefault(finding.kind, []).append(finding)
    first = {kind: min(f.first_step for f in of) for kind, of in by_kind.items()}
    root: dict[str, str] = {}
    for kind in by_kind:
        seen = [kind]
        while parents := _parents(seen[-1], first, seen):
            seen.append(min(parents, key=_rank))
        root[kind] = seen[-1]
    order = sorted(set(root.values()), key=lambda k: _importance(k, root, by_kind))
    result = []
    for cause in order:
        effects = [k for k in by_kind if root[k] == cause and k != cause]
        effects.sort(key=lambda k: (first[k], _rank(k)))
        follow = tuple(f.place for kind in effects for f in by_kind[kind])
        at = by_kind[cause][0].place
        result += [
            dataclasses.replace(f, explained_by=None, explains=follow)
            for f in by_kind[cause]
        ]
        result += [
            dataclasses.replace(f, explained_by=at, explains=())
            for kind in effects
            for f in by_kind[kind]
        ]
    return tuple(result)


def causes(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings that follow from no other."""
    return tuple(f for f in findings if f.explained_by is None)


def _parents(kind: str, first: dict[str, int], seen: Sequence[str]) -> list[str]:
    return [
        other
        for other in first
        if other not in seen
        and kind in LEADS_TO.get(other, ())
        and _is_in_time(other, kind, first)
    ]


def _is_in_time(cause: str, effect: str, first: dict[str, int]) -> bool:
    if effect in ("update_too_large", "exploding_gradient") and cause in (
        "update_too_large",
        "exploding_gradient",
    ):  # each can lead to the other
        is_later = first[cause] > first[effect]
        return not is_later and (
            cause == "exploding_gradient" or first[cause] < first[effect]
        )
    return first[cause] <= first[effect] + _LATER


def _rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _importance(
    cause: str, root: dict[str, str], by_kind: dict[str, list[Finding]]
) -> tuple[bool, int, int, str]:
    """Causes of what is critical come first, then those nearest to the data."""
    group = [f for kind, of in by_kind.items() if root[kind] == cause for f in of]
    is_critical = any(f.severity == "critical" for f in group)
    return not is_critical, _rank(cause), min(f.first_step for f in group), cause
