"""Where the units are in a weight: the axes along which one unit's weights lie."""

from __future__ import annotations

from typing import Any

import keras

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def unit_axes(variable: Any, layer: Any = None) -> tuple[int, ...]:
    """The axes over which to take the norm of one unit's incoming weights.

    | weight | shape | axes |
    |---|---|---|
    | dense, recurrent | (inputs, units) | 0 |
    | convolution | (*window, channels, filters) | all but the last |
    | transposed convolution | (*window, filters, channels) | all but the last but one |
    | depthwise convolution | (*window, channels, multiplier) | the window |
    | `EinsumDense`, attention | by the equation | those that are summed over |
    | embedding | (ids, units) | 1: each row is one unit |
    | bias, gain, scalar | any | all: the whole of it is one unit |

    Args:
        variable: The weight.
        layer: The layer that owns it. Without one, names and shapes must do.
    """
    rank = len(variable.shape)
    name = variable.name
    if rank < 2 or "bias" in name or name in ("gamma", "beta"):
        return tuple(range(rank))
    if name == "kernel" and isinstance(layer, keras.layers.EinsumDense):
        return _summed_over(layer.equation)
    if name == "kernel" and isinstance(layer, _TRANSPOSED):
        return (*range(rank - 2), rank - 1)
    if name == "depthwise_kernel" or (
        name == "kernel" and isinstance(layer, _DEPTHWISE)
    ):
        return tuple(range(rank - 2))
    if rank == 2 and "embedding" in name and not name.startswith("reverse"):
        return (1,)
    return tuple(range(rank - 1))


def _summed_over(equation: str) -> tuple[int, ...]:
    """The kernel's axes in an `EinsumDense` equation that the output does not have.

    >>> _summed_over("abc,cde->abde")
    (0,)
    """
    left, output = equation.replace(" ", "").split("->")
    kernel = left.split(",")[1]
    return tuple(i for i, letter in enumerate(kernel) if letter not in output)
