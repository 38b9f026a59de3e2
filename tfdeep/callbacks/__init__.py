"""Callbacks for `keras.Model.fit`."""

from tfdeep.callbacks._gradient_monitor import GradientMonitor

__all__ = ["GradientMonitor"]
