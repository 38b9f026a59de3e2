"""Optimizer wrappers that clip the gradients which train the model.

Each one wraps any Keras optimizer, nests, and is passed to `model.compile`.
"""

from tfdeep.optimizers._clip_by_global_norm import ClipByGlobalNorm
from tfdeep.optimizers._clip_by_norm import ClipByNorm
from tfdeep.optimizers._clip_by_value import ClipByValue
from tfdeep.optimizers._wrapper import OptimizerWrapper

__all__ = ["ClipByGlobalNorm", "ClipByNorm", "ClipByValue", "OptimizerWrapper"]
