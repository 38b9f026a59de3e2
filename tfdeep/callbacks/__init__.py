"""Callbacks for `keras.Model.fit`, and the same for loops of your own."""

from tfdeep.callbacks._gradient_monitor import GradientMonitor
from tfdeep.callbacks._gradual_unfreeze import GradualUnfreeze
from tfdeep.callbacks._watch import Watch, watch

__all__ = ["GradientMonitor", "GradualUnfreeze", "Watch", "watch"]
