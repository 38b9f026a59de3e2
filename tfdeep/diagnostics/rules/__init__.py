"""Rules that find sick layers in recorded numbers.

Each compares a layer with its neighbors, its own past or the loss. The fields of a rule
are its thresholds: `VanishingGradient(ratio=1e-4)` is less strict.
"""

from tfdeep.diagnostics.rules._axis_order import AxisOrder
from tfdeep.diagnostics.rules._bad_input import BadInput
from tfdeep.diagnostics.rules._bad_labels import BadLabels
from tfdeep.diagnostics.rules._dead_units import DeadUnits
from tfdeep.diagnostics.rules._equal_units import EqualUnits
from tfdeep.diagnostics.rules._exploding_gradient import ExplodingGradient
from tfdeep.diagnostics.rules._frozen_but_trained import FrozenButTrained
from tfdeep.diagnostics.rules._heavy_dropout import HeavyDropout
from tfdeep.diagnostics.rules._inference_gap import InferenceGap
from tfdeep.diagnostics.rules._input_scale import InputScale
from tfdeep.diagnostics.rules._learning_rate import LearningRate
from tfdeep.diagnostics.rules._linear_net import LinearNet
from tfdeep.diagnostics.rules._loss_spike import LossSpike
from tfdeep.diagnostics.rules._no_gradient import NoGradient
from tfdeep.diagnostics.rules._nonfinite import NonFinite
from tfdeep.diagnostics.rules._oscillating_loss import OscillatingLoss
from tfdeep.diagnostics.rules._output_mismatch import OutputMismatch
from tfdeep.diagnostics.rules._overfitting import Overfitting
from tfdeep.diagnostics.rules._poor_initialization import PoorInitialization
from tfdeep.diagnostics.rules._rank_collapse import RankCollapse
from tfdeep.diagnostics.rules._rule import Rule, Symptom
from tfdeep.diagnostics.rules._saturated_units import SaturatedUnits
from tfdeep.diagnostics.rules._slow_learning import SlowLearning
from tfdeep.diagnostics.rules._stalled import Stalled
from tfdeep.diagnostics.rules._target_scale import TargetScale
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
        BadInput(),
        BadLabels(),
        LearningRate(),
        OutputMismatch(),
        AxisOrder(),
        FrozenButTrained(),
        InputScale(),
        TargetScale(),
        EqualUnits(),
        PoorInitialization(),
        LinearNet(),
        HeavyDropout(),
        InferenceGap(),
        UpdateTooLarge(),
        ExplodingGradient(),
        SaturatedUnits(),
        DeadUnits(),
        VanishingGradient(),
        NonFinite(),
        NoGradient(),
        RankCollapse(),
        UpdateTooSmall(),
        LossSpike(),
        OscillatingLoss(),
        SlowLearning(),
        Stalled(),
        Overfitting(),
    ]


__all__ = [
    "AxisOrder",
    "BadInput",
    "BadLabels",
    "DeadUnits",
    "EqualUnits",
    "ExplodingGradient",
    "FrozenButTrained",
    "HeavyDropout",
    "InferenceGap",
    "InputScale",
    "LearningRate",
    "LinearNet",
    "LossSpike",
    "NoGradient",
    "NonFinite",
    "OscillatingLoss",
    "OutputMismatch",
    "Overfitting",
    "PoorInitialization",
    "RankCollapse",
    "Rule",
    "SaturatedUnits",
    "SlowLearning",
    "Stalled",
    "Symptom",
    "TargetScale",
    "UpdateTooLarge",
    "UpdateTooSmall",
    "VanishingGradient",
    "default_rules",
]
