"""Mean and standard deviation of each unit of a layer's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def unit_moments(
    layer: Any, outputs: Any
) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The moments over examples and places, in float64.

    Args:
        layer: A dense, `EinsumDense` or convolution layer.
        outputs: What it computed.

    Returns:
        The mean and the standard deviation, in the order of the output's axes, and a
        function that brings such an array into the order of the kernel's axes.
    """
    values = np.asarray(keras.ops.convert_to_numpy(outputs), "float64")
    if isinstance(layer, keras.layers.EinsumDense):
        axes, order = _einsum_axes(layer.equation)
    else:
        first = getattr(layer, "data_format", None) == "channels_first"
        axes, order = [1 if first else -1], [0]
    axes = [axis % values.ndim for axis in axes]
    others = tuple(i for i in range(values.ndim) if i not in axes)
    return (
        values.mean(axis=others),
        values.std(axis=others),
        lambda moments: np.transpose(moments, order),
    )


def _einsum_axes(equation: str) -> tuple[list[int], list[int]]:
    """The output's axes that are units, and their order in the kernel.

    >>> _einsum_axes("abc,cde->abed")
    ([2, 3], [1, 0])
    >>> _einsum_axes("...x,xy->...y")
    ([-1], [0])
    """
    left, output = equation.replace(" ", "").split("->")
    kernel = left.split(",")[1]
    before, _, after = output.rpartition("...")
    places = {letter: i for i, letter in enumerate(before)}
    if before or "..." in output:
        places |= {letter: i - len(after) for i, letter in enumerate(after)}
    else:
        places = {letter: i for i, letter in enumerate(after)}
    units = [letter for letter in output if letter in kernel]
    order = [units.index(letter) for letter in kernel if letter in units]
    return [places[letter] for letter in units], order
