"""How fast a net learns, whether it swings, and what validation shows."""

import keras
import numpy as np
import pytest

from tfdeep.callbacks import GradientMonitor

layers, optimizers = keras.layers, keras.optimizers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(640, 8)).astype("float32")
Y = np.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:3]


def net(bias="zeros", normalization=None):
    keras.utils.set_random_seed(0)
    parts = [
        keras.Input((8,)),
        layers.Dense(
            32, kernel_initializer="he_normal", bias_initializer=bias, name="hidden"
        ),
        layers.Activation("relu"),
        layers.Dense(1),
    ]
    if normalization is not None:
        parts.insert(2, normalization)
    return keras.Sequential(parts)


def causes(model, optimizer, epochs=15, x=X, y=Y, batch_size=32, **arguments):
    model.compile(optimizer, "mse")
    monitor = GradientMonitor(on_finding=None)
    model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[monitor],
        **arguments,
    )
    return monitor.causes


@pytest.mark.parametrize(
    ("optimizer", "least"),
    [
        (optimizers.Adam(1e-6), 100),
        (optimizers.RMSprop(1e-6), 100),
        (optimizers.Adadelta(), 1000),
        (optimizers.SGD(1e-6), 100),
        (optimizers.SGD(1e-5), 10),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_rate_that_is_too_low_is_told_with_the_factor(optimizer, least):
    rate = float(optimizer.learning_rate)
    first = causes(net(), optimizer)[0]
    assert first.kind in ("slow_learning", "update_too_small")
    assert first.remedy.change == "learning_rate"
    np.testing.assert_allclose(first.remedy.before, rate, rtol=1e-5)
    assert first.remedy.after >= 0.99 * least * rate


@pytest.mark.parametrize(
    "optimizer",
    [optimizers.Adam(0.003), optimizers.SGD(0.05), optimizers.Adadelta(1.0)],
    ids=lambda optimizer: optimizer.name,
)
def test_a_rate_that_works_is_left_alone(optimizer):
    assert causes(net(), optimizer) == ()


def test_a_rate_that_is_too_high_swings():
    found = causes(net(), optimizers.RMSprop(0.3))
    assert found[0].remedy.change == "learning_rate"
    assert found[0].remedy.after < 0.3


def test_overfitting():
    x, y = X[:48], Y[:48] + RNG.normal(size=(48, 1))
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(512, "relu"), layers.Dense(1)]
    )
    found = causes(
        model, optimizers.Adam(0.01), 60, x, y, validation_data=(X[100:], Y[100:])
    )
    assert [f.kind for f in found] == ["overfitting"]
    assert "EarlyStopping" in str(found[0].remedy)


def test_a_validation_loss_that_falls_is_no_overfitting():
    found = causes(net(), optimizers.Adam(0.003), 10, validation_data=(X[:96], Y[:96]))
    assert found == ()


def test_moving_averages_that_are_not_there_yet():
    def found(momentum, x):
        normalization = layers.BatchNormalization(momentum=momentum, name="norm")
        return [
            f.place
            for f in causes(
                net(normalization=normalization),
                optimizers.Adam(0.003),
                10,
                x,
                validation_data=(x[:320], Y[:320]),
            )
        ]

    far = 3 * X + 8  # not the first values of moving averages
    assert found(0.9999, far) == [("inference_gap", "norm")]
    assert found(0.9, far) == []


def test_statistics_of_two_examples():
    normalization = layers.BatchNormalization(momentum=0.9, name="norm")
    found = causes(
        net(normalization=normalization), optimizers.SGD(0.001), 1, batch_size=2
    )
    assert ("inference_gap", "norm") in [f.place for f in found]


def test_batches_of_one_class():
    order = np.argsort(Y[:, 0] > 0)
    labels = (Y[order] > 0).astype("float32")
    model = net()
    model.layers[-1].activation = keras.activations.sigmoid
    first = causes(model, optimizers.Adam(0.003), 2, X[order], labels, shuffle=False)[0]
    assert first.kind == "bad_labels" and "shuffle" in str(first.remedy)


def test_biases_drawn_at_random_hide_nothing():
    scaled = 100 * X + 50
    first = causes(net(bias="random_normal"), optimizers.SGD(0.01), 3, scaled)[0]
    assert first.place == ("input_scale", "hidden")


def test_what_is_over_when_the_net_has_learned_is_not_listed():
    keras.utils.set_random_seed(0)
    model = net()
    # RMSprop's first steps are ten times as large as its later ones.
    found = causes(model, optimizers.RMSprop(0.02, rho=0.999), 30)
    assert [f for f in found if f.severity == "critical"] == []
