"""Rules that find sick layers in recorded numbers.

Each compares a layer with its neighbors, its own past or the loss. The fields of a rule
are its thresholds: `VanishingGradient(ratio=1e-4)` is less strict.
"""

from tfdeep.diagnostics.rules._dead_units import DeadUnits
from tfdeep.diagnostics.rules._exploding_gradient import ExplodingGradient
from tfdeep.diagnostics.rules._frozen_but_trained import FrozenButTrained
from tfdeep.diagnostics.rules._input_scale import InputScale
from tfdeep.diagnostics.rules._loss_spike import LossSpike
from tfdeep.diagnostics.rules._no_gradient import NoGradient
from tfdeep.diagnostics.rules._nonfinite import NonFinite
from tfdeep.diagnostics.rules._poor_initialization import PoorInitialization
from tfdeep.diagnostics.rules._rank_collapse import RankCollapse
from tfdeep.diagnostics.rules._rule import Rule, Symptom
from tfdeep.diagnostics.rules._saturated_units import SaturatedUnits
from tfdeep.diagnostics.rules._stalled import Stalled
from tfdeep.diagnostics.rules._update_too_large import UpdateTooLarge
from tfdeep.diagnostics.rules._update_too_small import UpdateTooSmall
from tfdeep.diagnostics.rules._vanishing_gradient import VanishingGradient


def default_rules() -> list[Rule]:
    """One rule of each kind, with its default thresholds.

    Returns:
        A new list, to change and hand to `GradientMonitor(rules=...)`.

    Example:
        >>> rules = tfdeep.diagnostics.rules.default_rules()
        >>> rules = [rule for rule in rules if rule.kind != "loss_spike"]
        >>> monitor = tfdeep.callbacks.GradientMonitor(rules=rules)
    """
    return [
        NonFinite(),
        NoGradient(),
        FrozenButTrained(),
        DeadUnits(),
        SaturatedUnits(),
        ExplodingGradient(),
        VanishingGradient(),
        PoorInitialization(),
        InputScale(),
        RankCollapse(),
        UpdateTooLarge(),
        UpdateTooSmall(),
        LossSpike(),
        Stalled(),
    ]


__all__ = [
    "DeadUnits",
    "ExplodingGradient",
    "FrozenButTrained",
    "InputScale",
    "LossSpike",
    "NoGradient",
    "NonFinite",
    "PoorInitialization",
    "RankCollapse",
    "Rule",
    "SaturatedUnits",
    "Stalled",
    "Symptom",
    "UpdateTooLarge",
    "UpdateTooSmall",
    "VanishingGradient",
    "default_rules",
]
