"""Units that sit at the flat ends of tanh or sigmoid."""

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

_START = Remedy(
    "keras.initializers.GlorotUniform() with a bias of zero, and inputs of unit scale "
    "(keras.layers.Normalization), start it in the middle; "
    "keras.layers.BatchNormalization() before the activation keeps it there",
    "initializer",
    after="glorot_uniform",
)
_RECURRENT = Remedy(
    'the defaults, recurrent_initializer="orthogonal" and of keras.layers.LSTM '
    "unit_forget_bias=True, carry it through time",
    "initializer",
    after="orthogonal",
)
_LATER = Remedy(
    "a tenth of the learning rate keeps it from the ends; "
    "keras.layers.BatchNormalization() before the activation brings it back",
    "learning_rate",
    after="x 0.1",
)

_FEWEST = 8  # examples without which nothing is said


@dataclasses.dataclass(frozen=True)
class SaturatedUnits(Rule):
    """Most outputs of a hidden layer lie where its activation has no slope left.

    Seen with `GradientMonitor(activations=True)`; without, only where a layer passes on
    almost no gradient. An output layer is meant to saturate and is left out.

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
        recent = _measures.measured_lately(recording)
        flat = recording["flat_fraction"]
        for i, layer in enumerate(recording.layers):
            if not activation_facts(layer.activation).saturates:
                continue
            if _measures.is_output(recording, layer):
                continue
            now = _measures.median(flat[recent, i])
            if not now >= self.fraction:
                continue
            if now < 0.9 and _measures.has_fallen(recording, 0.7):
                continue  # it works like this
            seen = _measures.examples_of(recording, layer, recent)
            if 0 < seen < _FEWEST:
                continue
            below = np.flatnonzero(~(flat[:, i] >= self.fraction))
            first = min(int(below[-1]) + 1 if len(below) else 0, len(flat) - 1)
            step = int(recording.measured_steps[first])
            yield Symptom(
                layer.path,
                "critical" if now >= 0.9 else "warning",
                step,
                f"{now:.0%} of its outputs saturated{_measures.on_examples(seen)}",
                _START if step < 5 else _LATER,
            )


def _silenced(recording: Recording) -> Iterable[Symptom]:
    """The layers that pass on almost no gradient, seen by the gradient alone.

    From a layer to the one before, the gradient is multiplied by the kernel between
    them and by the slope of the activation. Where the kernel is of a usual scale and
    the product is almost zero, the slope is.
    """
    if recording.lasted < 10:
        return
    measured = set()
    if "flat_fraction" in recording:
        is_known = ~np.isnan(recording["flat_fraction"]).all(axis=0)
        measured = {
            x.path for x, k in zip(recording.layers, is_known, strict=True) if k
        }
    size, layers = _measures.sensitivities(recording)
    is_cut_off = np.isnan(size)
    size = np.nan_to_num(size)
    for i, layer in enumerate(layers[:-1]):
        above = layers[i + 1]
        activation = _measures.activation_of(recording, layer)
        if not activation_facts(activation).saturates:
            continue
        if measured & ({layer.path} | {x.path for x in _activations(recording, layer)}):
            continue
        is_next = layer.path in _behind_activations(recording, above)
        if not is_next or not 0.1 < above.gain < 10 or not size[i + 1] > 0:
            continue
        if size[i + 1] < 1e-3 * size.max() or size[i] > 1e-5 * size[i + 1]:
            continue
        if is_cut_off[i] or _hears_through_bias(recording, layer, above):
            continue  # another problem, in the latter case of the layer before it
        yield Symptom(
            layer.path,
            "critical",
            _measures.since(recording),
            "its outputs saturated: it passes on almost no gradient from "
            f"{above.path}, right after it",
            _START if layer.recurrent_kernel is None else _RECURRENT,
        )


def _hears_through_bias(
    recording: Recording, layer: LayerInfo, above: LayerInfo
) -> bool:
    """Whether the error comes through, as a bias' gradient does not ask the input."""
    columns = [recording.column(layer.bias), recording.column(above.bias)]
    if None in columns:
        return False
    norm = recording["norm"][_measures.lately(recording, 10)][:, columns]
    here, behind = _measures.median(norm, axis=0)
    return bool(here > 1e-5 * behind > 0)


def _activations(recording: Recording, layer: LayerInfo) -> list[LayerInfo]:
    """The separate activation layers right after a layer."""
    behind = _measures.followers(recording, layer.path)
    return [x for x in behind if x.kernel is None and not x.is_normalization]


def _behind_activations(recording: Recording, layer: LayerInfo) -> set[str]:
    """The layers right before one, also through separate activation layers."""
    by_path = {other.path: other for other in recording.layers}
    found = set(layer.inputs)
    for path in layer.inputs:
        if by_path[path].kernel is None and not by_path[path].is_normalization:
            found |= set(by_path[path].inputs)
    return found
