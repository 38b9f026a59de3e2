"""A step replaces the weights instead of improving them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class UpdateTooLarge(Rule):
    """A step changes a weight by a large part of its size, and the loss does not fall.

    Large steps that work are not a problem, so both are required.

    Args:
        ratio: `||update|| / ||weight||` of one step. Healthy nets of the gym have a
            median of 0.02; the first step of one of them, 0.4.
        to: The loss must have fallen to this fraction of its start.
    """

    kind: ClassVar[str] = "update_too_large"
    ratio: float = 0.1
    to: float = 0.75

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if recording.lasted < 10 or _measures.has_fallen(recording, self.to):
            return
        ratio, steps, layers = _measures.relative_updates(recording)
        for i, layer in enumerate(layers):
            values = ratio[:, i]
            large = np.flatnonzero((values > self.ratio) & np.isfinite(values))
            if not len(large):
                continue
            peak = _measures.largest(values)
            yield Symptom(
                layer.path,
                "critical",
                int(steps[large[0]]),
                f"a step changed its weights by {peak:.2g} of their size, and the loss "
                "did not fall",
                "a tenth or a hundredth of the learning rate, or "
                "tfdeep.optimizers.AdaptiveClip(optimizer), which bounds this ratio",
            )
