"""Units that are never active, and so never learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep._keras._architecture import LayerInfo
from tfdeep._keras._layer_facts import activation as activation_facts
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_IN_A_ROW = 5  # measured steps at which a dead unit was not active
_FEWEST = 16  # examples without which nothing is said


@dataclasses.dataclass(frozen=True)
class DeadUnits(Rule):
    """Most units of a layer were not active at the last five measured steps.

    For ReLU and related activations. Without `GradientMonitor(activations=True)` a unit
    counts as dead if its bias had no gradient in that time, as long as layers above
    have one. Sparse activity is not a problem: a unit that is active on one example in
    a hundred is alive. Fewer than a hundred examples in that time show only layers of
    which at least nine units in ten are dead, and fewer than sixteen show nothing.

    Args:
        fraction: Fraction of the units. Healthy nets of the gym stay below 0.3.

    Reference: Lu, Shin, Su and Karniadakis, Dying ReLU and initialization, 2019.
    """

    kind: ClassVar[str] = "dead_units"
    fraction: float = 0.5

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if recording.lasted < 10:
            return
        if _measures.is_lost(recording)[-1:].any():
            return  # NaN is not larger than zero
        wholly_dead: set[str] = set()
        for i, layer in enumerate(recording.layers):
            if not activation_facts(self._activation(recording, layer)).can_die:
                continue
            dead = self._dead(recording, i)
            if dead is None or not len(dead) or not dead[-1] >= self._limit(layer):
                continue
            if dead[-1] > 0.99:
                wholly_dead.add(layer.path)
            if layer.inputs and wholly_dead.issuperset(layer.inputs):
                continue  # its inputs are all zero
            seen = self._examples(recording, layer)
            few = 0 < seen < _enough(layer)
            if 0 < seen < _FEWEST or (few and dead[-1] < 0.9):
                continue  # a unit may be active on an example in a hundred
            alive = np.flatnonzero(~(dead >= self._limit(layer)))
            first = int(alive[-1]) + 1 if len(alive) else 0
            step = int(recording.measured_steps[min(first, len(dead) - 1)])
            yield Symptom(
                layer.path,
                "critical" if dead[-1] >= 0.9 and not few else "warning",
                step,
                _evidence(float(dead[-1]), seen),
                _remedy(recording, step),
            )

    def _limit(self, layer: LayerInfo) -> float:
        """The fraction that is too much: of few units, more are dead by chance."""
        chance = 0.3
        noise = np.sqrt(chance * (1 - chance) / max(layer.units, 1))
        by_chance = chance + 3 * noise if layer.units else 0.0
        return float(min(max(self.fraction, by_chance), 1.0))

    def _examples(self, recording: Recording, layer: LayerInfo) -> int:
        """On how many examples none of its dead units was active; 0 if unknown."""
        rows = _measures.measured_lately(recording, _IN_A_ROW)
        is_measured = "inactive_fraction" in recording
        return _measures.examples_of(recording, layer if is_measured else None, rows)

    def _activation(self, recording: Recording, layer: LayerInfo) -> str:
        """Its own activation; without recorded activations, also the one after it."""
        if "inactive_fraction" in recording:
            return layer.activation
        return _measures.activation_of(recording, layer)

    def _dead(self, recording: Recording, i: int) -> np.ndarray | None:
        """The fraction of dead units at each measured step."""
        layer = recording.layers[i]
        if "inactive_fraction" in recording and recording["inactive_fraction"].size:
            dead = recording["inactive_fraction"][:, i]
            if not np.isnan(dead).all():
                return np.asarray(dead[~np.isnan(dead)])[-len(dead) :]
        column = recording.column(layer.bias)
        if column is None:
            return None
        silent = np.asarray(recording["silent_fraction"][:, column])
        is_dead = (silent[-1:] >= self._limit(layer)).any()
        return silent if is_dead and _is_its_own(recording, layer) else None


def _enough(layer: LayerInfo) -> int:
    """How many examples show that a unit is dead; an image shows it many places."""
    return _FEWEST if "Conv" in layer.kind else 100


def _evidence(dead: float, seen: int) -> str:
    found = f"{dead:.0%} of units dead"
    return f"{found}: not active on any of {seen} examples" if seen else found


def _is_its_own(recording: Recording, layer: LayerInfo) -> bool:
    """Whether silent units are dead, and do not merely lack a gradient from above."""
    if _measures.is_normalized(recording, layer):
        return False  # what a normalization takes away has no gradient either
    above = _measures.layer_above(recording, layer)
    if above is None:
        return False
    if not _measures.has_gradient(recording, layer.bias):
        return False
    if not _measures.is_silent(recording, layer.bias):
        return True  # some of its units are heard
    if layer.is_normalization:
        has_signal = not _measures.is_silent(recording, above.bias)
        return has_signal and _measures.is_silent(recording, above.kernel)
    blocking = _measures.blocking_layer(recording)
    if blocking is None or _culprit(recording, blocking) != layer:
        return False
    behind = _measures.layer_above(recording, blocking)
    return behind is not None and _measures.is_silent(recording, behind.kernel)


def _culprit(recording: Recording, blocking: LayerInfo) -> LayerInfo:
    """The layer that died first, of those whose output may be zero for it.

    The gradients do not show it, but the bias does: layers after a dead one are dead
    even with a bias of zero.
    """
    weights = _measures.weight_norms(recording)
    place = recording.layers.index(blocking)
    culprit, largest = blocking, 1.0
    for layer in reversed(recording.layers[: place + 1]):
        column = recording.column(layer.bias)
        if column is None or not activation_facts(layer.activation).can_die:
            continue
        size = weights[column] / np.sqrt(max(layer.units, 1))
        if size > largest:
            culprit, largest = layer, size
    return culprit


def _remedy(recording: Recording, step: int) -> Remedy:
    if step < 5:
        return Remedy(
            "keras.initializers.HeNormal() and a bias of zero bring them back; "
            'activation="leaky_relu" cannot die',
            "initializer",
            after="he_normal",
        )
    rate = recording.program.learning_rate
    return dataclasses.replace(
        _measures.rate_remedy(rate, 0.1),
        text="a tenth of the learning rate, or keras.initializers.HeNormal(), keeps "
        'them alive; activation="leaky_relu" cannot die',
    )
