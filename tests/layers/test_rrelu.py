import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeep.errors import InvalidArgumentError
from tfdeep.layers import RReLU

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens/tfa/rrelu.npz")
MANY = -np.ones((100, 1000), "float32")


def test_inference_is_that_of_tensorflow_addons():
    x = tf.Variable(GOLDEN["x"])
    with tf.GradientTape() as tape:
        y = RReLU()(x)
    np.testing.assert_allclose(y, GOLDEN["y"], rtol=1e-6)
    not_0 = GOLDEN["x"] != 0  # where Keras takes the slope of the left, and they 1
    gradient = tape.gradient(y, x).numpy()
    np.testing.assert_allclose(gradient[not_0], GOLDEN["gradient"][not_0], rtol=1e-6)
    other = RReLU(0.2, 0.6)(GOLDEN["x"])
    np.testing.assert_allclose(other, GOLDEN["y_other_bounds"], rtol=1e-6)


def test_slopes_are_drawn_as_in_tensorflow_addons():
    slopes = -RReLU(seed=0)(MANY, training=True).numpy()
    low, high, mean, std = GOLDEN["slopes"]
    assert math.isclose(slopes.min(), low, abs_tol=1e-4)
    assert math.isclose(slopes.max(), high, abs_tol=1e-4)
    assert math.isclose(slopes.mean(), mean, rel_tol=0.01)
    assert math.isclose(slopes.std(), std, rel_tol=0.01)


@pytest.mark.parametrize(
    ("inference", "draw", "slope"),
    [
        ("mean", "slope", (1 / 8 + 1 / 3) / 2),
        ("mean", "divisor", (1 / 8 + 1 / 3) / 2),
        ("paper", "slope", 1 / 5.5),
        ("paper", "divisor", 1 / 5.5),
        ("expected", "slope", (1 / 8 + 1 / 3) / 2),
        ("expected", "divisor", math.log(8 / 3) / 5),
    ],
)
def test_the_slope_at_inference(inference, draw, slope):
    layer = RReLU(inference=inference, draw=draw)
    y = layer(np.array([-1.0, -2.0, 0.0, 3.0]), training=False)
    np.testing.assert_allclose(y, [-slope, -2 * slope, 0, 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("draw", "mean"), [("slope", 0.2291667), ("divisor", 0.196166)]
)
def test_the_expected_slope_is_the_mean_of_those_drawn(draw, mean):
    layer = RReLU(draw=draw, inference="expected", seed=1)
    slopes = -layer(MANY, training=True).numpy().astype("float64")
    assert math.isclose(slopes.mean(), mean, rel_tol=0.01)
    assert math.isclose(layer.inference_slope, mean, rel_tol=1e-5)
    assert slopes.min() >= 1 / 8 - 1e-7
    assert slopes.max() <= 1 / 3 + 1e-7
    if draw == "divisor":  # uniform in the divisor: variance (8 - 3)^2 / 12
        assert math.isclose((1 / slopes).var(), 25 / 12, rel_tol=0.01)


def test_each_element_and_each_call_draws_its_own():
    layer = RReLU(seed=2)
    first, second = (layer(MANY, training=True).numpy() for _ in range(2))
    for a, b in ((first, second), (first[0], first[1]), (first[:, 0], first[:, 1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.25
        assert (a != b).mean() > 0.99


@pytest.mark.parametrize("count", [1, 3, 1001])
def test_two_slopes_come_of_one_number_however_many_are_needed(count):
    slopes = -RReLU(seed=5)(-np.ones((count, 1, 1)), training=True).numpy()
    assert slopes.shape == (count, 1, 1)
    assert len(np.unique(slopes)) > 0.9 * count
    neighbours = -RReLU(seed=5)(MANY, training=True).numpy().reshape(-1, 2)
    assert abs(np.corrcoef(neighbours.T)[0, 1]) < 0.02


def test_a_seed_repeats_the_draws():
    a, b, c = (RReLU(seed=s)(MANY, training=True).numpy() for s in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_the_gradient_is_the_slope_that_was_drawn():
    x = tf.Variable([[-2.0, -1.0, 0.0, 1.0]])
    with tf.GradientTape() as tape:
        y = RReLU(seed=0)(x, training=True)
    gradient = tape.gradient(y, x).numpy()
    np.testing.assert_allclose(gradient[0, :2], y[0, :2] / x[0, :2], rtol=1e-6)
    np.testing.assert_array_equal(gradient[0, 2:], 1)


def test_positive_inputs_pass_and_not_a_number_shows():
    x = np.array([0.0, 1.5, np.inf, np.nan, -np.inf], "float32")
    y = RReLU()(x, training=True).numpy()
    np.testing.assert_array_equal(y[:3], x[:3])
    assert np.isnan(y[3])
    assert y[4] == -np.inf


def test_one_slope_is_a_leaky_relu():
    x = GOLDEN["x"]
    expected = keras.layers.LeakyReLU(negative_slope=0.25)(x)
    for inference in ("mean", "paper", "expected"):
        for draw in ("slope", "divisor"):
            layer = RReLU(0.25, 0.25, inference=inference, draw=draw)
            for training in (False, True):
                y = layer(x, training=training)
                np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lower": 0.5},
        {"lower": -0.1},
        {"upper": math.inf},
        {"upper": "1"},
        {"lower": 0, "draw": "divisor"},
        {"lower": 0, "inference": "paper"},
        {"inference": "max"},
        {"draw": "both"},
    ],
)
def test_what_cannot_work_is_refused(arguments):
    with pytest.raises(InvalidArgumentError, match="Received") as error:
        RReLU(**arguments)
    for value in arguments.values():
        assert repr(value) in str(error.value)
    RReLU(lower=0)  # ReLU to leaky ReLU
