"""Variance scaling under the names of its authors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfdeep.initializers._random import RandomInitializer
from tfdeep.initializers._variance_scaling import VarianceScaling


class _Preset(VarianceScaling):
    _activation = "linear"
    _mode = "fan_avg"
    _distribution = "truncated_normal"

    def __init__(
        self,
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            self._activation,
            self._mode,
            self._distribution,
            seed=seed,
            input_axes=input_axes,
            output_axes=output_axes,
        )

    def get_config(self) -> dict[str, Any]:
        return RandomInitializer.get_config(self)


@keras.saving.register_keras_serializable("tfdeep")
class XavierNormal(_Preset):
    """Glorot's initializer: `std = sqrt(2 / (fan_in + fan_out))`, cut at 2 std.

    Use it before tanh, softmax and no activation. It is Keras' `GlorotNormal` with the
    fans of the layer; see `tfdeep.initializers.VarianceScaling` for them.

    Args:
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Reference:
        Glorot and Bengio, 2010.
    """


@keras.saving.register_keras_serializable("tfdeep")
class XavierUniform(_Preset):
    """Glorot's initializer: uniform on `+-sqrt(6 / (fan_in + fan_out))`.

    Use it before tanh, softmax and no activation. It is Keras' `GlorotUniform` with the
    fans of the layer; see `tfdeep.initializers.VarianceScaling` for them.

    Args:
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Reference:
        Glorot and Bengio, 2010.
    """

    _distribution = "uniform"


@keras.saving.register_keras_serializable("tfdeep")
class HeNormal(_Preset):
    """He's initializer: `std = sqrt(2 / fan_in)`, cut at 2 std.

    Use it before ReLU and its variants. It is Keras' `HeNormal` with the fans of the
    layer; see `tfdeep.initializers.VarianceScaling` for them.

    Args:
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Reference:
        He et al., 2015, https://arxiv.org/abs/1502.01852 (equation 10).
    """

    _activation, _mode = "relu", "fan_in"


@keras.saving.register_keras_serializable("tfdeep")
class HeUniform(_Preset):
    """He's initializer: uniform on `+-sqrt(6 / fan_in)`.

    Use it before ReLU and its variants. It is Keras' `HeUniform` with the fans of the
    layer; see `tfdeep.initializers.VarianceScaling` for them.

    Args:
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Reference:
        He et al., 2015, https://arxiv.org/abs/1502.01852 (equation 10).
    """

    _activation, _mode, _distribution = "relu", "fan_in", "uniform"


@keras.saving.register_keras_serializable("tfdeep")
class LeCunNormal(_Preset):
    """LeCun's initializer: `std = sqrt(1 / fan_in)`, cut at 2 std.

    Use it before SELU. It is Keras' `LecunNormal` with the fans of the layer; see
    `tfdeep.initializers.VarianceScaling` for them.

    Args:
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Reference:
        LeCun et al., 1998, "Efficient BackProp" (section 4.6); Klambauer et al., 2017,
        https://arxiv.org/abs/1706.02515.
    """

    _mode = "fan_in"


@keras.saving.register_keras_serializable("tfdeep")
class LeCunUniform(_Preset):
    """LeCun's initializer: uniform on `+-sqrt(3 / fan_in)`.

    Use it before SELU. It is Keras' `LecunUniform` with the fans of the layer; see
    `tfdeep.initializers.VarianceScaling` for them.

    Args:
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Reference:
        LeCun et al., 1998, "Efficient BackProp" (section 4.6); Klambauer et al., 2017,
        https://arxiv.org/abs/1706.02515.
    """

    _mode, _distribution = "fan_in", "uniform"
