"""A net of several layers that computes a linear function."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class LinearNet(Rule):
    """No layer but the last has an activation function.

    Several linear layers in a row compute what a single one can.

    Reference: Goodfellow, Bengio and Courville, Deep learning, 2016, section 6.1.
    """

    kind: ClassVar[str] = "linear_net"
    patience: ClassVar[int] = 1

    def look(self, recording: Recording) -> Iterable[Symptom]:
        layers = recording.program.linear_layers
        if layers:
            yield Symptom(
                layers[0],
                "warning",
                0,
                f"no activation function between {len(layers)} layers: together they "
                "compute what one linear layer can",
                Remedy(
                    'activation="relu" with kernel_initializer="he_normal" in each '
                    "layer but the last",
                    "activation",
                    layers[0],
                    "linear",
                    "relu",
                ),
            )
