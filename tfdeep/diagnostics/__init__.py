"""Reports and figures: pure functions of recorded numbers."""

from tfdeep.diagnostics._monitor_report import (
    MonitorReport,
    VariableSummary,
    summarize,
)
from tfdeep.diagnostics._plots import plot_gradient_norms

__all__ = ["MonitorReport", "VariableSummary", "plot_gradient_norms", "summarize"]
