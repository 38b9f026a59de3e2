"""A gradient, an output or the loss is NaN or infinite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_GROWN = (
    "tfdeep.optimizers.ClipByGlobalNorm(optimizer, clip_norm=1.0), a tenth of the "
    "learning rate, or keras.initializers.HeNormal() keeps it finite"
)
_SUDDEN = (
    "look for log, sqrt or a division by zero at or before it (add an epsilon) and for "
    "bad values in that batch; tfdeep.optimizers.SkipNonFinite(optimizer) leaves such "
    "steps out"
)
_STEPS_SKIPPED = 20
_SKIPPED = (
    "look for log, sqrt or a division by zero (add an epsilon), for values beyond "
    '65504 in float16 (keras.mixed_precision.set_global_policy("mixed_bfloat16")), '
    "and for NaN in the data"
)
_TOO_LARGE = (
    "keras.initializers.HeNormal() (of tanh and sigmoid, GlorotUniform) keeps the "
    "scale; so does keras.layers.BatchNormalization() in each block; where it grew "
    "from step to step, a tenth of the learning rate"
)


@dataclasses.dataclass(frozen=True)
class NonFinite(Rule):
    """Names the first step with NaN or infinity, and the layers it came from.

    The backward pass carries NaN from a layer to all layers below it. If some layers
    are finite, the cause is at or right above the topmost layer that is not. If none
    is, it came with the forward pass: with `GradientMonitor(activations=True)` the
    first layer with such an output is known, without it all are named. If all entries
    are finite and only their norm is not, the gradient is too large for float32. Single
    steps that a `LossScaleOptimizer` skips are normal as long as the loss is finite;
    twenty in a row are not, as it halves the scale at each.
    """

    kind: ClassVar[str] = "nonfinite"
    patience: ClassVar[int] = 1

    def look(self, recording: Recording) -> Iterable[Symptom]:
        norm = recording["norm"]
        steps = np.flatnonzero(np.isinf(norm).any(axis=1))
        lost = np.flatnonzero(_measures.is_lost(recording))
        if len(lost) and not (len(steps) and steps[0] <= lost[0]):
            yield _of_loss(recording, int(lost[0]))
            return
        if not len(steps):
            yield from _skipped(recording)
            return
        place = int(steps[0])
        step = int(recording.steps[place])
        broken = {
            path.rpartition("/")[0]
            for path, is_broken in zip(
                recording.variables, np.isinf(norm[place]), strict=True
            )
            if is_broken
        }
        culprits = [
            layer.path
            for layer in recording.layers
            if any(b == layer.path or b.startswith(f"{layer.path}/") for b in broken)
        ] or sorted(broken)
        forward = _first_nonfinite_output(recording, step)
        overflows = _overflows(recording, place)
        if forward is not None:
            culprits, overflows = [forward], {}
        for path in culprits:
            yield Symptom(
                path,
                "critical",
                step,
                _evidence(recording, place, path, forward, overflows),
                # What overflows in one layer makes infinite entries below it.
                Remedy(_TOO_LARGE, "initializer", after="he_normal")
                if overflows
                else _remedy(recording, place),
            )


def _of_loss(recording: Recording, place: int) -> Symptom:
    """What is said of a loss that is not finite where no gradient shows it."""
    loss = _measures.loss(recording)
    step = int(recording.steps[place])
    layer = _first_nonfinite_output(recording, step)
    if layer is not None:
        evidence = _evidence(recording, place, layer, layer, {})
    else:
        before = f"; the loss before was {loss[place - 1]:.3g}" if place else ""
        evidence = f"the loss is {'NaN' if np.isnan(loss[place]) else 'infinite'}"
        evidence += before
    return Symptom(layer or "", "critical", step, evidence, _remedy(recording, place))


def _skipped(recording: Recording) -> Iterable[Symptom]:
    is_known = ~np.isnan(recording["norm"])
    applied = np.flatnonzero(is_known.any(axis=1))
    last = int(recording.steps[applied[-1]]) if len(applied) else -1
    skipped = recording.total_steps - 1 - last
    # What is frozen or cut off has no gradient either.
    had_gradient = is_known.any(axis=0) & ~_measures.frozen(recording)
    is_broken = not np.isfinite(_measures.loss(recording)[-_STEPS_SKIPPED:]).any()
    if skipped >= _STEPS_SKIPPED and (had_gradient.any() or is_broken):
        yield Symptom(
            "",
            "critical",
            last + 1,
            f"the last {skipped} steps were skipped: at no loss scale are the "
            "gradients finite",
            _SKIPPED,
        )


def _first_nonfinite_output(recording: Recording, step: int) -> str | None:
    if recording.nonfinite_at is not None:
        return recording.nonfinite_at
    if recording.nonfinite_before is not None:
        return recording.nonfinite_before
    if "nonfinite_output" not in recording:
        return None
    row = np.flatnonzero(recording.measured_steps == step)
    if not len(row):
        return None
    outputs = recording["nonfinite_output"][row[0]]
    broken = np.flatnonzero(outputs > 0)
    return recording.layers[broken[0]].path if len(broken) else None


def _overflows(recording: Recording, place: int) -> dict[str, float]:
    """The largest entry of each layer with finite entries and an infinite norm."""
    if not {"nonfinite_count", "largest_entry"}.issubset(recording.quantities):
        return {}
    is_broken = np.isinf(recording["norm"][place])
    count = recording.at_steps("nonfinite_count")[place]
    entry = recording.at_steps("largest_entry")[place]
    found = {}
    for layer in recording.layers:
        columns = [i for i in recording.columns_of(layer) if is_broken[i]]
        if columns and (count[columns] == 0).all():
            found[layer.path] = float(entry[columns].max())
    return found


def _evidence(
    recording: Recording,
    place: int,
    path: str,
    forward: str | None,
    overflows: dict[str, float],
) -> str:
    loss = _measures.loss(recording)
    before = f"; the loss before was {loss[place - 1]:.3g}" if place else ""
    if forward is not None and forward == recording.nonfinite_before:
        return (
            f"its input is NaN or infinite: what comes right before it makes it{before}"
        )
    if forward is not None:
        return f"its output is NaN or infinite, the first to be so{before}"
    if path in overflows:
        return (
            f"its gradient is too large for float32: its largest entry is "
            f"{overflows[path]:.2g}, and its norm overflows{before}"
        )
    return f"its gradient is NaN or infinite{before}"


def _remedy(recording: Recording, place: int) -> Remedy:
    norm = recording["norm"][:place]
    has_grown = _measures.largest(norm[-4:]) > 30 * _measures.largest(norm[:1])
    if has_grown:
        return Remedy(_GROWN, "clipping", after=1.0)
    if place < 3:
        return Remedy(f"{_SUDDEN}; if the loss is far too large, {_GROWN}")
    return Remedy(_SUDDEN)
