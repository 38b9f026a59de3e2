"""Random weights whose scale follows from the activation and the layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from tfdeep._core._arguments import one_of
from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers._axes import axes_of
from tfdeep.initializers._gain import gain
from tfdeep.initializers._owner import Owner
from tfdeep.initializers._random import RandomInitializer

MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")

# Standard deviation of N(0, 1) cut off at -2 and 2.
_TRUNCATED = 0.87962566103423978


@keras.saving.register_keras_serializable("tfdeep")
class VarianceScaling(RandomInitializer):
    """Draws weights that keep the scale of the signal through any activation.

    Use it for the kernels of a deep net. Keras' class of this name takes the scale as
    a number and the fans from the shape alone; this one has the scale from the
    activation and the fans from the layer.

        std = gain(activation) / sqrt(n)

    | kernel | shape | fan_in | fan_out |
    |---|---|---|---|
    | dense, recurrent | (in, out) | in | out |
    | convolution | (w, in, out) | w * in | w * out |
    | convolution in g groups | (w, in / g, out) | w * in / g | w * out / g |
    | transposed convolution | (w, out, in) | w * in | w * out |
    | depthwise convolution | (w, in, m) | w | w * m |
    | `EinsumDense`, attention | by the equation | axes summed over | new axes |
    | embedding | (ids, units) | 1 | units |

    with w the places of the window. The layer is the one whose `add_weight` calls the
    initializer. If there is none and the shape is not a matrix, give `input_axes` and
    `output_axes`. Strides and padding do not count.

    Args:
        activation: What follows the layer: the name of a Keras activation, a function
            or an activation layer. None is linear. To save a model that holds one,
            register a function of your own with
            `keras.saving.register_keras_serializable`.
        mode: What n is: "fan_in" keeps the scale of the signal on its way up,
            "fan_out" that of the gradient on its way down, "fan_avg" is between.
        distribution: "truncated_normal" (cut off at two standard deviations, and
            widened to have the right one), "untruncated_normal" or "uniform" (on
            +-sqrt(3) std).
        convention: Which `gain`: "second_moment", "variance", "table" or "lisa".
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Raises:
        InvalidArgumentError: If an argument is not valid; when it draws, if the
            fans do not follow from the shape.

    Example:

    >>> relu = tfdeep.initializers.VarianceScaling("relu", mode="fan_in", seed=1)
    >>> layer = keras.layers.DepthwiseConv2D(3, depthwise_initializer=relu)
    >>> layer.build((None, 8, 8, 4096))
    >>> round(float(keras.ops.std(layer.kernel)), 2)  # sqrt(2 / 9); Keras' own: 0.01
    0.47

    Reference:
        Glorot and Bengio, 2010; He et al., 2015, https://arxiv.org/abs/1502.01852.
    """

    def __init__(
        self,
        activation: Any = None,
        mode: str = "fan_avg",
        distribution: str = "truncated_normal",
        convention: str = "second_moment",
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seed, input_axes, output_axes)
        self.activation = _deserialized(activation)
        name = type(self).__name__
        self.mode = one_of(mode, MODES, "mode", name)
        self.distribution = one_of(distribution, DISTRIBUTIONS, "distribution", name)
        self.convention = convention
        self.gain = gain(self.activation, convention)

    def draw(self, shape: tuple[int, ...], dtype: str, seed: int, owner: Owner) -> Any:
        axes = axes_of(shape, owner, self.input_axes, self.output_axes)
        fan_in, fan_out = axes.fans(shape)
        n = {"fan_in": fan_in, "fan_out": fan_out}.get(
            self.mode, (fan_in + fan_out) / 2
        )
        std = self.gain / math.sqrt(max(n, 1))
        if self.distribution == "uniform":
            limit = math.sqrt(3) * std
            return keras.random.uniform(shape, -limit, limit, dtype=dtype, seed=seed)
        if self.distribution == "untruncated_normal":
            return keras.random.normal(shape, stddev=std, dtype=dtype, seed=seed)
        return keras.random.truncated_normal(
            shape, stddev=std / _TRUNCATED, dtype=dtype, seed=seed
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            activation=_serialized(self.activation),
            mode=self.mode,
            distribution=self.distribution,
            convention=self.convention,
        )
        return config


def _serialized(activation: Any) -> Any:
    if activation is None or isinstance(activation, str):
        return activation
    if isinstance(activation, keras.layers.Layer):
        return keras.layers.serialize(activation)
    if getattr(activation, "__name__", "<lambda>") == "<lambda>":
        raise InvalidArgumentError(
            explain(
                "This activation has no name to be saved by.",
                received=f"activation={activation!r}",
                expected="a named function or a layer",
                fix="define it with `def` and register it with "
                "`@keras.saving.register_keras_serializable()`",
            )
        )
    return keras.activations.serialize(activation)


def _deserialized(activation: Any) -> Any:
    if not isinstance(activation, dict):
        return activation
    if activation.get("class_name") == "function":
        return keras.activations.get(activation)
    return keras.layers.deserialize(activation)
