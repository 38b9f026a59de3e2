"""All units of a layer start with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class EqualUnits(Rule):
    """All units of a layer have the same weights at first, and so stay the same.

    They get the same gradient at each step, and the layer does the work of one unit.

    Reference: Goodfellow, Bengio and Courville, Deep learning, 2016, section 8.4.
    """

    kind: ClassVar[str] = "equal_units"
    patience: ClassVar[int] = 1

    def look(self, recording: Recording) -> Iterable[Symptom]:
        for layer in recording.layers:
            if not layer.is_symmetric or layer.units < 2 or not layer.is_trainable:
                continue
            if _measures.is_output(recording, layer):
                continue  # the loss tells its units apart
            if not layer.is_untouched and layer.bias is not None:
                continue  # their biases differ
            yield Symptom(
                layer.path,
                "critical",
                0,
                f"all its {layer.units} units start with the same weights, and learn "
                "the same",
                Remedy(
                    'kernel_initializer="glorot_uniform", or another random one',
                    "initializer",
                    layer.path,
                    "a constant",
                    "glorot_uniform",
                ),
            )
