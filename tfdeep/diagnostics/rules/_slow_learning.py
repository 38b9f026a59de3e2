"""The loss falls, and would fall faster with larger steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class SlowLearning(Rule):
    """Each step lowers the loss by what the gradient promises, and that is little.

    To first order a step lowers the loss by `sum ||update|| * ||gradient||` at most. As
    long as the loss falls by a good part of that, the surface is straight over a step,
    and a larger one lowers it by as much more. The remedy names the factor that would
    bring the loss down in a hundred steps, a power of ten.

    Args:
        steps: How many steps it must last.
        left: Fraction of the first loss that must be left.
        slope: Decrease of the loss over what the gradient promises.
        step: The rate of Adam and its kin over the size of the weights, below which it
            is foretold.
        progress: Largest decrease of the loss in the first step of SGD, over the loss,
            below which it is foretold. Healthy nets of the gym have more than 0.02.
    """

    kind: ClassVar[str] = "slow_learning"
    steps: int = 200
    left: float = 0.7
    slope: float = 0.1
    step: float = 1e-4
    progress: float = 1e-3

    def look(self, recording: Recording) -> Iterable[Symptom]:
        foretold = list(self._foretold(recording))
        yield from foretold
        if not foretold:
            yield from self._measured(recording)

    def _foretold(self, recording: Recording) -> Iterable[Symptom]:
        """What the rate alone tells."""
        program, rate = recording.program, recording.program.learning_rate
        if not rate > 0 or program.is_scheduled or not recording.total_steps:
            return
        if not _measures.is_untouched(recording):
            return
        if recording.total_steps > 50 and _measures.has_fallen(recording, self.left):
            return
        if program.optimizer == "Adadelta" and rate < 0.1:
            yield Symptom(
                "",
                "warning",
                0,
                f"Adadelta with a learning rate of {rate:.4g}, Keras' default: the "
                "method has none, which is a rate of 1",
                _measures.rate_remedy(rate, 1.0 / rate),
            )
            return
        if program.optimizer == "SGD":
            norms = np.nan_to_num(recording["norm"][0], posinf=0)
            progress = rate * np.sum(norms**2) / abs(_measures.data_loss(recording)[0])
            factor = self._factor(recording)
            # Where a usual step would take a rate above 1, the gradient is to blame.
            if 0 < progress < self.progress and rate * factor <= 1:
                yield Symptom(
                    "",
                    "warning",
                    0,
                    f"the first step of SGD can lower the loss by {progress:.2g} of "
                    "itself at most",
                    _measures.rate_remedy(rate, factor),
                )
            return
        size = _measures.weight_scale(recording)
        if program.optimizer in _measures.SIGN_LIKE and 0 < rate < self.step * size:
            yield Symptom(
                "",
                "warning",
                0,
                f"{program.optimizer} moves a weight by about {rate:.2g} in a step, "
                f"and the weights have a size of {size:.2g}: it takes "
                f"{size / rate:,.0f} steps to change them by as much",
                _measures.rate_remedy(rate, _measures.usual_factor(rate / size)),
            )

    def _factor(self, recording: Recording) -> float:
        """What makes the first step of SGD one of a usual size."""
        weights = recording.at_steps("weight_norm")[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = recording.program.learning_rate * recording["norm"][0] / weights
        columns = [column for _, column in _measures.weighted_layers(recording)]
        ratios = ratio[columns]
        largest = np.max(ratios[np.isfinite(ratios)], initial=0)
        return _measures.usual_factor(float(largest))

    def _measured(self, recording: Recording) -> Iterable[Symptom]:
        loss = _measures.data_loss(recording)
        if recording.total_steps < self.steps or not _measures.is_untouched(recording):
            return
        if _measures.horizon(recording) < recording.total_steps:
            return
        start, now = _measures.median(loss[:20]), _measures.median(loss[-50:])
        if not start > 0 or not now > self.left * start:
            return
        fallen = (start - now) / (recording.total_steps - 35)  # a step
        promised = self._promised(recording)
        if not promised > 0 or fallen < self.slope * promised:
            return
        noise = np.nanstd(loss[-50:]) / np.sqrt(min(len(loss), 50))
        if start - now < 3 * noise:
            return
        factor = 10.0 ** np.clip(np.round(np.log10(now / (100 * fallen))), 1, 3)
        rate = recording.program.learning_rate
        yield Symptom(
            "",
            "warning",
            0,
            f"in {recording.total_steps:,} steps the loss has fallen from {start:.3g} "
            f"to {now:.3g}, as straight as the gradient promises: larger steps would "
            "lower it faster",
            _measures.rate_remedy(rate, float(factor)),
        )

    def _promised(self, recording: Recording) -> float:
        """By how much a step can lower the loss, to first order."""
        if "update_norm" not in recording:
            return 0.0
        update = recording["update_norm"]
        known = ~np.isnan(update).all(axis=1)
        steps = recording.measured_steps[known]
        at = np.minimum(
            np.searchsorted(recording.steps, steps), len(recording.steps) - 1
        )
        gradient = _measures.gradient_norms(recording)[at]
        promised = np.nansum(update[known] * gradient, axis=1)
        return float(_measures.median(promised)) if len(promised) else 0.0
