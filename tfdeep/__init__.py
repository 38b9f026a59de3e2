"""tfdeep: train deep Keras networks, see why they do not train, reuse their layers."""

import keras as _keras

from tfdeep.errors import TfdeepError as _TfdeepError

__version__ = "0.1.0"

if _keras.backend.backend() != "tensorflow":
    raise _TfdeepError(
        "tfdeep works with Keras on TensorFlow.\n"
        f"  Received: Keras on {_keras.backend.backend()}\n"
        "  Expected: the tensorflow backend\n"
        "  To mend:  set the environment variable KERAS_BACKEND=tensorflow before "
        "Python starts"
    )

from tfdeep import (
    callbacks,
    checkpoints,
    diagnostics,
    distribute,
    errors,
    models,
    optimizers,
    transfer,
)
from tfdeep.checkpoints._restore import restore
from tfdeep.checkpoints._save import save_subset
from tfdeep.diagnostics._diagnose import diagnose
from tfdeep.transfer._cache import cache_frozen
from tfdeep.transfer._freeze import freeze, unfreeze

__all__ = [
    "cache_frozen",
    "callbacks",
    "checkpoints",
    "diagnose",
    "diagnostics",
    "distribute",
    "errors",
    "freeze",
    "models",
    "optimizers",
    "restore",
    "save_subset",
    "transfer",
    "unfreeze",
]
