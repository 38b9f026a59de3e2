"""Rules, findings, reports and figures: pure functions of recorded numbers."""

from tfdeep.diagnostics import rules
from tfdeep.diagnostics._diagnosis import Diagnosis, LayerDiagnosis
from tfdeep.diagnostics._finding import KINDS, Finding
from tfdeep.diagnostics._html_report import write_html_report
from tfdeep.diagnostics._monitor_report import (
    MonitorReport,
    VariableSummary,
    summarize,
)
from tfdeep.diagnostics._plots import plot_gradient_norms, plot_run
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics._run_file import Run, read_run

__all__ = [
    "KINDS",
    "Diagnosis",
    "Finding",
    "LayerDiagnosis",
    "MonitorReport",
    "Recording",
    "Remedy",
    "Run",
    "VariableSummary",
    "plot_gradient_norms",
    "plot_run",
    "read_run",
    "rules",
    "summarize",
    "write_html_report",
]
