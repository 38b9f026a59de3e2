"""Optimizer wrappers: clipping, skipping and accumulating, right on any device.

Each one wraps any Keras optimizer, nests, and is passed to `model.compile`.
"""

from tfdeep.optimizers._accumulate import Accumulate
from tfdeep.optimizers._adaptive_clip import AdaptiveClip
from tfdeep.optimizers._clip_by_global_norm import ClipByGlobalNorm
from tfdeep.optimizers._clip_by_norm import ClipByNorm
from tfdeep.optimizers._clip_by_value import ClipByValue
from tfdeep.optimizers._layer_rates import LayerRates, RateTable, layer_decay
from tfdeep.optimizers._percentile_clip import PercentileClip
from tfdeep.optimizers._safe_loss_scale_optimizer import SafeLossScaleOptimizer
from tfdeep.optimizers._skip_non_finite import SkipNonFinite
from tfdeep.optimizers._telemetry import Telemetry
from tfdeep.optimizers._wrapper import OptimizerWrapper
from tfdeep.optimizers._z_score_clip import ZScoreClip

__all__ = [
    "Accumulate",
    "AdaptiveClip",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "LayerRates",
    "OptimizerWrapper",
    "PercentileClip",
    "RateTable",
    "SafeLossScaleOptimizer",
    "SkipNonFinite",
    "Telemetry",
    "ZScoreClip",
    "layer_decay",
]
