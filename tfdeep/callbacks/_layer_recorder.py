"""Records what the layers compute in a step: their outputs, and the first input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeep._core import _activations
from tfdeep._keras import _architecture
from tfdeep._keras._layer_calls import LayerCall, LayerCalls
from tfdeep.callbacks import _schedule
from tfdeep.callbacks._ring import Ring, is_at_hand, local_variable
from tfdeep.callbacks._sometimes import nothing

QUANTITIES = (
    "output_mean",
    "output_std",
    "flat_fraction",
    "effective_rank",
    "nonfinite_output",
)


class LayerRecorder:
    """Writes a row of statistics for each layer at the steps that are due.

    Args:
        layers: The layers by path, from the input to the output.
        capacity: How many steps the ring holds.
        activations: Whether to look at the outputs of all layers; without, only at
            the input of the first one that has weights.
    """

    def __init__(
        self, layers: Mapping[str, Any], capacity: int, activations: bool
    ) -> None:
        weighted = [path for path, layer in layers.items() if layer.trainable_weights]
        self._first = weighted[0] if weighted else None
        if not activations:
            layers = {path: layers[path] for path in weighted[:1]}
        self._calls = LayerCalls(layers)
        self._paths = list(layers) if activations else []
        self._units = [_count_units(layers[path]) for path in self._paths]
        self._inputs = Ring(capacity, ("input_offset", "input_spread"), 1, np.mean)
        self._outputs = Ring(capacity, QUANTITIES, len(self._paths), np.mean)
        # Each replica knows its own examples; a unit that one of them saw is active.
        self._inactive = Ring(
            capacity, ("inactive_fraction",), len(self._paths), np.min
        )
        self._layer_of_unit = np.repeat(np.arange(len(self._units)), self._units)
        self._last_active = local_variable(tf.fill([sum(self._units)], np.int64(-1)))

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Looks on while the context is open."""
        return self._calls.watching()

    def seen(self, step: tf.Tensor) -> Callable[[], tf.Tensor]:
        """What to call, in the same step after its forward pass, to write its rows.

        Args:
            step: The number of the step.
        """
        calls = {
            path: call
            for path, call in self._calls.take().items()
            if _is_measurable(call.output)
        }
        for call in calls.values():  # a branch has a graph of its own: look here
            if not _is_measurable(call.before_activation):
                call.before_activation = None
        first = calls[self._first].input if self._first in calls else None
        has_input = _is_measurable(first)

        def record() -> tf.Tensor:
            if has_input:
                places = _activations.sample(first)
                offset, spread = _activations.scale_of_features(places)
                self._inputs.write(
                    step,
                    input_offset=offset[tf.newaxis],
                    input_spread=spread[tf.newaxis],
                )
            if self._paths:
                self._measure_outputs(step, calls)
            return nothing()

        return record

    def _measure_outputs(self, step: tf.Tensor, calls: dict[str, LayerCall]) -> None:
        nan = tf.constant(np.nan, tf.float32)
        unseen = [nan] * len(QUANTITIES)
        rows, active = [], []
        for path, units in zip(self._paths, self._units, strict=True):
            row, is_active = unseen, tf.fill([units], True)
            if path in calls:
                row, is_active = _measured(calls[path], units)
            rows.append(row)
            active.append(is_active)
        by_quantity = map(tf.stack, zip(*rows, strict=True))
        self._outputs.write(step, **dict(zip(QUANTITIES, by_quantity, strict=True)))
        last = tf.where(tf.concat(active, 0), step, self._last_active)
        self._last_active.assign(last)
        inactive = _schedule.is_long_ago(last, step)
        count = tf.math.unsorted_segment_sum(
            tf.cast(inactive, tf.float32), self._layer_of_unit, len(self._paths)
        )
        by_layer = np.array(self._units, np.float32)
        self._inactive.write(step, inactive_fraction=count / by_layer)  # 0/0: unknown

    def resume(self, step: int) -> None:
        """Takes all units for active until a step, and goes on from there."""
        self._last_active.assign(tf.fill(self._last_active.shape, np.int64(step - 1)))

    def take(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Reads what was written, and empties the rings.

        Returns:
            `input_offset` and `input_spread` of one column each; and one column a
            layer of each of `QUANTITIES` and of `inactive_fraction`.
        """
        return {
            **self._inputs.take(places),
            **self._outputs.take(places),
            **self._inactive.take(places),
        }


def _count_units(layer: Any) -> int:
    """How many units can be told apart as active or not; 0 if none can."""
    name = _architecture.activation_name(layer)
    if name is None or not _activations.is_element_wise_name(name):
        return 0
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):  # not a part of a graph, or of several
        return int(getattr(layer, "units", 0) or getattr(layer, "filters", 0))
    return int(shape[_activations.units_axis(layer)] or 0)


def _is_measurable(tensor: Any) -> bool:
    return (
        tf.is_tensor(tensor)
        and tensor.dtype.is_floating
        and tensor.shape.rank is not None
        and tensor.shape.rank >= 2
        and is_at_hand(tensor)
    )


def _measured(call: LayerCall, units: int) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The quantities of one layer, and which of its units were active."""
    axis = _activations.units_axis(call.layer)
    places = _activations.sample(call.output, axis)
    mean, std = _activations.moments(places)
    flat = tf.constant(np.nan, tf.float32)
    active = tf.fill([units], True)
    before = call.before_activation
    if before is not None and _activations.is_element_wise(call.activation):
        before = _activations.sample(before, axis)
        is_flat = _activations.is_flat(call.activation, before)
        flat = tf.reduce_mean(tf.cast(is_flat, tf.float32))
        if before.shape[-1] == units:
            active = tf.reduce_any(~is_flat, axis=0)
    rank = _activations.effective_rank(places)
    broken = tf.reduce_mean(tf.cast(~tf.math.is_finite(places), tf.float32))
    return [mean, std, flat, rank, broken], active
