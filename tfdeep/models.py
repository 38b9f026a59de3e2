"""Ready-made stacks of layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tfdeep._core._arguments import flag, is_whole_number, number
from tfdeep._core._explain import explain
from tfdeep._keras import _layer_facts
from tfdeep.errors import InvalidArgumentError

__all__ = ["dnn"]


def dnn(
    input_shape: Sequence[int],
    hidden_units: Sequence[int],
    num_outputs: int,
    activation: Any = "elu",
    kernel_initializer: Any = "auto",
    batch_norm: bool = False,
    dropout_rate: float = 0.0,
    name: str = "dnn",
) -> keras.Model:
    """Builds a stack of dense layers named `hidden1`, `hidden2`, ..., `outputs`.

    Use it for experiments with depth, and where layers have to be found again by
    name. The outputs are linear (logits): use a loss with `from_logits=True`.

    With `batch_norm`, each hidden layer is a `keras.Sequential` of the same name with
    the layers `dense` (without the bias, which the normalization would cancel),
    `batch_norm` and `activation`, in this order; so `hidden[12]` still selects whole
    hidden layers.

    Args:
        input_shape: Shape of one example, such as `(64,)` or `(28, 28)`; more than
            one axis is flattened.
        hidden_units: Number of units of each hidden layer.
        num_outputs: Number of outputs.
        activation: Name of a Keras activation, or a callable.
        kernel_initializer: A Keras initializer for the hidden layers, or `"auto"` for
            the variance scaling that fits the activation: He for the ReLU family,
            LeCun for SELU, Glorot for tanh, sigmoid and linear layers.
        batch_norm: Whether to normalize before each activation.
        dropout_rate: Fraction of the hidden units to drop while training, in [0, 1).
            SELU gets `AlphaDropout`, which keeps its mean and variance.
        name: Name of the model.

    Returns:
        A Functional `keras.Model`, not compiled.

    Raises:
        InvalidArgumentError: If `input_shape` or `hidden_units` is no sequence,
            `hidden_units` is empty or holds anything but whole numbers > 0,
            `dropout_rate` is not in [0, 1), or "auto" knows no initializer for the
            activation.

    Example:

    >>> model = tfdeep.models.dnn((64,), hidden_units=[100] * 5, num_outputs=5)
    >>> [layer.name for layer in model.layers[1:]]
    ['hidden1', 'hidden2', 'hidden3', 'hidden4', 'hidden5', 'outputs']

    Reference:
        He et al., 2015, https://arxiv.org/abs/1502.01852;
        Klambauer et al., 2017, https://arxiv.org/abs/1706.02515;
        Glorot and Bengio, 2010, https://proceedings.mlr.press/v9/glorot10a.html.
    """
    _check_sequences(input_shape=input_shape, hidden_units=hidden_units)
    *hidden_units, num_outputs = _checked_units(hidden_units, num_outputs)
    batch_norm = flag(batch_norm, "batch_norm", "dnn")
    dropout_rate = number(
        dropout_rate, "dropout_rate", "dnn", at_least=0, below=1, example=0.1
    )
    if kernel_initializer == "auto":
        kernel_initializer = _fitting_initializer(activation)
    is_selu = keras.activations.get(activation) is keras.activations.selu
    dropout = keras.layers.AlphaDropout if is_selu else keras.layers.Dropout

    inputs = keras.Input(tuple(input_shape), name="inputs")
    x = (
        inputs
        if len(inputs.shape) == 2
        else keras.layers.Flatten(name="flatten")(inputs)
    )
    for i, units in enumerate(hidden_units, start=1):
        # Each layer gets an initializer of its own: a shared one repeats its values.
        initializer = _another(kernel_initializer)
        if batch_norm:
            hidden = keras.Sequential(
                [
                    keras.layers.Dense(
                        units,
                        use_bias=False,
                        kernel_initializer=initializer,
                        name="dense",
                    ),
                    keras.layers.BatchNormalization(name="batch_norm"),
                    keras.layers.Activation(activation, name="activation"),
                ],
                name=f"hidden{i}",
            )
        else:
            hidden = keras.layers.Dense(
                units,
                activation=activation,
                kernel_initializer=initializer,
                name=f"hidden{i}",
            )
        x = hidden(x)
        if dropout_rate:
            x = dropout(dropout_rate, name=f"dropout{i}")(x)
    outputs = keras.layers.Dense(num_outputs, name="outputs")(x)
    return keras.Model(inputs, outputs, name=name)


def _check_sequences(input_shape: Any, hidden_units: Any) -> None:
    fixes = []
    if not isinstance(input_shape, Iterable):
        fixes.append(f"input_shape=({input_shape!r},)")
    if not isinstance(hidden_units, Iterable):
        fixes.append(f"hidden_units=[{hidden_units!r}]")
    if fixes:
        raise InvalidArgumentError(
            explain(
                "`dnn` needs one size for each axis and for each hidden layer.",
                received=f"input_shape={input_shape!r}, hidden_units={hidden_units!r}",
                expected="two sequences of whole numbers",
                fix=f"`{', '.join(fixes)}`",
            )
        )


def _checked_units(hidden_units: Sequence[int], num_outputs: int) -> list[int]:
    counts = [*hidden_units, num_outputs]
    if len(counts) > 1 and all(is_whole_number(n) and n > 0 for n in counts):
        return list(map(int, counts))
    raise InvalidArgumentError(
        explain(
            "`dnn` cannot build a stack of these sizes.",
            received=f"hidden_units={hidden_units!r}, num_outputs={num_outputs!r}",
            expected="at least one hidden layer; whole numbers > 0, in units",
            fix="for example `hidden_units=[100] * 5, num_outputs=10`",
        )
    )


def _fitting_initializer(activation: Any) -> str:
    function = keras.activations.get(activation)
    name = _layer_facts.activation_name(function) or "linear"
    initializer = _layer_facts.activation(name).initializer
    if not initializer:
        known = [n for n, a in _layer_facts.ACTIVATIONS.items() if a.initializer]
        raise InvalidArgumentError(
            explain(
                "`kernel_initializer='auto'` knows no initializer for this activation.",
                received=f"activation={activation!r}",
                expected=f"one of {', '.join(sorted(known))}",
                fix="choose one yourself, for example `kernel_initializer='he_normal'`",
            )
        )
    return initializer


def _another(initializer: Any) -> Any:
    """An initializer like this one that does not draw the same numbers."""
    if isinstance(initializer, keras.initializers.Initializer):
        return initializer.clone()
    return initializer
