"""A step replaces the weights instead of improving them."""

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
class UpdateTooLarge(Rule):
    """A step changes a weight by a large part of its size, and the loss does not fall.

    Large steps that work are not a problem, so both are required. Before any step is
    made, plain gradient descent shows by its gradient how large the first will be.

    Args:
        ratio: `||update|| / ||weight||` of one step. Healthy nets of the gym have a
            median of 0.02; the first step of one of them, 0.4.
        first: The same of the first step, foretold by rate and gradient.
        to: The loss must have fallen to this fraction of its start.
    """

    kind: ClassVar[str] = "update_too_large"
    ratio: float = 0.1
    first: float = 1.0
    to: float = 0.75

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if recording.lasted < 10 or _measures.has_fallen_so_far(recording, self.to):
            return
        program = recording.program
        ratio, steps, layers = _measures.relative_updates(recording)
        found = False
        for i, layer in enumerate(layers):
            values = ratio[:, i]
            large = np.flatnonzero((values > self.ratio) & np.isfinite(values))
            if len(large):
                found = True
                yield Symptom(
                    layer.path,
                    "critical",
                    int(steps[large[0]]),
                    f"a step changed its weights by {_measures.largest(values):.2g} of "
                    "their size, and the loss did not fall",
                    _remedy(recording, float(values[large[0]])),
                )
        if found or program.optimizer != "SGD" or program.is_scheduled:
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            foretold = program.learning_rate * recording["clipped_norm"][0]
            foretold = foretold / recording.at_steps("weight_norm")[0]
        for layer, column in _measures.weighted_layers(recording):
            if self.first < foretold[column] < np.inf:
                yield Symptom(
                    layer.path,
                    "critical",
                    0,
                    f"by its gradient, the first step changes its weights by "
                    f"{foretold[column]:.2g} of their size",
                    _remedy(recording, float(foretold[column])),
                )


def _remedy(recording: Recording, ratio: float) -> Remedy:
    program = recording.program
    factor = min(_measures.usual_factor(ratio), 0.1)
    remedy = _measures.rate_remedy(program.learning_rate, factor)
    # An optimizer that divides by the gradient's size undoes a clipping before it.
    clips = any("Clip" in name for name in program.wrappers)
    if program.normalizes or clips or program.is_scheduled:
        return remedy
    return dataclasses.replace(
        remedy,
        text=f"{remedy.text}; or tfdeep.optimizers.AdaptiveClip(optimizer), which "
        "bounds this ratio",
    )
