"""The targets of a regression lie far from what the net gives at first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class TargetScale(Rule):
    """A net cannot reach the targets' scale or offset in a reasonable number of steps.

    Adam and its kin move each weight by about the rate `e` in a step, and so the output
    of a last layer with inputs `h` by at most

        e * (sum |h_i| + 1)

    If the targets are a thousand such steps away, all the net learns for a long time is
    their offset. Other optimizers take steps in proportion to the targets: far targets
    make the first step of some layer larger than its weights.

    Args:
        steps: How many of the largest steps the targets may be away.
        scale: Root mean square of the targets, from which on it is looked at.
        fine: Standard deviation of the targets over the largest such step, below
            which steps are too coarse for them.
        ratio: Size of an update over that of the weights, for optimizers whose steps
            grow with the gradient.

    Reference: LeCun, Bottou, Orr and Mueller, Efficient backprop, 1998, section 4.5.
    """

    kind: ClassVar[str] = "target_scale"
    patience: ClassVar[int] = 1
    steps: float = 1000.0
    scale: float = 10.0
    fine: float = 0.1
    ratio: float = 0.1

    def look(self, recording: Recording) -> Iterable[Symptom]:
        program = recording.program
        if _measures.has_learned(recording, 0.5):
            return
        for i, output in enumerate(program.outputs):
            if not output.loss.is_regression or output.activation not in (
                None,
                "linear",
            ):
                continue
            offset, spread = (
                _measures.median(
                    _measures.of_output(recording, f"target_{name}", i)[:10]
                )
                for name in ("offset", "spread")
            )
            size = float(np.hypot(offset, spread))
            problem = None
            if program.optimizer in _measures.SIGN_LIKE:
                problem = self._too_far(recording, output.layer, size, spread, i)
            elif (
                program.optimizer == "SGD"
                and size > self.scale
                and _first_predictions(recording, i) < size
            ):
                problem = self._too_violent(recording)
            if problem:
                yield Symptom(
                    output.layer,
                    "critical",
                    0,
                    f"targets of mean {offset:.3g} and standard deviation "
                    f"{spread:.3g}: {problem}",
                    Remedy(
                        "`y = (y - y.mean()) / y.std()`, and the same way back for "
                        "predictions: standardized targets are in reach",
                        "targets",
                        output.layer,
                        (float(offset), float(spread)),
                        (0.0, 1.0),
                    ),
                )

    def _too_far(
        self, recording: Recording, path: str, size: float, spread: float, i: int
    ) -> str | None:
        rate = recording.program.learning_rate
        layer = next((x for x in recording.layers if x.path == path), None)
        if not rate > 0 or layer is None or not layer.fan_in:
            return None
        # The first outputs show how large the last layer's inputs are.
        inputs, predicted = 1.0, _first_predictions(recording, i)
        if layer.gain > 0 and np.isfinite(predicted):
            inputs = max(predicted / layer.gain, 1e-3)
        step = rate * (layer.fan_in * inputs + 1)
        is_far = size > max(self.steps * step, self.scale)
        if not is_far and not 0 < spread < self.fine * step:
            return None
        return (
            f"with a learning rate of {rate:.2g} a step of "
            f"{recording.program.optimizer} moves an output by {step:.2g} at "
            "most"
        )

    def _too_violent(self, recording: Recording) -> str | None:
        rate = recording.program.learning_rate
        if not rate > 0 or not recording.total_steps:
            return None
        largest, place = 0.0, ""
        for layer, column in _measures.weighted_layers(recording):
            norm, weight = recording["norm"][0, column], _first_norm(recording, column)
            if weight > 0 and rate * norm / weight > largest:
                largest, place = rate * float(norm) / weight, layer.path
        # One gradient does not show whether the loss falls nevertheless.
        if not largest > (1.0 if recording.total_steps == 1 else self.ratio):
            return None
        if _measures.has_fallen_so_far(recording, 0.5):
            return None
        return (
            f"the gradient grows with them, and the first step of {place} is "
            f"{largest:.2g} times its weights"
        )


def _first_predictions(recording: Recording, i: int) -> float:
    """The root mean square of an output at the first step; NaN if unknown."""
    parts = [
        _measures.of_output(recording, f"prediction_{name}", i)[:1]
        for name in ("offset", "spread")
    ]
    return float(np.hypot(*parts)[0]) if len(parts[0]) else np.nan


def _first_norm(recording: Recording, column: int) -> float:
    if "weight_norm" not in recording:
        return 0.0
    norms = recording["weight_norm"][:, column]
    return float(next((norm for norm in norms if np.isfinite(norm)), 0.0))
