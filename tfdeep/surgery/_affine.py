"""Layers that multiply by a kernel, and how a scale and a shift go into them.

A layer that computes y = W x + b takes in a following y * s + t, or a preceding
x * s + t, with other weights: per unit for the outputs, per channel for the inputs.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np

from tfdeep._keras._layer_facts import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED

_AFFINE = (keras.layers.Dense, *CONVOLUTIONS, *DEPTHWISE, *SEPARABLE, *TRANSPOSED)

# What makes two layers of a class compute the same with the same weights.
_SHAPE = (
    "units", "filters", "kernel_size", "strides", "padding", "output_padding",
    "data_format", "dilation_rate", "groups", "depth_multiplier",
)  # fmt: skip


def is_affine(layer: Any) -> bool:
    """Whether a layer is of a kind whose weights can take in a scale and a shift."""
    return type(layer) in _AFFINE and getattr(layer, "quantization_mode", None) is None


def is_linear(layer: Any) -> bool:
    """Whether a layer ends without an activation function."""
    return layer.activation in (None, keras.activations.linear)


def channel_axis(layer: Any, rank: int) -> int:
    """The axis of the layer's input and output along which the channels lie."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    return rank - 1


def mixes_in_zeros(layer: Any) -> bool:
    """Whether places at the border see zeros, or less of the kernel, than others."""
    if isinstance(layer, keras.layers.Dense):
        return False
    if isinstance(layer, TRANSPOSED):
        return True
    return layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)


@dataclasses.dataclass
class AffineWeights:
    """The weights of a layer in float64, while scales and shifts go into them."""

    layer: Any
    kernels: list[Any]
    bias: Any

    @classmethod
    def of(cls, layer: Any) -> AffineWeights:
        kernels = [_as_float64(kernel) for kernel in _kernels(layer)]
        if layer.use_bias:
            bias = _as_float64(layer.bias)
        elif isinstance(layer, DEPTHWISE):
            bias = np.zeros(kernels[-1].shape[-2] * kernels[-1].shape[-1])
        else:
            bias = np.zeros(
                kernels[-1].shape[-2 if isinstance(layer, TRANSPOSED) else -1]
            )
        return cls(layer, kernels, bias)

    def scale_outputs(self, scale: Any, shift: Any) -> None:
        """Takes in y * scale + shift of the layer's outputs y."""
        kernel = self.kernels[-1]
        if isinstance(self.layer, DEPTHWISE):
            kernel *= scale.reshape(kernel.shape[-2:])
        elif isinstance(self.layer, TRANSPOSED):
            kernel *= scale[:, None]
        else:
            kernel *= scale
        self.bias = self.bias * scale + shift

    def scale_inputs(self, scale: Any, shift: Any) -> None:
        """Takes in x * scale + shift of the layer's inputs x."""
        kernel = self.kernels[0]
        groups = getattr(self.layer, "groups", 1)
        if isinstance(self.layer, CONVOLUTIONS) and groups > 1:
            filters = kernel.shape[-1] // groups
            scale, shift = (
                np.repeat(values.reshape(groups, -1).T, filters, axis=1)
                for values in (scale, shift)
            )
        else:
            scale, shift = scale[:, None], shift[:, None]
        window = tuple(range(kernel.ndim - 2))
        shifted = (kernel * shift).sum(axis=window)  # (inputs, outputs)
        if isinstance(self.layer, SEPARABLE):
            pointwise = self.kernels[1]
            self.bias = self.bias + shifted.reshape(-1) @ pointwise.reshape(
                -1, pointwise.shape[-1]
            )
        elif isinstance(self.layer, DEPTHWISE):
            self.bias = self.bias + shifted.reshape(-1)
        else:
            self.bias = self.bias + shifted.sum(axis=0)
        kernel *= scale

    def call(self, tensor: Any) -> Any:
        """Calls a new layer that has these weights and a bias."""
        layer = self.layer
        taken = inspect.signature(type(layer)).parameters
        new = type(layer)(
            **{name: getattr(layer, name) for name in _SHAPE if name in taken},
            activation=layer.activation,
            use_bias=True,
            dtype=layer.dtype_policy,
            name=layer.name,
        )
        output = new(tensor)
        for variable, value in zip(_kernels(new), self.kernels, strict=True):
            variable.assign(value)
        new.bias.assign(self.bias)
        new.trainable = layer.trainable
        return output


def _kernels(layer: Any) -> list[Any]:
    if isinstance(layer, SEPARABLE):
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    return [layer.kernel]


def _as_float64(weight: Any) -> Any:
    return np.array(keras.ops.convert_to_numpy(weight)).astype(np.float64)
