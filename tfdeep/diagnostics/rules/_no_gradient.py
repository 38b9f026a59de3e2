"""A layer gets no gradient at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

# Evidence and remedy.
_CUT_OFF = (
    "no gradient reaches it",
    "look for tf.stop_gradient, keras.ops.stop_gradient, argmax or rounding behind it, "
    "or an output that the loss does not use",
)
_ZERO = (
    "its gradient is exactly zero",
    "look for what makes its output useless behind it: dead units, a factor of zero, "
    "values too small for float16 (keras.optimizers.LossScaleOptimizer)",
)


@dataclasses.dataclass(frozen=True)
class NoGradient(Rule):
    """Every weight of a layer has no gradient, or one of exactly zero, at every step.

    A single weight without a gradient is no illness: a bias in front of a
    normalization has none by construction, nor has the bias of the keys of an
    attention layer. A layer below one whose units are all dead is left to that
    finding.

    A layer that is frozen at the values of its initializer, with trained layers below
    it, is named too: who freezes on purpose freezes pretrained layers, from the input
    on.

    Args:
        steps: How many steps it must last.
    """

    kind: ClassVar[str] = "no_gradient"
    steps: int = 10

    def look(self, recording: Recording) -> Iterable[Symptom]:
        yield from self._without_gradient(recording)
        yield from _frozen_at_random(recording)

    def _without_gradient(self, recording: Recording) -> Iterable[Symptom]:
        recent = _measures.lately(recording, self.steps)
        norm = recording["norm"][recent]
        seen = ~np.isnan(norm).all(axis=1)  # not skipped by loss scaling
        if recording.total_steps < self.steps or seen.sum() < self.steps // 2:
            return
        if not np.nan_to_num(recording["loss"][recent], nan=1.0).any():
            return  # a loss of zero has nothing left to ask for
        norm = norm[seen]
        silent = (np.isnan(norm) | (norm == 0)).all(axis=0)
        unknown = np.isnan(norm).all(axis=0)
        layers = [(x, recording.columns_of(x)) for x in recording.layers]
        layers = [(layer, columns) for layer, columns in layers if columns]
        explained = _explained(recording)
        for i, (layer, columns) in enumerate(layers):
            if not silent[columns].all() or layer.is_normalization:
                continue
            if layer.path in explained and not unknown[columns].all():
                continue
            if layer.kernel is None or _frozen_columns(recording)[columns].all():
                continue
            if layer.path.rpartition("/")[2] in ("query", "key"):
                continue  # an attention over equal positions, or a saturated one
            if _vanished(recording, [c for _, cs in layers[i + 1 :] for c in cs]):
                continue  # it was too small for a float long before
            yield Symptom(
                layer.path,
                "critical",
                _measures.since(recording, self.steps),
                *(_CUT_OFF if unknown[columns].all() else _ZERO),
            )


def _frozen_columns(recording: Recording) -> np.ndarray:
    if "is_frozen" not in recording or not len(recording["is_frozen"]):
        return np.zeros(len(recording.variables), bool)
    return np.asarray(recording["is_frozen"][-1] == 1)


def _explained(recording: Recording) -> set[str]:
    """The layers at and below one that is dead or saturated as a whole."""
    blocking = _measures.blocking_layer(recording)
    if blocking is None:
        return set()
    above = _measures.layer_above(recording, blocking)
    bounded = _measures.activation_of(recording, blocking) in _measures.BOUNDED
    if above is None or not (bounded or _measures.is_silent(recording, above.kernel)):
        return set()
    paths = [layer.path for layer in recording.layers]
    return set(paths[: paths.index(blocking.path) + 1])


def _vanished(recording: Recording, columns: list[int]) -> bool:
    recent = _measures.lately(recording, 10)
    norm = recording["norm"][recent][:, columns]
    positive = norm[norm > 0]
    return bool(len(positive) and positive.min() < 1e-25)


def _frozen_at_random(recording: Recording) -> Iterable[Symptom]:
    trained_below = False
    for layer in recording.layers:
        if layer.kernel is None or layer.is_normalization:
            continue
        if layer.is_trainable:
            trained_below = True
        elif trained_below and layer.is_untouched and not layer.frozen_too_late:
            yield Symptom(
                layer.path,
                "warning",
                0,
                "it is frozen at the values of its initializer, between trained layers",
                f'model.get_layer("{layer.path}").trainable = True before '
                "model.compile, or tfdeep.unfreeze(model, ...), lets it learn; "
                "tfdeep.restore first, if it was to be pretrained",
            )
