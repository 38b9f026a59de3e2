"""What is measured of a layer's output, against float64 NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfdeep._keras import _layer_outputs
from tfdeep._keras._layer_calls import LayerCall, LayerCalls
from tfdeep._keras._probe import probe


def called(layer, x):
    """The call of a layer, as it is seen while a model runs."""
    layer.build(x.shape)
    calls = LayerCalls({"layer": layer})
    with calls.watching():
        layer(x)
    return calls.take()["layer"]


def examples(*shape):
    return np.random.default_rng(0).normal(0.3, 1.5, shape).astype("float32")


def test_mean_spread_and_flat_units():
    layer = layers.Dense(6, "relu", kernel_initializer="glorot_normal")
    x = examples(100, 4)
    found, is_active = _layer_outputs.measure(called(layer, x))
    z = x.astype("float64") @ layer.kernel.numpy().astype("float64")
    y = np.maximum(z, 0)
    assert float(found["output_mean"]) == pytest.approx(y.mean(), rel=1e-5)
    assert float(found["output_std"]) == pytest.approx(y.std(), rel=1e-5)
    assert float(found["flat_fraction"]) == pytest.approx((z < 0).mean())
    assert float(found["nonfinite_output"]) == 0
    np.testing.assert_array_equal(is_active, (z > 0).any(axis=0))


@pytest.mark.parametrize("function", ["tanh", "sigmoid", "softsign", "elu"])
def test_an_output_is_flat_where_the_slope_is_below_a_hundredth(function):
    layer = layers.Activation(function)
    x = examples(50, 40) * 5
    with tf.GradientTape() as tape:
        z = tf.constant(x, tf.float64)
        tape.watch(z)
        y = keras.activations.get(function)(z)
    slope = tape.gradient(y, z).numpy()
    found, _ = _layer_outputs.measure(called(layer, x))
    assert float(found["flat_fraction"]) == pytest.approx((slope < 0.01).mean())


@pytest.mark.parametrize("function", ["linear", "softmax"])
def test_without_a_slope_by_unit_nothing_is_flat(function):
    found, is_active = _layer_outputs.measure(
        called(layers.Dense(3, function), examples(20, 4))
    )
    assert "flat_fraction" not in found and is_active is None


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_the_effective_rank_is_the_participation_ratio(directions):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(64, directions)) @ rng.normal(size=(directions, 20))
    values = np.linalg.eigvalsh(np.cov(y.T))
    expected = values.sum() ** 2 / (values**2).sum()
    rank = float(_layer_outputs.effective_rank(tf.constant(y, tf.float32)))
    assert rank == pytest.approx(expected, rel=1e-3)


def test_the_rank_of_equal_outputs_and_of_zeros():
    equal = tf.fill([64, 5], 3.7)
    assert float(_layer_outputs.effective_rank(equal)) == 0
    assert np.isnan(_layer_outputs.effective_rank(tf.zeros([64, 5])))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_units_of_a_convolution_are_its_channels(data_format):
    layer = layers.Conv2D(3, 1, data_format=data_format)
    axis = _layer_outputs.units_axis(layer)
    y = examples(2, 3, 4, 5)
    if data_format == "channels_last":
        y = y.transpose(0, 2, 3, 1)
    places = _layer_outputs.sample(tf.constant(y), axis)
    expected = y if data_format == "channels_last" else y.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(places, expected.reshape(-1, 3))


def test_a_large_output_is_sampled():
    places = _layer_outputs.sample(tf.zeros([500, 64, 64, 32]))
    assert places.shape[1] == 32 and len(places) * 32 <= 2 * 65_536


def test_nonfinite_outputs_are_counted():
    x = examples(10, 4)
    x[0, 0] = np.nan
    found, _ = _layer_outputs.measure(
        LayerCall(layers.Dense(1), tf.constant(x), output=tf.constant(x))
    )
    assert float(found["nonfinite_output"]) == pytest.approx(1 / 40)


class TestProbe:
    def test_gradients_are_those_of_a_tape_and_nothing_is_changed(self):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(5, "tanh", name="a"),
                layers.BatchNormalization(name="norm"),
                layers.Dense(2, name="b"),
            ]
        )
        x = tf.constant(examples(20, 4))
        before = [v.numpy() for v in model.variables]

        def loss(outputs):
            return tf.reduce_mean(outputs**2)

        found = probe(model, x, loss)
        with tf.GradientTape() as tape:
            value = loss(model(x, training=True))
        expected = tape.gradient(value, model.trainable_variables)
        for variable, old in zip(model.variables, before, strict=True):
            if "moving" not in variable.name:
                np.testing.assert_array_equal(variable, old)
        assert [v.path for v in found.variables][:2] == ["a/kernel", "a/bias"]
        assert float(found.loss) == pytest.approx(float(value), rel=1e-6)
        for gradient, other in zip(found.gradients, expected, strict=True):
            np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6)
        assert list(found.calls) == ["a", "norm", "b"]
        np.testing.assert_allclose(
            found.output_gradients["b"], 2 * found.calls["b"].output / 40, rtol=1e-5
        )

    def test_moving_averages_are_as_before(self):
        model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
        before = [v.numpy() for v in model.variables]
        probe(model, tf.constant(examples(20, 4)), tf.reduce_sum)
        for variable, old in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, old)
