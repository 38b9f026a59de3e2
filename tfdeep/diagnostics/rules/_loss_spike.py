"""The loss jumps."""

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
class LossSpike(Rule):
    """The loss of a batch is far above all that came before.

    A hard batch stays within a few times the largest loss so far, even when the net has
    converged and most batches have almost no loss.

    Args:
        factor: Loss over the largest loss before.
        history: How many steps must have come before.
    """

    kind: ClassVar[str] = "loss_spike"
    patience: ClassVar[int] = 1
    factor: float = 5.0
    history: int = 10

    def look(self, recording: Recording) -> Iterable[Symptom]:
        loss = _measures.loss(recording)
        finite = np.where(np.isfinite(loss), loss, -np.inf)
        if not np.isfinite(finite[: self.history]).any():
            return
        recent = _measures.lately(recording, 100)
        recent = recent[recent >= self.history]
        before = np.maximum.accumulate(finite)[recent - 1]
        jumps = np.flatnonzero((before > 0) & (finite[recent] > self.factor * before))
        if not len(jumps):
            return
        place, highest = int(recent[jumps[0]]), before[jumps[0]]
        yield Symptom(
            _hardest_hit(recording, place),
            "warning",
            int(recording.steps[place]),
            f"the loss jumped to {loss[place]:.3g} from at most {highest:.3g}; "
            "this layer's gradient grew most",
            Remedy(
                "look at the batch of that step; "
                "tfdeep.optimizers.ZScoreClip(optimizer) or "
                "tfdeep.optimizers.ClipByGlobalNorm(optimizer, clip_norm=1.0) "
                "bounds what one batch can do",
                "data",
            ),
        )


def _hardest_hit(recording: Recording, place: int) -> str:
    norm = recording["norm"]
    weighted = _measures.weighted_layers(recording)
    usual = _measures.median(norm[max(place - 20, 0) : place], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.nan_to_num(norm[place] / usual, posinf=0)
    if not weighted:
        return ""
    return max(weighted, key=lambda pair: growth[pair[1]])[0].path
