"""A layer that was frozen goes on being trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class FrozenButTrained(Rule):
    """`trainable` is False, and yet the train step changes the weight.

    Keras reads the flag when it traces the train step, and keeps the traced step until
    `compile` is called again. Found are flags that change during the fit and, with
    Keras 3.15 or later, those that changed after an earlier fit.
    """

    kind: ClassVar[str] = "frozen_but_trained"

    def look(self, recording: Recording) -> Iterable[Symptom]:
        remedy = (
            "tfdeep.freeze(model, ...) takes effect at once; so does model.compile "
            "after setting the flag, which forgets the optimizer's moments"
        )
        trained = _trained_while_frozen(recording)
        for layer in recording.layers:
            if layer.frozen_too_late:
                yield Symptom(
                    layer.path,
                    "critical",
                    0,
                    "it was frozen after an earlier fit, whose train step Keras keeps "
                    "and which goes on training it",
                    remedy,
                )
            elif layer.path in trained:
                yield Symptom(
                    layer.path,
                    "critical",
                    trained[layer.path],
                    "its `trainable` is False, and yet it is trained",
                    remedy,
                )


def _trained_while_frozen(recording: Recording) -> dict[str, int]:
    if "is_frozen" not in recording or not len(recording["is_frozen"]):
        return {}
    frozen = recording["is_frozen"] == 1
    now = frozen[-1] & ~np.isnan(recording["norm"][-1])
    first = recording.measured_steps[frozen.argmax(axis=0)]
    return {
        path.rpartition("/")[0]: int(first[i])
        for i, path in enumerate(recording.variables)
        if now[i]
    }
