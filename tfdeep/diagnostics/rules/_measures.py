"""Measures that several rules take of a recording."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tfdeep._keras import _layer_outputs
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy

_T = TypeVar("_T")


def memoized(measure: Callable[..., _T]) -> Callable[..., _T]:
    """Keeps what a function makes of a recording until steps are added to it."""

    @functools.wraps(measure)
    def remembered(recording: Recording, *args: Any) -> _T:
        key = (measure.__name__, *args)
        if key not in recording.memo:
            recording.memo[key] = measure(recording, *args)
        known: _T = recording.memo[key]
        return known

    return remembered


@memoized
def weighted_layers(recording: Recording) -> list[tuple[LayerInfo, int]]:
    """The layers that multiply their input by a recorded weight, with its column."""
    found = []
    for layer in recording.layers:
        column = recording.column(layer.kernel)
        if column is not None and not layer.is_normalization and not layer.is_embedding:
            found.append((layer, column))
    return found


@memoized
def horizon(recording: Recording) -> int:
    """The number of steps until nothing was finite any more; else of all steps."""
    norm = recording["norm"]
    last = norm[-1]
    # A step that loss scaling skipped has no norms at all.
    if np.isfinite(last).any() or np.isnan(last).all():
        return recording.total_steps
    finite = np.flatnonzero(np.isfinite(norm).any(axis=1))
    return (
        int(recording.steps[finite[-1]]) + 1 if len(finite) else recording.total_steps
    )


@memoized
def lately(recording: Recording, steps: int) -> np.ndarray:
    """The places of the kept rows among the last so many steps up to the horizon."""
    end = horizon(recording)
    return np.arange(*np.searchsorted(recording.steps, [end - steps, end]))


@memoized
def measured_lately(recording: Recording, count: int = 3) -> np.ndarray:
    """The places of the last so many rows that were measured in detail."""
    end = np.searchsorted(recording.measured_steps, horizon(recording))
    return np.arange(max(end - count, 0), end)


def since(recording: Recording, steps: int = 10) -> int:
    """The first step of what shows in all of the last so many steps.

    What shows when it is asked first has been so from the start.
    """
    return 0 if recording.lasted <= 2 * steps else recording.total_steps - steps


def has_gradient(recording: Recording, path: str | None, steps: int = 10) -> bool:
    """Whether a weight had a gradient, be it zero, in the last steps."""
    column = recording.column(path)
    return column is not None and bool(with_gradient(recording, steps)[column])


def is_silent(recording: Recording, path: str | None, steps: int = 10) -> bool:
    """Whether a weight's gradient was there, and exactly zero, in the last steps."""
    column = recording.column(path)
    return column is not None and bool(silent(recording, steps)[column])


@memoized
def with_gradient(recording: Recording, steps: int = 10) -> np.ndarray:
    """Of each column, whether it had a gradient, be it zero, in the last steps."""
    known = ~np.isnan(recording["norm"][lately(recording, steps)])
    return np.asarray(known.any(axis=0))


@memoized
def silent(recording: Recording, steps: int = 10) -> np.ndarray:
    """Of each column, whether its gradient was there, and exactly zero."""
    norm = gradient_norms(recording)[lately(recording, steps)]
    none = (np.isnan(norm) | (norm == 0)).all(axis=0)
    return np.asarray(none & with_gradient(recording, steps))


def frozen(recording: Recording) -> np.ndarray:
    """Of each column, whether the weight is frozen now."""
    if "is_frozen" not in recording or not len(recording["is_frozen"]):
        return np.zeros(len(recording.variables), bool)
    return np.asarray(recording["is_frozen"][-1] == 1)


@memoized
def blocking_layer(recording: Recording) -> LayerInfo | None:
    """The topmost layer whose weights all get a gradient of exactly zero.

    Those below it, if any, get none because of it. None if there is no such layer, or
    if nothing above it gets a gradient either.
    """
    weighted = [layer for layer, _ in weighted_layers(recording)]
    for i in range(len(weighted) - 2, -1, -1):
        above = weighted[i + 1]
        if silent(recording)[recording.columns_of(weighted[i])].all():
            if above.bias is not None and not is_silent(recording, above.bias):
                return weighted[i]
            if above.bias is None and not is_silent(recording, above.kernel):
                return weighted[i]
    return None


def layer_above(recording: Recording, layer: LayerInfo) -> LayerInfo | None:
    """The next layer with a recorded weight, in the order of the net."""
    weighted = {other.path for other, _ in weighted_layers(recording)}
    place = recording.layers.index(layer)
    behind = (x for x in recording.layers[place + 1 :] if x.path in weighted)
    return next(behind, None)


def median(values: Any, axis: int | None = None) -> Any:
    """The median of what is finite; NaN where nothing is."""
    values = np.asarray(values, np.float64)
    if values.size and np.isfinite(values).all():  # many times faster
        return np.median(values, axis=axis)
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=axis)


def largest(values: Any, axis: int | None = None) -> Any:
    """The largest of what is finite; NaN where nothing is."""
    values = np.asarray(values, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmax(values, axis=axis, initial=np.nan)


@memoized
def weight_norms(recording: Recording) -> np.ndarray:
    """The largest norm that each weight has had so far."""
    return np.asarray(largest(recording["weight_norm"], axis=0))


@memoized
def sensitivities(
    recording: Recording, steps: int = 10
) -> tuple[np.ndarray, list[Any]]:
    """By how much the loss changes if all weights of a layer change by a factor.

        s = ||gradient|| * ||weight||

    In a homogeneous net a factor on the weights of one layer does the same as on those
    of another, so `s` is the same for all layers, whatever their sizes and scales, as
    long as the signal passes freely.

    Returns:
        The median of the last so many steps for each layer with a kernel, tables
        among them, and the layers.
    """
    layers = [
        (layer, column)
        for layer in recording.layers
        if (column := recording.column(layer.kernel)) is not None
        and not layer.is_normalization
    ]
    columns = [column for _, column in layers]
    norm = gradient_norms(recording)[lately(recording, steps)][:, columns]
    scale = weight_norms(recording)[columns]
    return median(norm, axis=0) * scale, [layer for layer, _ in layers]


def relative_updates(
    recording: Recording,
) -> tuple[np.ndarray, np.ndarray, list[LayerInfo]]:
    """`||update|| / ||weight||` of each weighted layer at the steps it was measured.

    A weight that started at or near zero is compared with the norm it would have with
    a gain of 0.5, so that its first steps are not infinitely large.

    Returns:
        The ratios, of shape (measured, layers); the steps; and the layers.
    """
    weighted = weighted_layers(recording)
    columns = [column for _, column in weighted]
    update = recording["update_norm"][:, columns]
    weight = recording["weight_norm"][:, columns]
    known = ~np.isnan(update).all(axis=1)
    floor = [0.5 * np.sqrt(layer.units) for layer, _ in weighted]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = update[known] / np.maximum(weight[known], floor)
    return ratio, recording.measured_steps[known], [layer for layer, _ in weighted]


@memoized
def loss(recording: Recording) -> np.ndarray:
    """The loss of each kept step."""
    return np.asarray(recording["loss"][:, 0], np.float64)


@memoized
def data_loss(recording: Recording) -> np.ndarray:
    """The loss of each kept step without penalties on weights and outputs."""
    if "data_loss" in recording:
        data = np.asarray(recording["data_loss"][:, 0], np.float64)
        if not np.isnan(data).all():
            return data
    return loss(recording)


@memoized
def gradient_norms(recording: Recording) -> np.ndarray:
    """The norm of the data loss' gradient at each kept step, by column.

    Where a weight has a penalty, its gradient is told apart at the measured steps
    only, and taken to last until the next one.
    """
    norm = recording["norm"]
    if "data_norm" not in recording:
        return norm
    data = recording.at_steps("data_norm")
    known = ~np.isnan(data)
    if not known.any():
        return norm
    last = np.maximum.accumulate(np.where(known, np.arange(len(data))[:, None], -1))
    filled = np.take_along_axis(data, np.maximum(last, 0), axis=0)
    return np.where((last >= 0) & np.isfinite(norm), filled, norm)


@memoized
def has_fallen(recording: Recording, to: float) -> bool:
    """Whether the loss has fallen to this fraction of its start; True if unknown."""
    values = data_loss(recording)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) * recording.stands_for < 10:
        return True
    start = min(values[known[0]], median(values[known[:3]]))
    now = median(values[known[-5:]])
    if np.isnan(now) or horizon(recording) < recording.total_steps:
        return False  # no finite loss is left
    return bool(now < start - (1 - to) * abs(start))


def is_untouched(recording: Recording) -> bool:
    """Whether the net seems to start from its initializers, and not pretrained."""
    with_bias = [layer for layer in recording.layers if layer.bias is not None]
    touched = [layer for layer in with_bias if not layer.is_untouched]
    return not touched or len(touched) <= len(with_bias) // 4


@memoized
def reached(recording: Recording) -> dict[str, set[str]]:
    """The layers after each layer, through which its output reaches the loss."""
    behind: dict[str, set[str]] = {layer.path: set() for layer in recording.layers}
    for layer in reversed(recording.layers):
        for path in layer.inputs:
            behind.setdefault(path, set()).update({layer.path}, behind[layer.path])
    return behind


def followers(recording: Recording, path: str) -> list[LayerInfo]:
    """The layers right after a layer."""
    return [layer for layer in recording.layers if path in layer.inputs]


def is_normalized(recording: Recording, layer: LayerInfo) -> bool:
    """Whether all that follows a layer brings its output to a fixed scale."""
    behind = followers(recording, layer.path)
    return bool(behind) and all(after.is_normalization for after in behind)


def is_output(recording: Recording, layer: LayerInfo) -> bool:
    """Whether a layer makes an output of the model, or nothing follows it."""
    return layer.makes_output or not followers(recording, layer.path)


def activation_of(recording: Recording, layer: LayerInfo) -> str:
    """The activation that a layer's output goes through, in it or right after it."""
    seen = {layer.path}
    while layer.activation == "linear":
        behind = followers(recording, layer.path)
        if len(behind) != 1 or behind[0].path in seen or behind[0].kernel:
            break
        layer = behind[0]
        seen.add(layer.path)
    return layer.activation


def times(factor: float) -> str:
    """A factor as text.

    >>> times(1234567.0), times(3.14159)
    ('1.2e+06 times', '3.1 times')
    """
    return f"{factor:.2g} times"


def of_output(recording: Recording, quantity: str, output: int) -> np.ndarray:
    """A quantity of one output at the measured steps; empty if it is not known."""
    if quantity not in recording or output >= recording[quantity].shape[1]:
        return np.empty(0, np.float32)
    return np.asarray(recording[quantity][:, output])


@memoized
def examples(recording: Recording) -> float:
    """How many examples the measured steps have seen; 0 if unknown."""
    if "examples" not in recording:
        return 0.0
    return float(np.nansum(recording["examples"][:, 0]))


def examples_of(
    recording: Recording, layer: LayerInfo | None, rows: slice | np.ndarray
) -> int:
    """On how many examples these rows of the measured steps rest; 0 if unknown.

    Args:
        recording: The recording.
        layer: The layer whose outputs were measured, of a sample of each batch; None
            if whole batches were.
        rows: The rows.
    """
    if "examples" not in recording:
        return 0
    count = np.nan_to_num(recording["examples"][rows, 0])
    if layer is not None:
        count = np.minimum(count, _layer_outputs.most_examples(layer.units))
    return int(count.sum())


def on_examples(count: int) -> str:
    """The end of a statement that rests on so many examples.

    >>> on_examples(32), on_examples(0)
    (', on 32 examples', '')
    """
    return f", on {count} example{'s' if count > 1 else ''}" if count else ""


@memoized
def is_lost(recording: Recording) -> np.ndarray:
    """Of each kept step, whether its loss is known not to be finite."""
    losses = loss(recording)
    # NaN stands for what was not recorded, too.
    is_known = ~np.isnan(recording["norm"]).all(axis=1)
    is_known &= bool(np.isfinite(losses).any())
    if "examples" in recording:
        is_known |= ~np.isnan(recording.at_steps("examples")[:, 0])
    return np.asarray(np.isinf(losses) | (np.isnan(losses) & is_known))


@memoized
def is_broken(recording: Recording) -> bool:
    """Whether any loss or gradient of the run is known not to be finite."""
    return bool(is_lost(recording).any() or np.isinf(recording["norm"]).any())


@memoized
def has_learned(recording: Recording, to: float) -> bool:
    """Whether the loss is below this fraction of what knowing nothing gives.

    Knowing nothing gives the spread of the targets, or the logarithm of the number of
    classes; of other losses, what the loss was at first.
    """
    losses = data_loss(recording)
    losses = losses[np.isfinite(losses)]
    outputs = recording.program.outputs
    if len(losses) < 50 or is_broken(recording) or len(outputs) > 1:
        return len(losses) >= 50 and has_fallen(recording, to)
    of_nothing = [float(losses[0])]
    if outputs:
        spread = median(of_output(recording, "target_spread", 0))
        known = {
            "mean_squared_error": spread**2,
            "mean_absolute_error": spread,
            "binary_crossentropy": math.log(2),
            "categorical_crossentropy": math.log(max(outputs[0].size, 2)),
            "sparse_categorical_crossentropy": math.log(max(outputs[0].size, 2)),
        }
        of_nothing.append(known.get(outputs[0].loss.name, np.inf))
    return bool(median(losses[-5:]) < to * np.nanmin(of_nothing))


@memoized
def has_fallen_so_far(recording: Recording, to: float) -> bool:
    """Whether the loss had fallen to this fraction of its start while it was finite."""
    values = data_loss(recording)
    values = values[np.isfinite(values)]
    if len(values) < 10:
        return False
    start = min(values[0], median(values[:3]))
    return bool(median(values[-5:]) < start - (1 - to) * abs(start))


# Their steps move each weight by about the rate.
SIGN_LIKE = ("Adam", "AdamW", "Adamax", "Nadam", "RMSprop", "Lion", "Lamb")


@memoized
def weight_scale(recording: Recording) -> float:
    """The root mean square of the first weights of the largest kernel; 0 if unknown."""
    sizes = [(0, 0.0)]
    for layer, column in weighted_layers(recording):
        count = layer.units * layer.fan_in
        norms = recording["weight_norm"][:, column]
        norms = norms[np.isfinite(norms)]
        if count and len(norms) and layer.gain > 0:
            sizes.append((count, float(norms[0]) / np.sqrt(count)))
    return max(sizes)[1]


@memoized
def has_sorted_batches(recording: Recording) -> bool:
    """Whether most batches of eight and more hold one target each, not the same one."""
    if "target_spread" not in recording or recording["target_spread"].shape[1] != 1:
        return False
    spread, offset = (
        of_output(recording, f"target_{name}", 0) for name in ("spread", "offset")
    )
    known = np.isfinite(spread) & (recording["examples"][:, 0] >= 8)
    highest = of_output(recording, "target_max", 0)[known]
    if known.sum() < 5 or not np.ptp(np.nan_to_num(highest)) + np.ptp(offset[known]):
        return False
    alike = spread[known] <= 1e-6 * np.maximum(np.abs(highest), 1e-30)
    return bool(alike.mean() > 0.5)


def losses_by_epoch(
    recording: Recording,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss and validation loss of the epochs that have both, and their last steps.

    The loss is the mean of what was recorded in an epoch, with penalties, as the
    validation loss is.
    """
    rows = []
    first = 0
    for step, logs in recording.epochs:
        here = slice(*np.searchsorted(recording.steps, [first, step]))
        losses = loss(recording)[here]
        losses = losses[np.isfinite(losses)]
        now = float(np.mean(losses)) if len(losses) else logs.get("loss", np.nan)
        validation = logs.get("val_loss", np.nan)
        if np.isfinite(now) and np.isfinite(validation):
            rows.append((now, validation, step))
        first = step
    on_training, validation, steps = np.array(rows, np.float64).reshape(-1, 3).T
    return on_training, validation, steps


def usual_factor(ratio: float) -> float:
    """The power of ten by which an update of this ratio becomes a usual one.

    The median ratio of healthy nets of the gym is 0.02.
    """
    return float(10.0 ** np.clip(np.round(np.log10(0.02 / max(ratio, 1e-30))), -6, 6))


def rate_remedy(rate: float, factor: float) -> Remedy:
    """Another learning rate, by a factor."""
    by = f"{factor:g} times larger" if factor > 1 else f"{1 / factor:g} times smaller"
    if np.isnan(rate):
        return Remedy(f"a learning rate {by}", "learning_rate", after=f"x {factor:g}")
    return Remedy(
        f"a learning rate of {rate * factor:.2g}, {by}",
        "learning_rate",
        before=rate,
        after=rate * factor,
    )
