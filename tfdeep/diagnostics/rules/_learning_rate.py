"""The learning rate cannot be meant."""

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
class LearningRate(Rule):
    """The rate is not positive, or a single step is larger than the weights.

    Adam and its kin move every weight by about the rate, whatever the gradient. Where
    that is more than the weights' own size, a step replaces the net.

    Args:
        ratio: Rate over the root mean square of a kernel's weights, of the largest
            kernel.
    """

    kind: ClassVar[str] = "learning_rate"
    patience: ClassVar[int] = 1
    ratio: float = 1.0

    def look(self, recording: Recording) -> Iterable[Symptom]:
        program = recording.program
        rate = program.learning_rate
        if np.isnan(rate) or program.is_scheduled:
            return
        usual = 0.001 if program.normalizes else 0.01
        if rate < 0:
            yield Symptom(
                "",
                "critical",
                0,
                f"the learning rate of {program.optimizer} is {rate:.4g}: below zero, "
                "each step makes the loss larger",
                _rate(rate, usual),
            )
        elif rate == 0:
            yield Symptom(
                "",
                "critical",
                0,
                f"the learning rate of {program.optimizer} is 0: nothing is learned",
                _rate(rate, usual),
            )
        elif program.optimizer in _measures.SIGN_LIKE:
            yield from self._too_large(recording, rate, usual)

    def _too_large(
        self, recording: Recording, rate: float, usual: float
    ) -> Iterable[Symptom]:
        if _measures.has_fallen(recording, 0.5) and recording.total_steps > 1:
            return
        size = _measures.weight_scale(recording)
        if rate > self.ratio * size * _needed(recording) > 0:
            yield Symptom(
                "",
                "critical",
                0,
                f"{recording.program.optimizer} with a learning rate of {rate:.4g} "
                "moves each weight by about that in a step; the weights of the largest "
                f"kernel have a size of {size:.2g}",
                _rate(rate, usual),
            )


def _needed(recording: Recording) -> float:
    """By how much the weights have to grow for the targets of a regression."""
    outputs = recording.program.outputs
    if len(outputs) != 1 or not outputs[0].loss.is_regression:
        return 1.0

    def scale(of: str) -> float:
        parts = [
            _measures.of_output(recording, f"{of}_{name}", 0)[:1]
            for name in ("offset", "spread")
        ]
        return float(np.hypot(*parts)[0]) if len(parts[0]) else np.nan

    growth = scale("target") / max(scale("prediction"), 1e-30)
    return float(np.nanmax([growth, 1.0]))


def _rate(before: float, after: float) -> Remedy:
    return Remedy(
        f"a learning rate of {after:g}", "learning_rate", before=before, after=after
    )
