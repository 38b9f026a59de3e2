"""The validation loss rises while the loss falls."""

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
class Overfitting(Rule):
    """The net learns its examples by heart.

    The loss on the validation data has left its lowest value behind, while that on the
    training data went on falling.

    Args:
        rise: Validation loss over its lowest value; Prechelt's generalization loss is
            100 times this less one, and he stops at 5.
        fall: Loss over what it was at that epoch.
        gap: Validation loss over the loss.
        epochs: For how many epochs.

    Reference: Prechelt, Early stopping - but when?, 1998.
    """

    kind: ClassVar[str] = "overfitting"
    patience: ClassVar[int] = 1
    rise: float = 1.05
    fall: float = 0.9
    gap: float = 1.5
    epochs: int = 3

    def look(self, recording: Recording) -> Iterable[Symptom]:
        loss, validation, steps = _measures.losses_by_epoch(recording)
        if len(validation) < self.epochs + 2:
            return
        best = int(np.argmin(validation))
        after = validation[best + 1 :]
        if len(after) < self.epochs:
            return
        now = float(np.median(after[-3:]))
        lowest = validation[best]
        if now - lowest < (self.rise - 1) * abs(lowest) or after[-1] <= lowest:
            return
        if not np.median(loss[-2:]) < self.fall * loss[best]:
            return
        if now < self.gap * loss[-1]:
            return
        yield Symptom(
            "",
            "warning",
            int(steps[best]),
            f"the validation loss was {lowest:.3g} after epoch {best + 1} and is "
            f"{now:.3g}, while the loss went from {loss[best]:.3g} to {loss[-1]:.3g}",
            Remedy(
                "keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True); "
                "more or augmented data, keras.layers.Dropout, weight decay, or a "
                "smaller net make it generalize",
                "regularization",
                before=None,
                after="EarlyStopping",
            ),
        )
