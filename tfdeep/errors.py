"""The errors that tfdeep raises.

    TfdeepError
    ├── InvalidArgumentError   (ValueError)   an argument cannot work as given
    ├── SelectionError         (ValueError)   a pattern selects nothing
    ├── ModelError             (ValueError)   the model cannot be used as it is
    ├── DataError              (ValueError)   the dataset cannot be used as it is
    ├── CheckpointError                       anything about a file of weights
    │   ├── UnknownFormatError (ValueError)   no reader knows this file
    │   ├── CorruptFileError                  the file is damaged or cut short
    │   ├── UnsafeFileError                   the file reaches outside itself
    │   ├── LimitError                        the file declares too much
    │   └── MismatchError      (ValueError)   file and model do not fit together
    ├── CacheError                            anything about a cache on disk
    │   ├── CorruptCacheError                 what is cached is damaged
    │   └── DiskFullError      (OSError)      no room to write a cache
    ├── NonFiniteGradientError (ArithmeticError)  too many steps in a row skipped
    ├── SickLayerError                        a monitor found one and was to raise
    └── MissingDependencyError (ImportError)  an optional package is not installed

Each message says what was received, what was expected and how to fix it. When an
error is raised, the model is as it was before the call.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfdeep.checkpoints import RestoreReport
    from tfdeep.diagnostics import Finding

__all__ = [
    "CacheError",
    "CheckpointError",
    "CorruptCacheError",
    "CorruptFileError",
    "DataError",
    "DiskFullError",
    "InvalidArgumentError",
    "LimitError",
    "MismatchError",
    "MissingDependencyError",
    "ModelError",
    "NonFiniteGradientError",
    "SelectionError",
    "SickLayerError",
    "SickLayerWarning",
    "TfdeepError",
    "TrainableFlagWarning",
    "UnknownFormatError",
    "UnsafeFileError",
]


class TfdeepError(Exception):
    """Base class of every error that tfdeep raises on purpose."""


class InvalidArgumentError(TfdeepError, ValueError):
    """An argument has a value that cannot work."""


class SelectionError(TfdeepError, ValueError):
    """A pattern is not a regular expression, or selects nothing."""


class ModelError(TfdeepError, ValueError):
    """The model is not built, not compiled, or of a kind that cannot be used."""


class DataError(TfdeepError, ValueError):
    """The dataset has no labels, no end, or elements that cannot be used."""


class CheckpointError(TfdeepError):
    """Base class of the errors about files of weights."""


class UnknownFormatError(CheckpointError, ValueError):
    """The file is of no format that tfdeep reads."""


class CorruptFileError(CheckpointError):
    """The file is damaged or shorter than it says it is."""


class UnsafeFileError(CheckpointError):
    """The file asks the reader to look outside the file."""


class LimitError(CheckpointError):
    """The file declares more than `tfdeep.checkpoints.Limits` allow to be read."""


class MismatchError(CheckpointError, ValueError):
    """The file and the model do not fit together.

    Attributes:
        report: The `tfdeep.checkpoints.RestoreReport` of what would have been
            restored, what is missing and what does not fit. Nothing was changed.
    """

    def __init__(self, message: str, report: RestoreReport) -> None:
        super().__init__(message)
        self.report = report


class CacheError(TfdeepError):
    """Base class of the errors about caches on disk."""


class CorruptCacheError(CacheError):
    """A cache entry is not as it was when it was finished."""


class DiskFullError(CacheError, OSError):
    """There is no room for what is to be cached. What is finished is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


class NonFiniteGradientError(TfdeepError, ArithmeticError):
    """More steps in a row than allowed had a gradient that was not finite."""


class SickLayerError(TfdeepError):
    """A `GradientMonitor(on_finding="raise")` found a layer that does not train well.

    Attributes:
        finding: The `tfdeep.diagnostics.Finding`.
    """

    def __init__(self, message: str, finding: Finding) -> None:
        super().__init__(message)
        self.finding = finding


class SickLayerWarning(UserWarning):
    """A `GradientMonitor` found a layer that does not train well."""


class TrainableFlagWarning(UserWarning):
    """A `trainable` flag was set by hand after `compile`; `fit` goes by it."""


class MissingDependencyError(TfdeepError, ImportError):
    """A package that this feature needs is not installed."""
