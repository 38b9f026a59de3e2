"""Files of weights: readers for each format, and what `tfdeep.restore` reports."""

from tfdeep.checkpoints._open import open
from tfdeep.checkpoints._plan import Match, Mismatch
from tfdeep.checkpoints._reader import Reader, TensorInfo
from tfdeep.checkpoints._restore import RestoreReport

__all__ = ["Match", "Mismatch", "Reader", "RestoreReport", "TensorInfo", "open"]
