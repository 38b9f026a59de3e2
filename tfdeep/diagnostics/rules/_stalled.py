"""The loss stays where it began."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class Stalled(Rule):
    """After many steps the loss is within its own noise of where it began.

    Only for nets that start from their initializers: a pretrained net may have nothing
    left to learn.

    Args:
        steps: How many steps it must last.
        to: Fraction of its start that the loss has not come below.
    """

    kind: ClassVar[str] = "stalled"
    steps: int = 300
    to: float = 0.98

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if recording.lasted < self.steps or not _measures.is_untouched(recording):
            return
        loss = _measures.data_loss(recording)
        now = loss[_measures.lately(recording, 100)]
        start = loss[:20]
        if not (np.isfinite(now).any() and np.isfinite(start).any()):
            return
        center, spread = np.nanmean(start), np.nanstd(start)
        level = _measures.median(now)
        if level > center - max((1 - self.to) * abs(center), spread / 4):
            yield Symptom(
                "",
                "warning",
                0,
                f"the loss was {center:.3g} at first and is {level:.3g}",
                "tfdeep.diagnose(model, x, y, loss) before training, another learning "
                "rate by factors of ten, and a fit of one batch, which must succeed",
            )
