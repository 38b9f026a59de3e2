"""How much an activation shrinks a signal, and the gain of weights that undoes it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._arguments import one_of
from tfdeep._core._explain import explain
from tfdeep._keras._layer_facts import activation_name
from tfdeep.errors import InvalidArgumentError

CONVENTIONS = ("second_moment", "variance", "table", "lisa")

# The variants of ReLU that the tables mean.
_RECTIFIERS = ("relu", "relu6", "leaky_relu", "elu")
_TABLE = {"linear": 1.0, "sigmoid": 1.0, "tanh": 4.0} | dict.fromkeys(
    _RECTIFIERS, math.sqrt(2)
)
_LISA = _TABLE | {"sigmoid": 4.0, "tanh": 1.0}


def gain(activation: Any, convention: str = "second_moment") -> float:
    """The factor on the standard deviation of the weights that feed an activation.

    Use it for an activation that has no named initializer: weights
    of variance `gain**2 / fan_in` then keep the scale of the signal from layer to
    layer.

    | convention | gain of f, with z ~ N(0, 1) | for example |
    |---|---|---|
    | `"second_moment"` | `1 / sqrt(E[f(z)**2])` (He et al.) | relu 1.4142 |
    | `"variance"` | `1 / sqrt(Var[f(z)])` (Brock et al.) | relu 1.7129 |
    | `"table"` | 1 logistic, 4 tanh, sqrt(2) ReLU and variants | tanh 4 |
    | `"lisa"` | the table with logistic and tanh swapped | tanh 1, sigmoid 4 |

    The first is the one to use: a layer's next input is `f(z)`, and what its variance
    grows by is the second moment, not the variance. The second is for kernels of zero
    mean over their inputs (weight standardization). The two tables are for `fan_avg`.
    They come from textbooks and disagree about the factor of 4, which belongs to the
    logistic function if anywhere: ten layers of tanh with it saturate, and their
    gradients explode.

    Unit variance is a fixed point. ELU, SELU and tanh return to it from nearby, ReLU
    keeps what it has, and GELU and SiLU drift away from it over tens of layers: those
    need a normalization or `tfdeep.initializers.lsuv`.

    The expectations are integrated numerically, in panels that end at the multiples
    of 0.5, where most activations have their kinks.

    Args:
        activation: Name of a Keras activation, a function, or an activation layer,
            whose parameters count: `keras.layers.LeakyReLU(negative_slope=0.1)`. It
            must work element by element. None is linear.
        convention: "second_moment", "variance", "table" or "lisa".

    Returns:
        The gain, a float > 0.

    Raises:
        InvalidArgumentError: If the activation is unknown, mixes entries (softmax),
            has no finite positive moment, or is not in the table.

    Example:

    >>> round(tfdeep.initializers.gain("relu") ** 2, 6)
    2.0
    >>> leaky = keras.layers.LeakyReLU(negative_slope=0.5)
    >>> round(tfdeep.initializers.gain(leaky) ** 2, 6)  # 2 / (1 + 0.5**2)
    1.6

    Reference:
        He et al., 2015, https://arxiv.org/abs/1502.01852 (section 2.2);
        Brock et al., 2021, https://arxiv.org/abs/2101.08692 (section 3);
        Glorot and Bengio, 2010.
    """
    one_of(convention, CONVENTIONS, "convention", "gain")
    if activation is None or isinstance(activation, str):
        return _gain_by_name(activation or "linear", convention)
    return _gain(activation, activation, convention)


@functools.cache
def _gain_by_name(name: str, convention: str) -> float:
    try:
        function = keras.activations.get(name)
    except ValueError as error:
        raise InvalidArgumentError(
            explain(
                "Keras has no activation of this name.",
                received=f"activation={name!r}",
                expected='the name of a Keras activation, such as "relu"',
                fix="pass the function itself",
            )
        ) from error
    return _gain(function, name, convention)


def _gain(function: Callable[[Any], Any], given: Any, convention: str) -> float:
    if convention == "table":
        return _looked_up(_TABLE, function, given)
    if convention == "lisa":
        return _looked_up(_LISA, function, given)
    mean, square = _moments(function, given)
    moment = square if convention == "second_moment" else square - mean**2
    if not math.isfinite(moment) or moment < 1e-12:
        raise InvalidArgumentError(
            explain(
                "No weights keep the scale of a signal through this activation.",
                received=f"activation={given!r}, whose "
                f"{convention.replace('_', ' ')} is {moment:g} at N(0, 1)",
                expected="a finite moment greater than 0",
                fix="pass another activation or convention",
            )
        )
    return 1 / math.sqrt(moment)


def _looked_up(table: dict[str, float], function: Any, given: Any) -> float:
    try:
        return table[activation_name(function) or "linear"]
    except KeyError:
        raise InvalidArgumentError(
            explain(
                "The table has no row for this activation.",
                received=f"activation={given!r}",
                expected=", ".join(table),
                fix='use convention="second_moment", which knows every activation',
            )
        ) from None


def _moments(function: Callable[[Any], Any], given: Any) -> tuple[float, float]:
    """Mean and mean square of `function(z)` for z ~ N(0, 1)."""
    if isinstance(function, keras.layers.Layer):
        # A copy: calling a layer builds it. In float64, for the digits.
        function = type(function).from_config(
            {**function.get_config(), "dtype": "float64"}
        )
    z, weights = _nodes()
    values = _call(function, z)
    # Softmax and the like: an output that depends on what else is in the batch.
    if values.shape != z.shape or not np.allclose(
        values[::2], _call(function, z[::2]), rtol=1e-3, equal_nan=True
    ):
        raise InvalidArgumentError(
            explain(
                "A gain exists only for activations that work element by element.",
                received=f"activation={given!r}",
                expected="a function whose outputs depend on one input each",
                fix="give the layer before it an initializer without an activation",
            )
        )
    return float(weights @ values), float(weights @ values**2)


def _call(function: Callable[[Any], Any], z: np.ndarray) -> np.ndarray:
    with tf.init_scope():  # also when a layer is built inside a tf.function
        try:
            values = function(tf.constant(z))
        except (TypeError, ValueError, tf.errors.InvalidArgumentError):
            values = function(tf.constant(z, tf.float32))
        return np.asarray(values, "float64")


@functools.cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Points on [-20, 20] and their weights under N(0, 1): Gauss-Legendre by panels."""
    x, w = np.polynomial.legendre.leggauss(16)
    starts = np.arange(-20, 20, 0.5)[:, None]
    z = (starts + 0.25 * (x + 1)).ravel()
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return z, np.tile(0.25 * w, len(starts)) * density
