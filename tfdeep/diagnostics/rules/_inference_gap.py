"""Batch normalization does something else at inference than in training."""

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
class InferenceGap(Rule):
    """The validation loss is far above the loss, as moving averages are not there yet.

    Batch normalization trains with the statistics of each batch, and infers with moving
    averages. After `n` steps these still hold `momentum ** n` of their first values. In
    a batch of few examples the statistics are mostly noise, and the net that was
    trained on noise meets averages.

    Args:
        gap: Validation loss over the loss.
        left: Part of the first values in the moving averages.
        examples: So few examples of a batch are mostly noise.

    Reference: Ioffe and Szegedy, Batch normalization, 2015; Wu and He, Group
    normalization, 2018, figure 1.
    """

    kind: ClassVar[str] = "inference_gap"
    patience: ClassVar[int] = 1
    gap: float = 1.5
    left: float = 0.05
    examples: int = 8

    def look(self, recording: Recording) -> Iterable[Symptom]:
        loss, validation, steps = _measures.losses_by_epoch(recording)
        norms = recording.program.batch_norms
        if not norms:
            return
        if _measures.has_sorted_batches(recording):
            yield Symptom(
                norms[0].layer,
                "critical",
                0,
                "each batch holds examples of one target only, whose statistics are "
                "not those of the data",
                Remedy(
                    "`dataset.shuffle(len(x))` before `batch`",
                    "data",
                    norms[0].layer,
                    "sorted",
                    "shuffled",
                ),
            )
            return
        known = "examples" in recording
        examples = _measures.median(recording["examples"]) if known else np.nan
        smallest = min(norms, key=lambda norm: norm.places or np.inf)
        size = examples * (smallest.places or np.inf)
        is_small = size < self.examples
        if is_small and size < 4 and not _measures.has_learned(recording, 0.5):
            if recording.total_steps >= 50:
                yield self._of_noise(smallest.layer, size, 0, "")
            return
        if not len(validation):
            return
        now, on_training = validation[-1], loss[-1]
        # An untrained net is as good as its start on any data.
        has_learned = on_training < 0.8 * loss[0]
        gap = self.gap if has_learned else 10 * self.gap
        if not now > gap * on_training > 0:
            return
        slowest = max(norms, key=lambda norm: norm.momentum)
        left = slowest.momentum**recording.total_steps
        found = f"validation loss {now:.3g}, loss {on_training:.3g}: "
        if left > self.left:
            yield Symptom(
                slowest.layer,
                "critical",
                int(steps[-1]),
                f"{found}after {recording.total_steps:,} steps its moving averages "
                f"still hold {left:.0%} of their first values",
                Remedy(
                    "keras.layers.BatchNormalization(momentum=0.9), or "
                    "tfdeep.surgery.recalibrate(model, dataset) after training",
                    "normalization",
                    slowest.layer,
                    slowest.momentum,
                    0.9,
                ),
            )
        elif is_small:
            yield self._of_noise(smallest.layer, size, int(steps[-1]), found)

    def _of_noise(self, path: str, size: float, step: int, found: str) -> Symptom:
        return Symptom(
            path,
            "critical",
            step,
            f"{found}statistics of {size:.0f} numbers at a time are mostly noise",
            Remedy(
                "batches of 16 and more, or keras.layers.GroupNormalization",
                "normalization",
                path,
                "BatchNormalization",
                "GroupNormalization",
            ),
        )
