"""Measures the statistics of batch normalization again, over a dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _paths
from tfdeep._core._arguments import whole_number
from tfdeep._core._explain import a_type, explain, listing
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep._keras import _variables
from tfdeep._keras._patches import replaced
from tfdeep._keras._walk import layers_of_kind
from tfdeep.errors import DataError, ModelError

_MOST_ROWS = 40
# What can be iterated over and does not give batches, or gives one part a replica.
_NO_BATCHES = (np.ndarray, tf.Tensor, tuple, dict, tf.distribute.DistributedDataset)


@dataclasses.dataclass(frozen=True)
class StatisticsChange:
    """What `recalibrate_batch_norm` did to one layer; means over its channels.

    Attributes:
        path: The layer's path in its model.
        channels: Number of channels.
        values: Number of values that each channel was measured over.
        mean_before: Moving mean before.
        mean_after: Moving mean now.
        variance_before: Moving variance before.
        variance_after: Moving variance now.
        shift: How far the mean of a channel moved at most, in standard deviations.
    """

    path: str
    channels: int
    values: int
    mean_before: float
    mean_after: float
    variance_before: float
    variance_after: float
    shift: float


@dataclasses.dataclass(frozen=True)
class RecalibrationReport(Record):
    """The statistics of each batch normalization before and after.

    Attributes:
        model: Name of the model.
        examples: Number of examples they were measured over.
        batches: Number of batches.
        layers: What changed, in the order in which the layers are called.
        not_called: Paths of layers that the model does not call at inference; their
            statistics are as they were.
    """

    model: str
    examples: int
    batches: int
    layers: tuple[StatisticsChange, ...]
    not_called: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            (
                layer.path,
                f"{layer.mean_before:.3g}",
                f"{layer.mean_after:.3g}",
                f"{layer.variance_before:.3g}",
                f"{layer.variance_after:.3g}",
                f"{layer.shift:.2g}",
            )
            for layer in self.layers
        ]
        notes = ["shift: of a channel's mean, in standard deviations, at most"]
        if self.not_called:
            notes.append(f"not called at inference: {listing(self.not_called)}")
        return render_table(
            f"{self.model}: {len(self.layers)} batch normalizations measured over "
            f"{self.examples:,} examples in {self.batches:,} batches",
            ["layer", "mean", "now", "variance", "now", "shift"],
            shorten(rows, _MOST_ROWS),
            notes=notes,
            align="lrrrrr",
        )


@dataclasses.dataclass
class _Moments:
    """Count, mean and sum of squared deviations of each channel, in float64."""

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0
    examples: int = 0
    batches: int = 0

    def add(self, count: int, mean: Any, squares: Any) -> None:
        """Joins the moments of two sets of values (Chan et al., 1979)."""
        if not count:
            return
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


def recalibrate_batch_norm(
    model: Any,
    dataset: Any,
    steps: int | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
) -> RecalibrationReport:
    """Sets moving means and variances to those of a dataset, measured exactly.

    Use it after averaging weights (SWA, EMA), after unfreezing, before a domain with
    other data, or after a training too short for the moving averages, which forget
    one hundredth a step. For each channel of each layer, over all its values x at
    inference:

        E[x] = sum(x) / n,     Var[x] = sum((x - E[x])**2) / n

    Layers are measured one after the other, each with those before it already set, so
    that afterwards every one normalizes this dataset to mean 0 and variance 1 at
    inference. (To take all from one pass with the statistics of the batches, as the
    paper has it, would measure inputs that inference never sees.) For each layer the
    model is traced once, and the dataset read and computed up to that layer; `steps`
    bounds the work.

    Every value has the same weight, also in a smaller last batch; masked values have
    none. The variance is the biased one, as in Keras. A layer that is called several
    times is measured over all its calls together.

    Args:
        model: A built model of any kind.
        dataset: A `tf.data.Dataset`, or anything that can be read again from the
            start, of batches as for `fit`: inputs, `(inputs, labels)` or `(inputs,
            labels, sample_weights)`. One that shuffles differently at each pass gives
            each layer other batches if `steps` ends it early.
        steps: Number of batches to read. None reads all.
        include: A pattern or a list of patterns; the layers to measure. None takes
            every batch normalization, frozen ones too.
        exclude: A pattern or a list of patterns; the layers to leave as they are.

    Returns:
        A `tfdeep.surgery.RecalibrationReport`, which prints as a table.

    Raises:
        ModelError: If the model has no batch normalization, or has one in a loop.
        DataError: If the dataset is empty or endless, does not fit, or gives values
            that are not finite. The statistics are then as they were.
        InvalidArgumentError: If `steps` is not a whole number > 0.
        SelectionError: If a pattern selects nothing.

    Example:

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> dataset = tf.data.Dataset.from_tensor_slices([[1.0], [3.0], [8.0]]).batch(2)
    >>> report = tfdeep.surgery.recalibrate_batch_norm(model, dataset)
    >>> report.layers[0].mean_after, round(report.layers[0].variance_after, 3)
    (4.0, 8.667)

    Reference:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167 (section 3.1).
    """
    layers = _selected(model, include, exclude)
    batches = _checked(dataset, steps)
    before = {path: _statistics(layer) for path, layer in layers.items()}
    measured: dict[str, _Moments] = {}
    try:
        for path in _call_order(model, layers, batches()):
            measured[path] = _measure(model, path, layers[path], batches())
            _assign(layers[path], measured[path])
    except BaseException:
        for path, layer in layers.items():
            for variable, value in zip(
                _statistics_of(layer), before[path], strict=True
            ):
                variable.assign(value)
        raise
    any_moments = next(iter(measured.values()), _Moments())
    return RecalibrationReport(
        model=model.name,
        examples=any_moments.examples,
        batches=any_moments.batches,
        layers=tuple(
            _change(path, layers[path], before[path], moments.count)
            for path, moments in measured.items()
        ),
        not_called=tuple(path for path in layers if path not in measured),
    )


def _selected(model: Any, include: Patterns, exclude: Patterns) -> dict[str, Any]:
    _variables.model_variables(model)  # which says so if there are none yet
    layers = layers_of_kind(model, keras.layers.BatchNormalization)
    if not layers:
        raise ModelError(
            explain(
                f"The model `{model.name}` has no batch normalization.",
                received=f"{a_type(model)} without one",
                expected="at least one `keras.layers.BatchNormalization`",
                fix="leave the call out: there is nothing to measure",
            )
        )
    chosen = _paths.select(list(layers), include, exclude, what="batch normalization")
    return {path: layers[path] for path in chosen}


def _checked(dataset: Any, steps: int | None) -> Callable[[], Iterable[Any]]:
    """What reads the inputs of each batch from the start."""
    if steps is not None:
        steps = whole_number(
            steps,
            "steps",
            "recalibrate_batch_norm",
            above=0,
            unit="batches, or None for all",
            example=100,
        )
    has_batches = hasattr(dataset, "__iter__") and not isinstance(dataset, _NO_BATCHES)
    if not has_batches or iter(dataset) is dataset:
        raise DataError(
            explain(
                "The dataset cannot be read batch by batch, several times.",
                received=f"{a_type(dataset)}",
                expected="a `tf.data.Dataset` or a list of batches",
                fix="`tf.data.Dataset.from_tensor_slices((x, y)).batch(32)`; nothing "
                "was changed",
            )
        )
    is_endless = (
        isinstance(dataset, tf.data.Dataset)
        and int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY
    )
    if is_endless and steps is None:
        raise DataError(
            explain(
                "The dataset has no end.",
                received="a dataset of infinite cardinality",
                expected="an end to the batches",
                fix="for example `steps=100`; nothing was changed",
            )
        )

    def batches() -> Iterable[Any]:
        for number, batch in enumerate(dataset):
            if number == steps:
                return
            yield keras.utils.unpack_x_y_sample_weight(batch)[0]

    return batches


def _call_order(
    model: Any, layers: dict[str, Any], batches: Iterable[Any]
) -> list[str]:
    """The paths of the layers in the order in which the model calls them first."""
    order: dict[str, None] = {}
    with contextlib.ExitStack() as stack:
        for path, layer in layers.items():
            _look_on(stack, layer, lambda *_, path=path: order.setdefault(path))
        for inputs in batches:
            _on_model(model, lambda: []).get_concrete_function(inputs)
            return list(order)
    raise DataError(
        explain(
            "The dataset is empty.",
            received="0 batches",
            expected="at least one",
            fix="check the files or filters it is made of; nothing was changed",
        )
    )


def _measure(model: Any, path: str, layer: Any, batches: Iterable[Any]) -> _Moments:
    """The moments of what a layer is given, over all batches."""
    calls: list[tuple[Any, Any]] = []
    moments = _Moments()

    def of_batch() -> list[Any]:
        graph = tf.compat.v1.get_default_graph()
        if any(inputs.graph is not graph for inputs, _ in calls):
            raise ModelError(
                explain(
                    f"The inputs of `{path}` cannot be seen from outside.",
                    received="a batch normalization inside a loop, such as a recurrent "
                    "layer's",
                    expected="batch normalization outside of loops",
                    fix="`keras.layers.LayerNormalization` in recurrent nets, or leave "
                    f"it out with exclude={path!r}; nothing was changed",
                )
            )
        found = [_moments(inputs, mask, layer.axis) for inputs, mask in calls]
        calls.clear()
        return found

    with contextlib.ExitStack() as stack:
        _look_on(stack, layer, lambda inputs, mask: calls.append((inputs, mask)))
        run = _on_model(model, of_batch)
        for inputs in batches:
            for count, mean, squares in run(inputs):
                moments.add(int(count), mean.numpy(), squares.numpy())
            moments.examples += int(tf.shape(keras.tree.flatten(inputs)[0])[0])
            moments.batches += 1
    if not moments.count or not np.isfinite(moments.squares).all():
        raise DataError(
            explain(
                f"The dataset gives `{path}` no statistics.",
                received="values that are not finite" if moments.count else "no values",
                expected="finite values",
                fix="look for NaN in the inputs and weights; nothing was changed",
            )
        )
    return moments


def _on_model(model: Any, result: Callable[[], list[Any]]) -> Any:
    # Only what `result` needs of the model is computed: the rest is pruned.
    @tf.function(reduce_retracing=True, autograph=False)
    def run(inputs: Any) -> list[Any]:
        model(inputs, training=False)
        return result()

    return run


def _look_on(
    stack: contextlib.ExitStack, layer: Any, see: Callable[[Any, Any], object]
) -> None:
    """Shows `see` the inputs and the mask of each call until `stack` closes."""

    def around(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def seen(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            see(inputs, kwargs.get("mask"))
            return call(inputs, *args, **kwargs)

        return seen

    stack.enter_context(replaced(layer, "call", around))


def _moments(inputs: Any, mask: Any, axis: int) -> tuple[tf.Tensor, ...]:
    """Count, mean and sum of squared deviations of each channel of one batch."""
    x = tf.cast(inputs, tf.float64)
    axis %= x.shape.rank
    order = [i for i in range(x.shape.rank) if i != axis] + [axis]
    values = tf.reshape(tf.transpose(x, order), [-1, x.shape[axis]])
    if mask is not None:
        values = tf.boolean_mask(values, tf.reshape(tf.cast(mask, tf.bool), [-1]))
    count = tf.shape(values, tf.int64)[0]
    size = tf.cast(count, tf.float64)
    mean = tf.math.divide_no_nan(tf.reduce_sum(values, 0), size)
    return count, mean, tf.reduce_sum(tf.square(values - mean), 0)


def _statistics_of(layer: Any) -> list[Any]:
    found = [layer.moving_mean, layer.moving_variance]
    if getattr(layer, "renorm", False):
        found += [layer.renorm_mean, layer.renorm_stddev, layer.moving_stddev]
    return found


def _statistics(layer: Any) -> list[Any]:
    return [variable.numpy() for variable in _statistics_of(layer)]


def _assign(layer: Any, moments: _Moments) -> None:
    variance = moments.squares / moments.count
    deviation = np.sqrt(variance + layer.epsilon)  # as renormalization keeps it
    values = [moments.mean, variance, moments.mean, deviation, deviation]
    for variable, value in zip(_statistics_of(layer), values, strict=False):
        variable.assign(value)


def _change(path: str, layer: Any, before: list[Any], count: int) -> StatisticsChange:
    mean, variance, *_ = _statistics(layer)
    moved = np.abs(mean - before[0]) / np.sqrt(variance + layer.epsilon)
    return StatisticsChange(
        path=path,
        channels=len(mean),
        values=count,
        mean_before=float(before[0].mean()),
        mean_after=float(mean.mean()),
        variance_before=float(before[1].mean()),
        variance_after=float(variance.mean()),
        shift=float(moved.max()),
    )
