"""A penalty on weights is told apart from the loss of the data."""

import keras
import numpy as np
import pytest

import tfdeep
from tfdeep.callbacks import GradientMonitor

layers, regularizers = keras.layers, keras.regularizers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(320, 8)).astype("float32")
Y = (X[:, :1] - X[:, 1:2]).astype("float32")


def own_penalty(weights):
    return 0.05 * keras.ops.sum(keras.ops.abs(weights) ** 3)


PENALTIES = {
    "l1": (regularizers.L1(0.1), lambda w: 0.1 * np.sign(w)),
    "l2": (regularizers.L2(0.1), lambda w: 0.2 * w),
    "l1 and l2": (regularizers.L1L2(0.1, 0.2), lambda w: 0.1 * np.sign(w) + 0.4 * w),
    "one of your own": (own_penalty, lambda w: 0.15 * np.sign(w) * w**2),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_of_the_data_is_that_of_least_squares(name, wrapped):
    regularizer, of_penalty = PENALTIES[name]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(1, kernel_regularizer=regularizer, name="d")]
    )
    optimizer = keras.optimizers.SGD(0.0)
    if wrapped:
        optimizer = tfdeep.optimizers.ClipByNorm(optimizer, 1e9)
    model.compile(optimizer, "mse")
    monitor = GradientMonitor(rules=None)
    model.fit(X, Y, batch_size=320, epochs=2, verbose=0, callbacks=[monitor])
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    data = 2 / 320 * X.T.astype("float64") @ (X @ kernel + bias - Y)
    recording = monitor.recording
    column = recording.column("d/kernel")
    both = np.linalg.norm(data + of_penalty(kernel))
    np.testing.assert_allclose(recording["norm"][0, column], both, rtol=1e-4)
    found = recording["data_norm"][0]
    np.testing.assert_allclose(found[column], np.linalg.norm(data), rtol=1e-4)
    assert np.isnan(found[recording.column("d/bias")])  # it has no penalty
    loss = np.mean((X @ kernel + bias - Y) ** 2)
    np.testing.assert_allclose(recording["data_loss"][0], loss, rtol=1e-4)
    assert recording["loss"][0, 0] > 1.001 * loss


def test_without_penalties_the_loss_is_recorded_once():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    monitor = GradientMonitor(rules=None)
    model.fit(X, Y, verbose=0, callbacks=[monitor])
    assert np.isnan(monitor.recording["data_loss"]).all()
    assert np.isnan(monitor.recording["data_norm"]).all()


@pytest.mark.parametrize(
    "penalty",
    [
        {"kernel_regularizer": regularizers.L2(1e-2)},
        {"kernel_regularizer": regularizers.L1(1e-3)},
        {
            "kernel_regularizer": regularizers.L2(1e-2),
            "bias_regularizer": regularizers.L2(1e-2),
        },
    ],
    ids=["l2", "l1", "biases, too"],
)
@pytest.mark.parametrize("activations", [False, True])
def test_sigmoid_layers_vanish_under_a_penalty(penalty, activations):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(16, "sigmoid", name=f"h{i}", **penalty) for i in range(10)]
    model = keras.Sequential([keras.Input((8,)), *hidden, layers.Dense(1)])
    model.compile("adam", "mse")
    monitor = GradientMonitor(activations=activations, on_finding=None)
    model.fit(X, Y, batch_size=32, epochs=5, verbose=0, callbacks=[monitor])
    assert monitor.causes[0].place == ("vanishing_gradient", "h0")
