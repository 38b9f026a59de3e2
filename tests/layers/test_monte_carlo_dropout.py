import keras
import numpy as np
import pytest
from keras import layers

from tests import nets
from tfdeep.errors import InvalidArgumentError, ModelError
from tfdeep.layers import MCAlphaDropout, MCDropout, mc_predict


def model(dropout=MCDropout, dtype=None):
    return keras.Sequential(
        [
            keras.Input((20,)),
            dropout(0.25, dtype=dtype),
            layers.Dense(2, kernel_initializer="glorot_normal", dtype=dtype),
        ]
    )


X = np.random.default_rng(0).normal(1, 1, (7, 20)).astype("float32")


def test_the_moments_are_those_of_dropout():
    """Of a linear layer: mean x W + b, variance p/(1-p) sum (x W)^2."""
    net = model()
    mean, std = mc_predict(net, X, samples=4000, batch_size=3)
    w = net.layers[-1].kernel.numpy().astype("float64")
    expected = np.sqrt(0.25 / 0.75 * (X**2) @ w**2)
    np.testing.assert_allclose(mean, X @ w, atol=4 * expected.max() / 4000**0.5)
    np.testing.assert_allclose(std, expected, rtol=0.06)
    assert mean.shape == std.shape == (7, 2)
    assert mean.dtype == std.dtype == np.float32


def test_they_are_those_of_the_draws():
    """Against the calls themselves, from the same seed."""
    net = model()
    seed = next(v for v in net.variables if "seed" in v.path)
    start = seed.numpy()
    draws = np.stack([net(X).numpy() for _ in range(10)]).astype("float64")
    seed.assign(start)
    mean, std = mc_predict(net, X, samples=10)
    np.testing.assert_allclose(mean, draws.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, draws.std(axis=0), rtol=1e-4)


def test_a_large_mean_takes_no_digits_from_the_spread():
    net = model()
    _, expected = mc_predict(net, X, samples=50)
    net.layers[-1].bias.assign([1e4, 1e4])
    _, std = mc_predict(net, X, samples=50)
    np.testing.assert_allclose(std, expected, rtol=0.5)


@pytest.mark.parametrize("arguments", [{}, {"jit_compile": True}])
def test_a_compiled_model_and_its_weights_stay(arguments):
    net = keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.Activation("selu"),
            MCAlphaDropout(0.2),
            layers.Dense(3),
        ]
    )
    net.compile("sgd", nets.LOSS, **arguments)
    net.fit(X, np.zeros(7), verbose=0)
    before = net.get_weights()
    _, std = mc_predict(net, X, samples=5)
    assert (std > 0).all()
    for a, b in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    net.fit(X, np.zeros(7), verbose=0)


def test_predict_differs_from_call_to_call():
    net = model()
    first, second = net.predict(X, verbose=0), net.predict(X, verbose=0)
    assert (first != second).any()


def test_the_weights_of_a_network_with_plain_dropout_fit():
    plain, net = model(layers.Dropout), model()
    net.set_weights(plain.get_weights())
    mean, _ = mc_predict(net, X, samples=2000)
    np.testing.assert_allclose(mean, plain(X), atol=0.15)


def test_alpha_dropout_keeps_mean_and_variance():
    x = np.random.default_rng(0).normal(size=(1, 100_000)).astype("float32")
    y = MCAlphaDropout(0.3, seed=0)(x, training=False).numpy()
    assert abs(y.mean()) < 0.02
    assert abs(y.std() - 1) < 0.02
    theirs = layers.AlphaDropout(0.3, seed=0)(x, training=True)
    np.testing.assert_array_equal(y, theirs)


def test_inputs_may_be_several_and_layers_nested():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    inner = keras.Sequential([MCDropout(0.5)])
    net = keras.Model({"a": a, "b": b}, layers.Add()([inner(a), b]))
    ones = np.ones((4, 3), "float32")
    mean, std = mc_predict(net, {"a": ones, "b": ones}, samples=8)
    assert mean.shape == (4, 3)
    assert (std > 0).any()


def test_half_precision_gives_float32_and_double_float64():
    for dtype, expected in (("mixed_float16", "float32"), ("float64", "float64")):
        mean, std = mc_predict(model(dtype=dtype), X, samples=3)
        assert mean.dtype == std.dtype == expected


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="MCDropout"):
        mc_predict(model(layers.Dropout), X)
    for arguments in ({"samples": 0}, {"batch_size": -1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
            mc_predict(model(), X, **arguments)
    inputs = keras.Input((20,))
    two = keras.Model(inputs, [MCDropout(0.5)(inputs), inputs])
    with pytest.raises(ModelError, match="one output"):
        mc_predict(two, X)
