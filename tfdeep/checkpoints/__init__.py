"""Files of weights: readers for each format, and what `tfdeep.restore` reports."""

from tfdeep.checkpoints._compare import CompareReport, Comparison, compare
from tfdeep.checkpoints._open import open
from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._tensors import TensorInfo
from tfdeep.checkpoints._report import (
    Match,
    Mismatch,
    MismatchKind,
    Probe,
    RestoreReport,
    Steps,
)
from tfdeep.checkpoints._restore import RestorePlan
from tfdeep.checkpoints._save import SaveReport
from tfdeep.checkpoints._torch_layout import Conversion, flattened

__all__ = [
    "CompareReport",
    "Comparison",
    "Conversion",
    "Limits",
    "Match",
    "Mismatch",
    "MismatchKind",
    "Probe",
    "Reader",
    "RestorePlan",
    "RestoreReport",
    "SaveReport",
    "Steps",
    "TensorInfo",
    "compare",
    "flattened",
    "open",
]
