"""Figures of recorded numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdeep._core._explain import explain
from tfdeep.diagnostics._monitor_report import History
from tfdeep.errors import MissingDependencyError


def plot_gradient_norms(history: History, title: str = "Gradient norms") -> Any:
    """Draws the gradient norm of each layer's kernel over the steps.

    Layers run from dark (near the input) to light (near the output), so that a
    gradient that shrinks or grows with depth shows as an ordered fan. Thin lines are
    the steps, thick ones their running median.

    Args:
        history: `GradientMonitor.history`. Biases are left out.
        title: Title of the figure.

    Returns:
        A `matplotlib.figure.Figure`; `figure.savefig("norms.png")` writes it.

    Raises:
        MissingDependencyError: If matplotlib is not installed.

    Example:

    >>> history = {"hidden1/kernel": {"norm": np.array([2.0, 1.0, 0.5])}}
    >>> figure = tfdeep.diagnostics.plot_gradient_norms(history)
    >>> figure.savefig(tmp_path / "norms.png")
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            explain(
                "The figure needs matplotlib, which is not installed.",
                received="import matplotlib failed",
                expected="the package `matplotlib` to be installed",
                fix="`pip install tfdeep[plots]`",
            )
        ) from error
    kernels = {p: r for p, r in history.items() if p.split("/")[-1] != "bias"}
    shown = kernels or history
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, max(len(shown), 1)))
    for shade, (path, recorded) in zip(shades, shown.items(), strict=True):
        norm = np.where(np.isfinite(recorded["norm"]), recorded["norm"], np.nan)
        label = path if len(shown) <= 20 else None
        axes.plot(norm, color=shade, linewidth=0.5, alpha=0.4)
        axes.plot(_running_median(norm), color=shade, linewidth=1.5, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("L2 norm of the gradient")
    axes.set_title(title)
    axes.grid(True, which="major", alpha=0.3)
    if len(shown) <= 20:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _running_median(values: np.ndarray) -> np.ndarray:
    """The median of each value and its neighbours, a fortieth of all on either side."""
    reach = max(len(values) // 40, 1)
    padded = np.pad(values.astype(float), reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    known = ~np.isnan(windows).all(axis=1)
    median = np.full(len(values), np.nan)
    median[known] = np.nanmedian(windows[known], axis=1)
    return median
