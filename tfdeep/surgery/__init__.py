"""Changes to built models, and a look at them before they train."""

from tfdeep.surgery._check_setup import SetupFinding, SetupReport, check_setup
from tfdeep.surgery._constrain import ConstrainedKernel, ConstrainReport, constrain
from tfdeep.surgery._fold import FoldReport, NormFold, fold_batch_norm
from tfdeep.surgery._recalibrate import (
    RecalibrationReport,
    StatisticsChange,
    recalibrate_batch_norm,
)
from tfdeep.surgery._regularize import KernelPenalty, RegularizeReport, regularize

__all__ = [
    "ConstrainReport",
    "ConstrainedKernel",
    "FoldReport",
    "KernelPenalty",
    "NormFold",
    "RecalibrationReport",
    "RegularizeReport",
    "SetupFinding",
    "SetupReport",
    "StatisticsChange",
    "check_setup",
    "constrain",
    "fold_batch_norm",
    "recalibrate_batch_norm",
    "regularize",
]
