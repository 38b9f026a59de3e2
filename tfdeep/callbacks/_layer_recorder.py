"""Records what the layers compute in a step: their outputs, and the first input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeep._core._guard import Guard
from tfdeep._keras import _layer_facts, _layer_outputs
from tfdeep._keras._layer_calls import LayerCall, LayerCalls
from tfdeep._quantities import OF_LAYERS
from tfdeep.callbacks import _schedule
from tfdeep.callbacks._ring import Ring, is_at_hand, local_variable
from tfdeep.callbacks._sometimes import nothing


class LayerRecorder:
    """Writes a row of statistics for each layer at the steps that are due.

    Args:
        layers: The layers by path, from the input to the output.
        capacity: How many steps the ring holds.
        activations: Whether to measure the outputs of all layers, or only the input of
            the first one that has weights.
        guard: Leaves out what cannot be measured.
        calls: What sees these layers already, and maybe others.
    """

    def __init__(
        self,
        layers: Mapping[str, Any],
        capacity: int,
        activations: bool,
        guard: Guard,
        calls: LayerCalls | None = None,
    ) -> None:
        self._guard = guard
        weighted = [path for path, layer in layers.items() if layer.trainable_weights]
        self._first = weighted[0] if weighted else None
        if not activations:
            layers = {path: layers[path] for path in weighted[:1]}
        self._calls = calls or LayerCalls(layers, guard)
        self._paths = list(layers) if activations else []
        self._units = [_count_units(layers[path]) for path in self._paths]
        self._inputs = Ring(capacity, ("input_offset", "input_spread"), 1, np.mean)
        # Which units are inactive takes several steps to know.
        self._quantities = [name for name in OF_LAYERS if name != "inactive_fraction"]
        self._outputs = Ring(capacity, self._quantities, len(self._paths), np.mean)
        # Each replica sees its own examples; a unit that is active on one of them is
        # active.
        self._inactive = Ring(
            capacity, ("inactive_fraction",), len(self._paths), np.min
        )
        self._layer_of_unit = np.repeat(np.arange(len(self._units)), self._units)
        self._last_active = local_variable(tf.fill([sum(self._units)], np.int64(-1)))

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Watches the layers while the context is open."""
        return self._calls.watching()  # nothing, if it is open

    def seen(self, step: tf.Tensor) -> Callable[[], tf.Tensor]:
        """Returns what writes the rows of a step, to be called after its forward pass.

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
                self._guard("the input", self._measure_input, step, first)
            if self._paths:
                self._measure_outputs(step, calls)
            return nothing()

        return record

    def _measure_input(self, step: tf.Tensor, first: Any) -> None:
        places = _layer_outputs.sample(first)
        offset, spread = _layer_outputs.scale_of_features(places)
        self._inputs.write(
            step, input_offset=offset[tf.newaxis], input_spread=spread[tf.newaxis]
        )

    def _measure_outputs(self, step: tf.Tensor, calls: dict[str, LayerCall]) -> None:
        rows: dict[str, list[Any]] = {name: [] for name in self._quantities}
        active = []
        for path, units in zip(self._paths, self._units, strict=True):
            found: dict[str, tf.Tensor] = {}
            is_active = None
            if path in calls:
                found, is_active = self._guard(
                    f"the outputs of {path}",
                    _layer_outputs.measure,
                    calls[path],
                    otherwise=(found, is_active),
                )
            for name, row in rows.items():
                row.append(found.get(name, np.float32(np.nan)))
            if is_active is None or is_active.shape[-1] != units:
                is_active = tf.fill([units], True)
            active.append(is_active)
        self._outputs.write(step, **{n: tf.stack(row) for n, row in rows.items()})
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
            `input_offset` and `input_spread`, of one column; and of one column a
            layer, each quantity that is measured of layers.
        """
        return {
            **self._inputs.take(places),
            **self._outputs.take(places),
            **self._inactive.take(places),
        }


def _count_units(layer: Any) -> int:
    """The number of units that can be active or inactive; 0 if unknown."""
    name = _layer_facts.activation_name(layer)
    if name is None or not _layer_facts.activation(name).has_slopes:
        return 0
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):  # not a part of a graph, or of several
        return int(getattr(layer, "units", 0) or getattr(layer, "filters", 0))
    return int(shape[_layer_outputs.units_axis(layer)] or 0)


def _is_measurable(tensor: Any) -> bool:
    return (
        tf.is_tensor(tensor)
        and tensor.dtype.is_floating
        and tensor.shape.rank is not None
        and tensor.shape.rank >= 2
        and is_at_hand(tensor)
    )
