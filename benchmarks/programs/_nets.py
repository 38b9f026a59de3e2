"""Nets that many of the programs share; layers have the names that `Program` uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers


def normal(deviation: float) -> dict[str, Any]:
    """What Keras makes a normal initializer of: another one for each layer.

    A `RandomNormal` that several layers share gives all of them the same values.
    """
    return {"class_name": "RandomNormal", "config": {"stddev": deviation}}


def dense(
    features: int,
    hidden: Sequence[int],
    outputs: int,
    last: Any = None,
    *,
    activation: Any = "relu",
    kernel: Any = "glorot_uniform",
    bias: Any = "zeros",
    dropout: float = 0.0,
    penalty: float = 0.0,
) -> keras.Sequential:
    """Layers hidden1, hidden2, ..., each with its dropout, and output.

    Args:
        features: Columns of the input.
        hidden: Units of each hidden layer.
        outputs: Units of the output layer.
        last: Activation of the output layer, or a layer that follows it.
        activation: Activation of the hidden layers.
        kernel: Initializer of the kernels of the hidden layers.
        bias: Initializer of their biases.
        dropout: Rate of the dropout after each hidden layer; 0 for none.
        penalty: Factor of the L2 penalty on all kernels; 0 for none.
    """
    regularizer = keras.regularizers.L2(penalty) if penalty else None
    net = [keras.Input((features,))]
    for i, units in enumerate(hidden, 1):
        net.append(
            layers.Dense(
                units,
                activation=activation,
                kernel_initializer=kernel,
                bias_initializer=bias,
                kernel_regularizer=regularizer,
                name=f"hidden{i}",
            )
        )
        if dropout:
            net.append(layers.Dropout(dropout, name=f"dropout{i}"))
    return keras.Sequential([*net, *output(outputs, last, regularizer)])


def convolutional(
    shape: tuple[int, ...],
    filters: Sequence[int],
    units: Sequence[int],
    outputs: int,
    last: Any = None,
    *,
    activation: Any = "relu",
    kernel: Any = "glorot_uniform",
    size: int = 3,
    padding: str = "same",
    dropout: float = 0.0,
) -> keras.Sequential:
    """Layers conv1, pool1, conv2, ..., flatten, hidden1, ... and output.

    Args:
        shape: Shape of an image.
        filters: Filters of each convolution; a pooling follows each.
        units: Units of each hidden dense layer.
        outputs: Units of the output layer.
        last: Activation of the output layer, or a layer that follows it.
        activation: Activation of the other layers.
        kernel: Initializer of all kernels.
        size: Edge of the kernels of the convolutions.
        padding: "same" or "valid".
        dropout: Rate of the dropout before the output; 0 for none.
    """
    net = [keras.Input(shape)]
    for i, channels in enumerate(filters, 1):
        net += [
            layers.Conv2D(
                channels,
                size,
                padding=padding,
                activation=activation,
                kernel_initializer=kernel,
                name=f"conv{i}",
            ),
            layers.MaxPooling2D(name=f"pool{i}"),
        ]
    net.append(layers.Flatten(name="flatten"))
    for i, width in enumerate(units, 1):
        net.append(
            layers.Dense(
                width,
                activation=activation,
                kernel_initializer=kernel,
                name=f"hidden{i}",
            )
        )
    if dropout:
        net.append(layers.Dropout(dropout, name="dropout"))
    return keras.Sequential([*net, *output(outputs, last, kernel=kernel)])


def output(
    units: int, last: Any, regularizer: Any = None, kernel: Any = "glorot_uniform"
) -> list[keras.layers.Layer]:
    """The layer output, and `last` if that is a layer, too."""
    is_layer = isinstance(last, keras.layers.Layer)
    layer = layers.Dense(
        units,
        activation=None if is_layer else last,
        kernel_initializer=kernel,
        kernel_regularizer=regularizer,
        name="output",
    )
    return [layer, last] if is_layer else [layer]
