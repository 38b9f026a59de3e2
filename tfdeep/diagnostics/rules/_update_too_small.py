"""The steps are too small to make progress."""

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
class UpdateTooSmall(Rule):
    """A step can hardly lower the loss.

    To first order a step lowers the loss by no more than

        sum over layers of ||update|| * ||gradient||

    If that is less than one hundred-thousandth of the loss, a thousand steps cannot
    lower it by more than one percent. Steps that grow (warm-up) or were larger before
    (a schedule that ends, convergence) are left alone.

    Args:
        progress: Largest possible decrease of the loss in a step, over the loss.
            Healthy nets of the gym have more than 0.02.
    """

    kind: ClassVar[str] = "update_too_small"
    progress: float = 1e-5

    def look(self, recording: Recording) -> Iterable[Symptom]:
        ratio, steps, layers = _measures.relative_updates(recording)
        if len(steps) < 2 or _measures.has_fallen(recording, 0.8):
            return
        at = np.searchsorted(recording.steps, steps)
        at = np.minimum(at, len(recording.steps) - 1)
        known = np.isin(recording.measured_steps, steps)
        update = np.nan_to_num(recording["update_norm"][known])
        gradient = recording["norm"][at]
        gradient = np.where(np.isfinite(gradient), gradient, 0)
        loss = np.abs(_measures.loss(recording)[at])
        if not loss.all():
            return  # a loss of zero asks for no update
        progress = (update * gradient).sum(axis=1) / loss
        latest = progress[-3:]
        if not (latest < self.progress).all():
            return
        was_larger = progress.max() > 30 * latest.max()
        if was_larger and not _measures.is_untouched(recording):
            return  # a schedule ends, of a net that was trained before
        if latest[0] > 0 and (latest[1:] > 1.1 * latest[:-1]).all():
            return  # it grows
        if not gradient[-1].any():
            return  # the gradient is to blame, not the step
        size, sized = _measures.sensitivities(recording)
        strongest = np.nan_to_num(size).max(initial=0)
        by_path = {layer.path: size[i] for i, layer in enumerate(sized)}
        for i, layer in enumerate(layers):
            if not by_path[layer.path] > 1e-3 * strongest:
                continue  # it has another problem
            yield Symptom(
                layer.path,
                "critical" if latest.max() == 0 else "warning",
                int(steps[0]),
                f"a step changes its weights by {ratio[-1, i]:.1g} of their size; the "
                f"loss can fall by {latest.max():.1g} of itself at most",
                _larger(recording, float(np.nanmax(ratio[-1]))),
            )


def _larger(recording: Recording, ratio: float) -> Remedy:
    remedy = _measures.rate_remedy(
        recording.program.learning_rate, _measures.usual_factor(ratio)
    )
    text = f"{remedy.text}; raise it tenfold until the loss falls"
    return dataclasses.replace(remedy, text=text)
