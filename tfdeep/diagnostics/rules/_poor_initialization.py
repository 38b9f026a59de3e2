"""The first weights make the signal grow or fade from layer to layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep._keras._architecture import LayerInfo
from tfdeep._keras._layer_facts import Shape
from tfdeep._keras._layer_facts import activation as activation_facts
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_USUAL_GAIN = 1.6  # He's initialization has 1.4
_FADED = 1e-30  # a scale that is as good as zero


@dataclasses.dataclass(frozen=True)
class PoorInitialization(Rule):
    """By the scale of the first weights, the signal explodes, fades or saturates.

    The scale of a layer's output is that of its input times `sqrt(fan_in) *
    rms(kernel)` times what its activation keeps. It is followed through the graph:
    sums add squares, a normalization resets it to 1, and so does a product or a
    function of your own, which may do anything to the scale. With
    `GradientMonitor(activations=True)` the scale is the measured one of the first step.
    Only nets that start from their initializers are examined.

    Args:
        grown: Scale of an output over that of the input.
        faded: The same, from below. Glorot's initialization of thirty ReLU layers is
            at 3e-5.
        alone: By what factor one layer alone may scale. He's initialization has 1.4,
            before the activation.
        lost: The same, from below, of a hidden layer. Keras' initializers for two
            inputs have 0.07 at least.
        repeated: By what factor the recurrent weights may scale the state at each time
            step, where the activation does not bound it.
        saturated: Scale before a tanh or sigmoid.

    Reference: Glorot and Bengio 2010; He, Zhang, Ren and Sun, Delving deep into
    rectifiers, 2015.
    """

    kind: ClassVar[str] = "poor_initialization"
    patience: ClassVar[int] = 1
    grown: float = 100.0
    faded: float = 1e-4
    alone: float = 10.0
    lost: float = 0.02
    repeated: float = 1.3
    saturated: float = 4.5

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if not _measures.is_untouched(recording):
            return
        if _measures.has_learned(recording, 0.5):
            return
        before, after, certain = _scales(recording)
        for layer in recording.layers:
            if layer.kernel is None or layer.is_embedding or not layer.is_trainable:
                continue  # random features are frozen on purpose
            if _measures.is_normalized(recording, layer):
                continue
            activation = _measures.activation_of(recording, layer)
            evidence = self._evidence(recording, layer, activation, before, after)
            if not evidence and layer.path in certain:
                evidence = self._cumulative(recording, layer, before, after)
            if evidence:
                grows = after[layer.path] > self.grown
                remedy = _remedy(activation, layer, grows)
                yield Symptom(layer.path, "critical", 0, evidence, remedy)

    def _evidence(
        self,
        recording: Recording,
        layer: LayerInfo,
        activation: str,
        before: dict[str, float],
        after: dict[str, float],
    ) -> str:
        entering = before[layer.path]
        if layer.gain == 0:
            learns = _has_gradient(recording, layer)
            return "" if learns else "all its first weights are zero"
        saturates = activation_facts(activation).saturates
        if saturates and entering > self.saturated:
            return f"its first weights give {activation} inputs of scale {entering:.2g}"
        if layer.recurrent_gain > (2.0 if saturates else self.repeated):
            return (
                f"its first recurrent weights scale the state by "
                f"{layer.recurrent_gain:.2g} at each time step"
            )
        if _is_scale_free(activation) and _factor(layer) > self.alone:
            return f"its first weights scale the signal by {_factor(layer):.2g}"
        return ""

    def _cumulative(
        self,
        recording: Recording,
        layer: LayerInfo,
        before: dict[str, float],
        after: dict[str, float],
    ) -> str:
        leaving = after[layer.path]
        if leaving > self.grown and _factor(layer) > 1.2:
            return (
                f"with the first weights its output has {leaving:.2g} times the scale "
                "of the input"
            )
        behind = _measures.followers(recording, layer.path)
        arriving = max((_entering(x, after) for x in behind), default=math.inf)
        if 0 < layer.gain < self.lost and arriving < 10 * leaving:
            return (
                f"its first weights are almost zero: they scale the signal by "
                f"{layer.gain:.2g}"
            )
        if (
            arriving <= 10 * self.faded
            and leaving < self.faded
            and _factor(layer) < 0.8
        ):
            return (
                f"with the first weights its output has {leaving:.2g} of the scale of "
                "the input"
            )
        return ""


def _scales(
    recording: Recording,
) -> tuple[dict[str, float], dict[str, float], set[str]]:
    """The scale before and after each activation; and the layers where it is sure."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    certain: set[str] = set()
    measured = _measured_scales(recording)
    for layer in recording.layers:
        is_known = not layer.has_own_rule and certain.issuperset(layer.inputs)
        is_known &= layer.inputs_add_up or not layer.inputs
        before[layer.path] = _entering(layer, after) * _gain(layer)
        after[layer.path] = _leaving(layer, before[layer.path])
        if measured is not None and np.isfinite(measured[layer.path]):
            after[layer.path] = measured[layer.path]
            is_known = True
        if is_known or layer.is_normalization:
            certain.add(layer.path)
    return before, after, certain


def _measured_scales(recording: Recording) -> dict[str, float] | None:
    """The scale of each output at the first step, over that of the input."""
    if "output_std" not in recording or not len(recording["output_std"]):
        return None
    scale = np.hypot(recording["output_mean"][0], recording["output_std"][0])
    first = recording.layers[0]
    has_scale = not (first.is_embedding or first.is_normalization)
    if "input_offset" in recording and has_scale:
        offset, spread = recording["input_offset"][0], recording["input_spread"][0]
        inputs = float(np.hypot(offset, spread)[0])
        scale = scale / (inputs if inputs > 0 else 1.0)
    return {
        layer.path: float(value)
        for layer, value in zip(recording.layers, scale, strict=True)
    }


def _entering(layer: LayerInfo, scale: dict[str, float]) -> float:
    if not layer.inputs or not layer.inputs_add_up:
        return 1.0
    parts = [scale.get(path, 1.0) for path in layer.inputs]
    return math.sqrt(sum(part * part for part in parts))


def _gain(layer: LayerInfo) -> float:
    if layer.is_embedding or math.isnan(layer.gain) or layer.gain == 0:
        return 1.0  # of zero weights nothing can be said, nor of a table
    return max(layer.gain, _FADED)


def _leaving(layer: LayerInfo, before: float) -> float:
    if layer.is_normalization or layer.recurrent_kernel is not None:
        return min(before, 1.0) if layer.recurrent_kernel else 1.0
    activation = activation_facts(layer.activation)
    if activation.is_positive:
        return 0.5
    if activation.saturates:
        return min(before, 1.0)
    after = before * _kept(layer.activation)
    return min(max(after, _FADED), 1 / _FADED)


def _factor(layer: LayerInfo) -> float:
    """What this layer alone does to the scale."""
    return _gain(layer) * _kept(layer.activation)


def _is_scale_free(activation: str) -> bool:
    """Whether twice the input of an activation gives about twice the output."""
    return activation_facts(activation).shape in _SCALE_FREE


_SCALE_FREE = (Shape.LINEAR, Shape.RECTIFIER, Shape.LEAKY)


def _kept(activation: str) -> float:
    """What an activation leaves of the scale, as far as that is one number."""
    return activation_facts(activation).rms if _is_scale_free(activation) else 1.0


def _has_gradient(recording: Recording, layer: LayerInfo) -> bool:
    """Zero weights are a way to start a branch, as long as a gradient moves them."""
    column = recording.column(layer.kernel)
    if column is None or recording.lasted < 10:
        return True
    return bool(np.nan_to_num(recording["norm"][:, column]).any())


def _remedy(activation: str, layer: LayerInfo, grows: bool) -> Remedy:
    def of(change: str, after: str, text: str) -> Remedy:
        return Remedy(text, change, layer.path, after=after)

    if grows and layer.inputs and layer.gain < _USUAL_GAIN:
        return of(
            "normalization",
            "BatchNormalization",
            "its own weights have the usual scale; the sums before it grow: "
            "keras.layers.BatchNormalization() in each block, or "
            "tfdeep.initializers.Fixup for the branches",
        )
    if layer.recurrent_gain > PoorInitialization.repeated:
        return of(
            "initializer",
            "orthogonal",
            'recurrent_initializer="orthogonal" and '
            "keras.initializers.GlorotUniform(), the defaults, keep the scale",
        )
    facts = activation_facts(activation)
    if facts.saturates and facts.is_positive:
        # Small weights would leave the middle of a deep stack without a gradient.
        return of(
            "activation",
            "relu",
            'activation="relu" with keras.initializers.HeNormal(); or '
            "keras.initializers.GlorotUniform() with keras.layers.BatchNormalization() "
            "before the activation",
        )
    if facts.saturates:
        return of(
            "initializer",
            "glorot_uniform",
            "keras.initializers.GlorotUniform() keeps it in the middle",
        )
    if activation == "selu":
        return of(
            "initializer",
            "lecun_normal",
            "keras.initializers.LecunNormal() keeps the scale",
        )
    return of(
        "initializer",
        "he_normal",
        "keras.initializers.HeNormal() keeps the scale; so does "
        "keras.layers.BatchNormalization() in each block",
    )
