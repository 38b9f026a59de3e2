"""The loss goes up and down and does not fall."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class OscillatingLoss(Rule):
    """The loss swings by as much as its own size, and has stopped falling.

    Batches differ, and so does their loss, by about its size over the root of their
    number of examples; a mean over ten steps takes most of that away. What swings by
    more goes over the minimum and back, as steps do that are too large for the
    curvature.

    Args:
        steps: How many steps are looked at.
        swing: Difference between the ninth and the first decile of the smoothed loss
            over its median, or the deviation from step to step over the median.
        ratio: Least `||update|| / ||weight||` of a step of some layer.

    Reference: Goodfellow, Bengio and Courville, Deep learning, 2016, section 8.3.1.
    """

    kind: ClassVar[str] = "oscillating_loss"
    steps: int = 100
    swing: float = 0.5
    ratio: float = 0.01

    def look(self, recording: Recording) -> Iterable[Symptom]:
        loss = _measures.data_loss(recording)[_measures.lately(recording, self.steps)]
        loss = loss[np.isfinite(loss)]
        if recording.lasted < self.steps or len(loss) < self.steps // 2:
            return
        if _measures.has_fallen(recording, 0.1):
            return  # what is left is small
        half = len(loss) // 2
        middle = float(np.median(loss))
        is_falling = np.median(loss[half:]) < 0.9 * np.median(loss[:half])
        if is_falling or not middle > 0:
            return
        smooth = np.convolve(loss, np.full(10, 0.1), "valid")
        low, high = np.percentile(smooth, [10, 90])
        bounce = float(np.std(np.diff(loss)) / np.sqrt(2))
        # Of independent batches a mean over ten steps swings by a third of this.
        swings = high - low > self.swing * middle and np.std(smooth) > bounce / 1.6
        examples = max(_measures.examples(recording), 1.0)
        measured = max(len(recording.measured_steps), 1)
        by_chance = 4 / np.sqrt(examples / measured)
        if not swings and bounce < max(self.swing, by_chance) * middle:
            return
        low, high = np.percentile(loss, [10, 90])
        ratio, _, layers = _measures.relative_updates(recording)
        usual = _measures.median(ratio[-5:], axis=0) if len(ratio) else np.zeros(0)
        if not len(usual) or not np.nanmax(usual) > self.ratio:
            return
        place = int(np.nanargmax(usual))
        rate = recording.program.learning_rate
        yield Symptom(
            "",
            "warning",
            _measures.since(recording, self.steps),
            f"over {self.steps} steps the loss swings between {low:.3g} and "
            f"{high:.3g} and does not fall; a step changes {layers[place].path} by "
            f"{usual[place]:.2g} of its weights",
            _measures.rate_remedy(rate, 0.1),
        )
