"""Dropout leaves little of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class HeavyDropout(Rule):
    """A dropout layer drops most of what it gets.

    Args:
        rate: Fraction that is dropped. Srivastava et al. use 0.5 for hidden units and
            0.2 for inputs; with 0.8 their test error has risen again.

    Reference: Srivastava et al., Dropout: A simple way to prevent neural networks from
    overfitting, 2014, figure 9.
    """

    kind: ClassVar[str] = "heavy_dropout"
    patience: ClassVar[int] = 1
    rate: float = 0.8

    def look(self, recording: Recording) -> Iterable[Symptom]:
        for path, rate in recording.program.dropouts:
            if rate >= self.rate:
                yield Symptom(
                    path,
                    "warning",
                    0,
                    f"it drops {rate:.0%} of its inputs at each step",
                    Remedy(
                        "a rate of 0.2 to 0.5: `rate` is what is dropped, not what is "
                        "kept",
                        "regularization",
                        path,
                        rate,
                        0.5 if rate < 0.9 else round(1 - rate, 4),
                    ),
                )
