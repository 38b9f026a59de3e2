"""Files of weights: readers for each format, and what `tfdeep.restore` reports."""

from tfdeep.checkpoints._compare import CompareReport, Comparison, compare
from tfdeep.checkpoints._open import open
from tfdeep.checkpoints._plan import Match, Mismatch
from tfdeep.checkpoints._readers._limits import Limits
from tfdeep.checkpoints._readers._reader import Reader, TensorInfo
from tfdeep.checkpoints._restore import Probe, RestoreReport
from tfdeep.checkpoints._save import SaveReport
from tfdeep.checkpoints._torch_layout import flattened

__all__ = [
    "CompareReport",
    "Comparison",
    "Limits",
    "Match",
    "Mismatch",
    "Probe",
    "Reader",
    "RestoreReport",
    "SaveReport",
    "TensorInfo",
    "compare",
    "flattened",
    "open",
]
