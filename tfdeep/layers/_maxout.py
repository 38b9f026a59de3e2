"""The maximum over groups of features."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfdeep._core._arguments import whole_number
from tfdeep._core._explain import explain
from tfdeep.errors import ModelError
from tfdeep.layers._configured import ConfiguredLayer


@keras.saving.register_keras_serializable("tfdeep")
class Maxout(ConfiguredLayer):
    """Keeps the largest feature of each group of features.

    Use it after a linear dense or convolution layer with k times as many features
    as wanted: the two together learn a convex, piecewise linear activation.

        h_i = max_j z_(i + j m),    i = 1 ... m,    j = 0 ... k - 1

    with m = `num_units` and k the number of features by m. The groups are those of
    `tensorflow_addons.layers.Maxout`.

    Args:
        num_units: Integer > 0. How many features remain; it divides the number of
            features of the input.
        axis: Integer. The axis of the features; not 0, the batch.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, ..., features)`; the features may be on another axis.

    Output shape:
        `(batch, ..., num_units)`.

    Raises:
        InvalidArgumentError: If `num_units` is not a whole number > 0.
        ModelError: If `num_units` does not divide the number of features.

    Example:

    >>> layer = tfdeep.layers.Maxout(num_units=2)
    >>> print(layer(np.array([[1.0, 2.0, 5.0, 0.0]])).numpy())
    [[5. 2.]]

    Reference:
        Goodfellow et al., 2013, https://arxiv.org/abs/1302.4389.
    """

    arguments = ("num_units", "axis")

    def __init__(self, num_units: int, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_units = whole_number(
            num_units, "num_units", "Maxout", above=0, example=8
        )
        self.axis = axis

    def build(self, input_shape: Any) -> None:
        self._check(input_shape)

    def call(self, inputs: Any) -> Any:
        axis = self.axis % len(inputs.shape)
        shape = list(ops.shape(inputs))
        shape[axis : axis + 1] = [shape[axis] // self.num_units, self.num_units]
        return ops.max(ops.reshape(inputs, shape), axis=axis)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        self._check(input_shape)
        shape = list(input_shape)
        shape[self.axis] = self.num_units
        return tuple(shape)

    def _check(self, input_shape: Any) -> None:
        rank = len(input_shape)
        in_range = -rank <= self.axis < rank and self.axis % rank != 0
        features = input_shape[self.axis] if in_range else None
        if not in_range or (features is not None and features % self.num_units):
            raise ModelError(
                explain(
                    "`Maxout` cannot form groups of equal size.",
                    received=f"inputs of shape {tuple(input_shape)}, axis={self.axis}, "
                    f"num_units={self.num_units}",
                    expected="an axis other than the batch, whose size is a multiple "
                    "of num_units",
                    fix="choose `num_units` so that it divides the number of features",
                )
            )
