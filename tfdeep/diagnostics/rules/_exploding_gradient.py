"""The gradient grows: toward the input, or from step to step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class ExplodingGradient(Rule):
    """A gradient is far larger than its neighbors, its past or the loss explain.

    Any of three comparisons suffices:

    * with the layers after it: `||gradient|| * ||weight||` grows toward the input;
    * with the loss, in a net that starts from its initializers: a relative change of
      the weights changes the loss by far more than the loss is;
    * with its own past: the norm has grown, and the loss with it.

    A gradient that clipping cuts to a tenth or less is not reported: the remedy is in
    place.

    Args:
        ratio: `s` of a layer over that of the layers after it. Healthy nets of the gym
            stay below 10.
        sensitivity: `||gradient|| * ||weight|| / |loss|`. Healthy nets of the gym
            start with 0.1 to 40.
        growth: Norm over the median norm of the first steps.

    Reference: Pascanu, Mikolov and Bengio, On the difficulty of training recurrent
    neural networks, 2013.
    """

    kind: ClassVar[str] = "exploding_gradient"
    ratio: float = 1e3
    sensitivity: float = 1e3
    growth: float = 1e3

    def look(self, recording: Recording) -> Iterable[Symptom]:
        size, layers = _measures.sensitivities(recording)
        if not layers:
            return
        columns = [recording.variables.index(layer.kernel or "") for layer in layers]
        loss = np.abs(_measures.loss(recording))
        scale = _measures.largest(np.append(loss[:10], _measures.median(loss)))
        recent = _measures.lately(recording, 10)
        norm = recording["norm"][recent][:, columns]
        clipped = recording["clipped_norm"][recent][:, columns]
        with np.errstate(invalid="ignore"):
            tamed = _measures.median(clipped / norm, axis=0) <= 0.1
        start = _measures.median(recording["norm"][:5, columns], axis=0)
        peak = _measures.largest(norm, axis=0)
        has_grown = _grown(loss)
        least = size[size > 0].min(initial=np.inf)
        # Where a fit begins near the minimum, any gradient is large beside the loss.
        from_start = _measures.is_untouched(recording)
        for i, layer in enumerate(layers):
            if tamed[i] or np.isnan(size[i]):
                continue
            behind = 0.0
            if size[i] > self.ratio * least:
                behind = _largest_behind(recording, layer, layers, size)
            if 0 < behind * self.ratio < size[i]:
                evidence = (
                    f"gradient {_measures.times(size[i] / behind)} larger than any "
                    "after it, for weights of the same size"
                )
            elif from_start and size[i] > self.sensitivity * scale > 0:
                evidence = (
                    f"gradient norm {_measures.median(norm[:, i]):.2g}: one "
                    f"percent of the weights moves the loss by "
                    f"{_measures.times(size[i] / scale / 100)} its size"
                )
            elif has_grown and 0 < start[i] * self.growth < peak[i]:
                evidence = (
                    f"gradient norm grew from {start[i]:.2g} to {peak[i]:.2g}, and "
                    "the loss with it"
                )
            else:
                continue
            yield Symptom(
                layer.path,
                "critical",
                _first_step(recording, columns[i], start[i] * self.growth),
                evidence,
                _remedy(recording, layer),
            )


def _largest_behind(
    recording: Recording, layer: LayerInfo, layers: Sequence[LayerInfo], size: Any
) -> float:
    """The largest of what the layer's output goes through; other branches differ."""
    reached = _measures.reached(recording)[layer.path]
    behind = size[[other.path in reached for other in layers]]
    return float(np.nan_to_num(behind).max(initial=0))


def _grown(loss: np.ndarray) -> bool:
    if np.isnan(loss).all():
        return False  # the train step does not report its loss
    start = _measures.median(loss[:5])
    now = _measures.largest(loss[-10:])
    return bool(np.isnan(now) or now > 2 * start)


def _first_step(recording: Recording, column: int, limit: float) -> int:
    over = np.flatnonzero(recording["norm"][:, column] > limit)
    return int(recording.steps[over[0]]) if len(over) else 0


def _remedy(recording: Recording, layer: object) -> Remedy:
    clip = (
        "tfdeep.optimizers.ClipByGlobalNorm(optimizer, clip_norm=1.0) or a tenth of "
        "the learning rate bounds the step"
    )
    if getattr(layer, "recurrent_kernel", None):
        text = f'recurrent_initializer="orthogonal"; {clip}'
        return Remedy(text, "initializer", after="orthogonal")
    if any(other.is_normalization for other in recording.layers):
        text = f"skip connections (keras.layers.Add) around each block; {clip}"
        return Remedy(text, "skip_connections", after="Add")
    if _measures.is_untouched(recording):
        return Remedy(
            "keras.layers.BatchNormalization() in each block, or "
            "keras.initializers.HeNormal() (of tanh and sigmoid, GlorotUniform); "
            f"{clip}",
            "normalization",
            after="BatchNormalization",
        )
    return Remedy(clip, "clipping", after=1.0)
