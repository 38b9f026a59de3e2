import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeep.errors import InvalidArgumentError
from tfdeep.layers import RReLU, activation_properties, recommend_activation

inf = math.inf
LEAKY = keras.layers.LeakyReLU(negative_slope=0.01)

# linear, differentiable, monotone, identity near 0, zero-centered, saturation, range,
# largest slope: from the definitions of the functions.
TABLE = [
    ("linear", (1, 1, 1, 1, 1), "none", (-inf, inf), 1),
    ("relu", (0, 0, 1, 0, 0), "one-sided", (0, inf), 1),
    (LEAKY, (0, 0, 1, 0, 1), "none", (-inf, inf), 1),
    (keras.layers.PReLU(), (0, 0, 1, 0, 0), "one-sided", (0, inf), 1),  # slope 0
    (RReLU(), (0, 0, 1, 0, 1), "none", (-inf, inf), 1),
    ("elu", (0, 1, 1, 1, 1), "one-sided", (-1, inf), 1),
    ("selu", (0, 0, 1, 0, 1), "one-sided", (-1.7580993, inf), 1.7580993),
    ("sigmoid", (0, 1, 1, 0, 0), "two-sided", (0, 1), 0.25),
    ("tanh", (0, 1, 1, 1, 1), "two-sided", (-1, 1), 1),
    ("softsign", (0, 1, 1, 1, 1), "two-sided", (-1, 1), 1),
    ("softplus", (0, 1, 1, 0, 0), "one-sided", (0, inf), 0.9999546),
    ("gelu", (0, 1, 0, 0, 1), "one-sided", (-0.1699712, inf), 1.1289043),
    ("silu", (0, 1, 0, 0, 1), "one-sided", (-0.2784645, inf), 1.0998394),
    ("relu6", (0, 0, 1, 0, 0), "two-sided", (0, 6), 1),
    ("hard_sigmoid", (0, 0, 1, 0, 0), "two-sided", (0, 1), 1 / 6),
    (tf.sin, (0, 1, 0, 1, 1), "none", (-1, 1), 1),
    (tf.math.asinh, (0, 1, 1, 1, 1), "none", (-inf, inf), 1),
    (tf.exp, (0, 1, 1, 0, 0), "one-sided", (0, inf), math.exp(10)),
    (tf.sign, (0, 0, 1, 0, 1), "two-sided", (-1, 1), 0),
]


@pytest.mark.parametrize(
    ("activation", "flags", "saturation", "bounds", "slope"),
    TABLE,
    ids=[getattr(row[0], "__name__", str(row[0])) for row in TABLE],
)
def test_the_properties_are_those_of_the_function(
    activation, flags, saturation, bounds, slope
):
    found = activation_properties(activation)
    assert (
        found.is_linear,
        found.is_differentiable,
        found.is_monotone,
        found.is_identity_near_zero,
        found.is_zero_centered,
    ) == tuple(map(bool, flags))
    assert found.saturation == saturation
    np.testing.assert_allclose(
        (found.lower_bound, found.upper_bound), bounds, atol=1e-5
    )
    assert math.isclose(found.max_slope, slope, rel_tol=1e-3, abs_tol=1e-6)
    assert found.is_bounded == bool(np.isfinite(bounds).all())


def test_elu_has_a_corner_but_for_alpha_1():
    """The slope on the left of 0 is alpha."""
    for alpha, smooth in ((1.0, True), (0.5, False), (1.2, False)):
        found = activation_properties(keras.layers.ELU(alpha=alpha))
        assert found.is_differentiable is smooth


def test_it_prints_and_turns_into_json():
    found = activation_properties("tanh")
    text = str(found)
    assert "Activation tanh" in text
    assert "two-sided" in text
    assert max(map(len, text.splitlines())) <= 80
    assert '"saturation": "two-sided"' in found.to_json()


@pytest.mark.parametrize("activation", ["softmax", lambda x: x[:3], "log_softmax"])
def test_functions_that_mix_the_units_are_refused(activation):
    with pytest.raises(InvalidArgumentError, match="depends on one input"):
        activation_properties(activation)


@pytest.mark.parametrize(
    ("arguments", "activation", "initializer"),
    [
        ({}, "relu", "he_normal"),
        ({"dead_units": True}, "LeakyReLU", "he_normal"),
        ({"overfitting": True}, "RReLU", "he_normal"),
        ({"overfitting": True, "dead_units": True}, "RReLU", "he_normal"),
        ({"large_dataset": True}, "PReLU", "he_normal"),
        ({"light_network": True}, "elu", "he_normal"),
        ({"output": "binary"}, "sigmoid", "glorot_uniform"),
        ({"output": "binary", "overfitting": True}, "sigmoid", "glorot_uniform"),
        ({"output": "classes"}, "softmax", "glorot_uniform"),
        ({"output": "numbers"}, "linear", "glorot_uniform"),
    ],
)
def test_advice(arguments, activation, initializer):
    advice = recommend_activation(**arguments)
    assert activation in advice.activation
    assert advice.kernel_initializer == initializer
    assert advice.reason in str(advice)
    keras.initializers.get(advice.kernel_initializer)


def test_what_is_advised_exists():
    import tfdeep.layers

    for argument in ("overfitting", "large_dataset", "dead_units"):
        advice = recommend_activation(**{argument: True}).activation
        package, _, name = advice.partition("(")[0].partition(".layers.")
        parts = {"keras": keras.layers, "tfdeep": tfdeep.layers}
        assert issubclass(getattr(parts[package], name), keras.layers.Layer)
    for arguments in ({}, {"light_network": True}, {"output": "binary"}):
        assert callable(
            keras.activations.get(recommend_activation(**arguments).activation)
        )


def test_an_output_that_is_not_known_is_refused():
    with pytest.raises(InvalidArgumentError, match="'binary', 'classes', 'numbers'"):
        recommend_activation(output="image")
