"""Units that sit at the flat ends of tanh or sigmoid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_START = (
    "keras.initializers.GlorotUniform() with a bias of zero, and inputs of unit scale "
    "(keras.layers.Normalization), start it in the middle; "
    "keras.layers.BatchNormalization() before the activation keeps it there"
)
_LATER = (
    "a tenth of the learning rate keeps it from the ends; "
    "keras.layers.BatchNormalization() before the activation brings it back"
)


@dataclasses.dataclass(frozen=True)
class SaturatedUnits(Rule):
    """Most outputs of a hidden layer lie where its activation has no slope left.

    Seen with `GradientMonitor(activations=True)`; without, only a layer all of whose
    outputs are so flat that its gradient is exactly zero. An output layer is meant to
    saturate and is left out.

    Args:
        fraction: Fraction of the outputs with a slope below 0.01. Healthy nets of the
            gym stay below 0.2, or 0.5 in a layer of two units.
    """

    kind: ClassVar[str] = "saturated_units"
    fraction: float = 0.6

    def look(self, recording: Recording) -> Iterable[Symptom]:
        yield from _silenced(recording)
        if "flat_fraction" not in recording:
            return
        recent = _measures.measured_lately(recording, 30)[-3:]
        flat = recording["flat_fraction"]
        for i, layer in enumerate(recording.layers):
            if layer.activation not in _measures.BOUNDED:
                continue
            if _measures.is_output(recording, layer):
                continue
            now = _measures.median(flat[recent, i])
            if not now >= self.fraction:
                continue
            if now < 0.9 and _measures.has_fallen(recording, 0.7):
                continue  # it works like this
            below = np.flatnonzero(~(flat[:, i] >= self.fraction))
            first = min(int(below[-1]) + 1 if len(below) else 0, len(flat) - 1)
            step = int(recording.measured_steps[first])
            yield Symptom(
                layer.path,
                "critical" if now >= 0.9 else "warning",
                step,
                f"{now:.0%} of its outputs saturated",
                _START if step < 5 else _LATER,
            )


def _silenced(recording: Recording) -> Iterable[Symptom]:
    """The layer that lets no gradient through although its output is not zero."""
    if "flat_fraction" in recording or recording.total_steps < 10:
        return
    layer = _measures.blocking_layer(recording)
    if layer is None:
        return
    above = _measures.layer_above(recording, layer)
    is_bounded = _measures.activation_of(recording, layer) in _measures.BOUNDED
    if above is None or not is_bounded:
        return
    if not _measures.is_silent(recording, above.kernel):
        yield Symptom(
            layer.path,
            "critical",
            0 if recording.total_steps <= 20 else recording.total_steps - 10,
            "all its outputs saturated: its gradient is exactly zero, and that of "
            f"{above.path} is not",
            _START,
        )
