"""Callbacks for `keras.Model.fit`."""

from tfdeep.callbacks._gradient_monitor import GradientMonitor
from tfdeep.callbacks._gradual_unfreeze import GradualUnfreeze

__all__ = ["GradientMonitor", "GradualUnfreeze"]
