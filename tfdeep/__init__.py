"""tfdeep: train deep Keras networks, see why they do not train, reuse their layers."""

import keras as _keras

from tfdeep.errors import TfdeepError as _TfdeepError

__version__ = "0.1.0"

if _keras.backend.backend() != "tensorflow":
    raise _TfdeepError(
        "tfdeep works with Keras on TensorFlow.\n"
        f"  Received: Keras on {_keras.backend.backend()}\n"
        "  Expected: the tensorflow backend\n"
        "  Fix:      set the environment variable KERAS_BACKEND=tensorflow before "
        "Python starts"
    )

from tfdeep import (
    callbacks,
    checkpoints,
    constraints,
    diagnostics,
    distribute,
    errors,
    initializers,
    layers,
    models,
    optimizers,
    surgery,
    transfer,
)
from tfdeep._finetune import FineTuneReport, FineTuneStage, finetune
from tfdeep.checkpoints._restore import plan_restore, restore
from tfdeep.checkpoints._save import save_subset
from tfdeep.diagnostics._diagnose import diagnose
from tfdeep.transfer._cache import cache_frozen
from tfdeep.transfer._freeze import freeze, unfreeze

__all__ = [
    "FineTuneReport",
    "FineTuneStage",
    "cache_frozen",
    "callbacks",
    "checkpoints",
    "constraints",
    "diagnose",
    "diagnostics",
    "distribute",
    "errors",
    "finetune",
    "freeze",
    "initializers",
    "layers",
    "models",
    "optimizers",
    "plan_restore",
    "restore",
    "save_subset",
    "surgery",
    "transfer",
    "unfreeze",
]
