"""Gains against integrals in float64 NumPy and the values of the papers."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers import gain

ERF = np.vectorize(math.erf)
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193


def sigmoid(z):
    return np.where(
        z > 0, 1 / (1 + np.exp(-abs(z))), np.exp(-abs(z)) / (1 + np.exp(-abs(z)))
    )


# Each from its paper.
REFERENCES = {
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "relu6": lambda z: np.clip(z, 0, 6),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "hard_sigmoid": lambda z: np.clip((z + 3) / 6, 0, 1),
    "softplus": lambda z: np.log1p(np.exp(-abs(z))) + np.maximum(z, 0),
    "softsign": lambda z: z / (1 + abs(z)),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "selu": lambda z: (
        SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0)))
    ),
    "silu": lambda z: z * sigmoid(z),
    "mish": lambda z: z * np.tanh(np.log1p(np.exp(-abs(z))) + np.maximum(z, 0)),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.2 * z),
    "exponential": np.exp,
}


@functools.cache
def grid():
    z = np.linspace(-16, 16, 400_001)
    return z, np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])


def reference_moments(function):
    z, weights = grid()
    values = function(z)
    return weights @ values, weights @ values**2


@pytest.mark.parametrize("name", REFERENCES)
def test_a_gain_is_the_integral_of_the_paper(name):
    mean, square = reference_moments(REFERENCES[name])
    assert gain(name) == pytest.approx(square**-0.5, rel=1e-8)
    assert gain(name, "variance") == pytest.approx((square - mean**2) ** -0.5, rel=1e-8)


def test_gelu():
    z, weights = grid()
    values = z * (1 + ERF(z / math.sqrt(2))) / 2
    # Keras' GELU is the tanh approximation of it, to three digits.
    assert gain("gelu") == pytest.approx((weights @ values**2) ** -0.5, rel=1e-3)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 1.0, 2.0])
def test_parameters_count(slope):
    exact = math.sqrt(2 / (1 + slope**2))  # He et al., 2015, section 2.2
    for activation in (
        keras.layers.LeakyReLU(negative_slope=slope),
        functools.partial(keras.activations.leaky_relu, negative_slope=slope),
        lambda z: tf.where(z > 0, z, slope * z),
    ):
        assert gain(activation) == pytest.approx(exact, rel=1e-8)


def test_published_values():
    """Brock et al. (normalizer-free nets) found theirs by sampling: to 3 digits."""
    published = {"relu": 1.7140, "tanh": 1.5939, "silu": 1.7881, "gelu": 1.7015}
    published |= {"selu": 1.0009, "sigmoid": 4.8038}
    for name, value in published.items():
        assert gain(name, "variance") == pytest.approx(value, rel=2e-3)
    assert gain("selu") == pytest.approx(1, rel=1e-12)  # the fixed point of its paper


def test_both_tables():
    table = {"sigmoid": 1, "tanh": 4, "relu": 2**0.5, "elu": 2**0.5, None: 1}
    assert {name: gain(name, "table") for name in table} == table
    swapped = {**table, "sigmoid": 4, "tanh": 1}
    assert {name: gain(name, "lisa") for name in swapped} == swapped
    assert gain(keras.layers.LeakyReLU(), "table") == 2**0.5
    assert gain(keras.layers.Activation("tanh"), "table") == 4
    with pytest.raises(InvalidArgumentError, match="has no row for this activation"):
        gain("softplus", "table")


def test_an_activation_with_tensors_of_its_own_in_single_precision():
    half = tf.constant(0.5)
    assert gain(lambda z: tf.maximum(z, half * z)) == pytest.approx(1.6**0.5, rel=1e-6)


def test_a_layer_that_is_passed_stays_as_it_is():
    layer = keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(0.5))
    assert gain(layer) == pytest.approx(1.6**0.5, rel=1e-12)
    assert not layer.built


def test_inside_a_traced_function():
    @tf.function
    def traced():
        return tf.constant(gain(lambda z: tf.nn.relu(z)), tf.float64)

    assert float(traced()) == pytest.approx(2**0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("activation", "convention", "text"),
    [
        ("softmax", "second_moment", "element by element"),
        (lambda z: z[: len(z) // 2], "second_moment", "element by element"),
        ("no_such", "second_moment", "no activation of this name"),
        ("relu", "kaiming", "cannot work with this `convention`"),
        (lambda z: 0 * z, "second_moment", "keep the scale"),
        (lambda z: 0 * z + 1, "variance", "keep the scale"),
        (lambda z: 1 / (z - z), "second_moment", "keep the scale"),
    ],
)
def test_what_has_no_gain_is_refused(activation, convention, text):
    with pytest.raises(InvalidArgumentError, match=text) as error:
        gain(activation, convention)
    assert "Fix:" in str(error.value)
