"""A layer gets no gradient at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep._keras._layer_facts import activation as activation_facts
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._dead_units import DeadUnits
from tfdeep.diagnostics.rules._rule import Rule, Symptom
from tfdeep.diagnostics.rules._saturated_units import SaturatedUnits

# At least, and at least as long as dead units take to be known.
_STEPS_OF_ZERO, _MEASURED_STEPS_OF_ZERO = 30, 5

# Evidence and remedy.
_CUT_OFF = (
    "no gradient reaches it",
    "look for tf.stop_gradient, keras.ops.stop_gradient, argmax or rounding after it, "
    "or an output that the loss does not use",
)
_ZERO = (
    "its gradient is exactly zero",
    "look for what discards its output in the layers after it: dead units, a factor of "
    "zero, values too small for float16 (keras.optimizers.LossScaleOptimizer)",
)
_ZERO_INPUT = (
    "its input is zero: its bias has a gradient, its kernel one of exactly zero",
    "check what comes before it: a mask, a factor of zero, a normalization over a "
    "single value",
)
_ZERO_LOSS = (
    "the loss is exactly zero from the first step on",
    "check sample_weight, class_weight, loss_weights and masks: no example counts",
)


@dataclasses.dataclass(frozen=True)
class NoGradient(Rule):
    """Every weight of a layer has no gradient, or one of exactly zero, at every step.

    A single weight without a gradient is not a problem: the bias before a normalization
    has none by construction, and neither has the bias of the keys of an attention
    layer. A layer below one whose units are all dead is left to that finding. A layer
    that changes nevertheless is trained elsewhere, for example by a second optimizer.

    The gradient of a kernel is a sum of input times error, that of a bias a sum of
    errors. So where only the kernel has none, the input is zero.

    A layer that is frozen at the values of its initializer, between trained layers, is
    reported too: layers are frozen on purpose from the input on, and pretrained.

    Args:
        steps: For how many steps there must be no gradient. A gradient of exactly zero
            must last for thirty steps, five of them measured: an expert, or the output
            of a rare task, may have none for a while.
    """

    kind: ClassVar[str] = "no_gradient"
    steps: int = 10

    def look(self, recording: Recording) -> Iterable[Symptom]:
        loss = _measures.loss(recording)
        if not loss.any() and _measures.is_untouched(recording):
            if recording.lasted >= self.steps:
                yield Symptom("", "critical", 0, *_ZERO_LOSS)
            return
        yield from self._without_gradient(recording)
        yield from _with_zero_input(recording)
        yield from _frozen_at_random(recording)

    def _without_gradient(self, recording: Recording) -> Iterable[Symptom]:
        recent = _measures.lately(recording, self.steps)
        norm = _measures.gradient_norms(recording)[recent]
        seen = ~np.isnan(norm).all(axis=1)  # not skipped by loss scaling
        seen_for = seen.sum() * recording.stands_for
        if recording.lasted < self.steps or seen_for < self.steps // 2:
            return
        if not np.nan_to_num(recording["loss"][recent], nan=1.0).any():
            return  # a loss of zero has nothing left to ask for
        norm = norm[seen]
        unknown = np.isnan(norm).all(axis=0)
        silent = _is_zero(recording) | unknown
        layers = [(x, recording.columns_of(x)) for x in recording.layers]
        layers = [(layer, columns) for layer, columns in layers if columns]
        explained = _explained(recording)
        for i, (layer, columns) in enumerate(layers):
            if not silent[columns].all() or layer.is_normalization:
                continue
            if layer.path in explained and not unknown[columns].all():
                continue
            if layer.kernel is None or _measures.frozen(recording)[columns].all():
                continue
            if unknown[columns].all() and _is_changing(recording, columns):
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


def _is_zero(recording: Recording) -> np.ndarray:
    """Of each column, whether its gradient has been exactly zero for long enough."""
    steps = _steps_of_zero(recording)
    if recording.lasted < steps:
        return np.zeros(len(recording.variables), bool)
    return _measures.silent(recording, steps)


def _steps_of_zero(recording: Recording) -> int:
    lately = _measures.measured_lately(recording, _MEASURED_STEPS_OF_ZERO + 1)
    measured = recording.measured_steps[lately]
    span = int(measured[-1] - measured[0]) if len(measured) else 0
    return max(_STEPS_OF_ZERO, span)


def _is_changing(recording: Recording, columns: list[int]) -> bool:
    if "update_norm" not in recording:
        return False
    update = recording["update_norm"][:, columns]
    update = update[~np.isnan(update).all(axis=1)]
    return bool((update[-3:] > 0).any())


def _with_zero_input(recording: Recording) -> Iterable[Symptom]:
    is_zero, steps = _is_zero(recording), _steps_of_zero(recording)
    for layer, column in _measures.weighted_layers(recording):
        bias = recording.column(layer.bias)
        if not is_zero[column] or bias is None or layer.has_own_rule:
            continue
        norm = _measures.gradient_norms(recording)[
            _measures.lately(recording, steps), bias
        ]
        if (norm > 0).mean() > 0.5 and not _is_dead_somewhere(recording):
            since = _measures.since(recording, steps)
            yield Symptom(layer.path, "critical", since, *_ZERO_INPUT)


@_measures.memoized
def _is_dead_somewhere(recording: Recording) -> bool:
    """Whether the rules for dead and saturated units have something to say."""
    return any(list(r.look(recording)) for r in (DeadUnits(), SaturatedUnits()))


def _explained(recording: Recording) -> set[str]:
    """The layers at and below one that is dead or saturated as a whole."""
    blocking = _measures.blocking_layer(recording)
    if blocking is None or not _is_dead_somewhere(recording):
        return set()
    above = _measures.layer_above(recording, blocking)
    activation = activation_facts(_measures.activation_of(recording, blocking))
    if above is None or not (
        activation.saturates or _measures.is_silent(recording, above.kernel)
    ):
        return set()
    paths = [layer.path for layer in recording.layers]
    return set(paths[: paths.index(blocking.path) + 1])


def _vanished(recording: Recording, columns: list[int]) -> bool:
    recent = _measures.lately(recording, 10)
    norm = recording["norm"][recent][:, columns]
    positive = norm[norm > 0]
    return bool(len(positive) and positive.min() < 1e-25)


def _frozen_at_random(recording: Recording) -> Iterable[Symptom]:
    # Without a graph it is unknown what comes after: it may be a copy of a trained one.
    if not any(layer.makes_output for layer in recording.layers):
        return
    kernels = [
        x for x in recording.layers if x.kernel is not None and not x.is_normalization
    ]
    trained = {layer.path for layer in kernels if layer.is_trainable}
    for layer in kernels:
        if layer.is_trainable or not layer.is_untouched or layer.frozen_too_late:
            continue
        reached = _measures.reached(recording)
        is_behind = any(layer.path in reached[path] for path in trained)
        if is_behind and trained & reached[layer.path]:
            yield Symptom(
                layer.path,
                "warning",
                0,
                "it is frozen at the values of its initializer, between trained layers",
                Remedy(
                    f'model.get_layer("{layer.path}").trainable = True before '
                    "model.compile, or tfdeep.unfreeze(model, ...), lets it learn; "
                    "tfdeep.restore first, if it was to be pretrained",
                    "trainable",
                    layer.path,
                    False,
                    True,
                ),
            )
