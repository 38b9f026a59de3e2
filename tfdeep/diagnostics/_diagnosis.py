"""What `diagnose` saw, as a table and a figure."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfdeep._core._records import Record, render_table, short_number, shorten
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics._causes import causes
from tfdeep.diagnostics._finding import Finding, findings_table
from tfdeep.diagnostics._plots import figure_class

_MOST_ROWS = 60


@dataclasses.dataclass(frozen=True)
class LayerDiagnosis:
    """What one batch says of a layer; NaN where a number has no meaning.

    Attributes:
        path: Path of the layer.
        kind: Name of its class.
        activation: Name of its activation function.
        output_mean: Mean of its outputs.
        output_std: Standard deviation of its outputs.
        gradient_std: Standard deviation of the loss' gradient by its outputs.
        kernel_gradient_norm: L2 norm of the gradient by its kernel.
        kernel_norm: L2 norm of its kernel.
        saturated_fraction: Fraction of outputs where its activation has no slope.
        inactive_fraction: Fraction of units without slope for any example.
        effective_rank: In how many directions its outputs differ.
    """

    path: str
    kind: str
    activation: str
    output_mean: float
    output_std: float
    gradient_std: float
    kernel_gradient_norm: float
    kernel_norm: float
    saturated_fraction: float
    inactive_fraction: float
    effective_rank: float


@dataclasses.dataclass(frozen=True)
class Diagnosis(Record):
    """How one batch goes through a model, and its gradient back.

    Attributes:
        model: Name of the model.
        examples: Number of examples that were used.
        loss: Loss of the batch; None if there were no labels.
        layers: One entry a layer, from the input to the output.
        findings: What the rules found: each cause, then what follows from it.
    """

    model: str
    examples: int
    loss: float | None
    layers: tuple[LayerDiagnosis, ...]
    findings: tuple[Finding, ...]
    # To print findings at neighbors as ranges.
    _layers: tuple[LayerInfo, ...] = dataclasses.field(
        default=(), repr=False, compare=False
    )

    @property
    def causes(self) -> tuple[Finding, ...]:
        """Those of the findings that follow from no other, the likeliest first."""
        return causes(self.findings)

    def __str__(self) -> str:
        title = f"Diagnosis of {self.model} on {self.examples} examples"
        if self.loss is not None:
            title += f", loss {self.loss:.3g}"
        rows = [
            (
                layer.path,
                layer.activation,
                short_number(layer.output_std),
                short_number(layer.gradient_std),
                _percent(layer.saturated_fraction),
                short_number(layer.effective_rank),
            )
            for layer in self.layers
        ]
        table = render_table(
            title,
            ["layer", "activation", "std, forward", "backward", "flat", "rank"],
            shorten(rows, _MOST_ROWS),
            align="llrrrr",
        )
        return f"{table}\n{findings_table(self.findings, self._layers)}"

    def plot(self) -> Any:
        """Draws the standard deviation of signal and gradient by layer.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            MissingDependencyError: If matplotlib is not installed.
        """
        figure = figure_class()(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        place = np.arange(len(self.layers))
        for name, label, mark in (
            ("output_std", "forward: outputs", "o"),
            ("gradient_std", "backward: gradient of the outputs", "s"),
        ):
            values = np.array([getattr(layer, name) for layer in self.layers])
            values = np.where(values > 0, values, np.nan)
            axes.plot(place, values, marker=mark, markersize=4, label=label)
        axes.set_yscale("log")
        axes.set_ylabel("standard deviation")
        step = max(len(self.layers) // 30, 1)
        axes.set_xticks(place[::step])
        axes.set_xticklabels(
            [layer.path for layer in self.layers][::step], rotation=60, ha="right"
        )
        sick = {finding.layer for finding in self.findings}
        for i, layer in enumerate(self.layers):
            if layer.path in sick:
                axes.axvspan(i - 0.5, i + 0.5, color="tab:red", alpha=0.08)
        axes.set_title(f"{self.model}: one batch forward and back")
        axes.grid(True, alpha=0.3)
        axes.legend(frameon=False)
        return figure


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0%}"
