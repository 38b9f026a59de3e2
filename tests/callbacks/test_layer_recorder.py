"""What the monitor records of the layers, against NumPy."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets

GradientMonitor = functools.partial(
    tfdeep.callbacks.GradientMonitor, activations=True, rules=None
)
STEPS, BATCH, RATE = 13, 16, 0.1
MEASURED = [*range(11)]  # the first ten steps, then every tenth
NAMES = ("output_mean", "output_std", "flat_fraction", "effective_rank")


def build(activation="tanh"):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((nets.INPUTS,))
    x = layers.Dense(6, activation=activation, name="hidden1")(inputs)
    x = layers.Dense(5, name="hidden2")(x)
    x = layers.Activation("relu", name="relu2")(x)
    return keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))


def participation_ratio(values):
    centered = np.float64(values) - np.float64(values).mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centered.T @ centered)
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def described(before, after, slope):
    return (
        after.mean(),
        after.std(),
        np.mean(np.abs(slope) < 0.01),
        participation_ratio(after),
    )


@functools.cache
def reference():
    """The same quantities of an eager loop; and when each ReLU was last active."""
    model, optimizer, rows, active = build(), keras.optimizers.SGD(RATE), [], []
    x, y = nets.examples(STEPS * BATCH)
    for i in range(0, len(x), BATCH):
        batch = x[i : i + BATCH]
        w1, b1, w2, b2, w3, b3 = (np.float64(w) for w in model.get_weights())
        z1 = batch @ w1 + b1
        z2 = np.tanh(z1) @ w2 + b2
        outputs = np.maximum(z2, 0) @ w3 + b3
        rows.append(
            [
                described(z1, np.tanh(z1), 1 - np.tanh(z1) ** 2),
                (z2.mean(), z2.std(), np.nan, participation_ratio(z2)),
                described(z2, np.maximum(z2, 0), z2 > 0),
                (outputs.mean(), outputs.std(), np.nan, participation_ratio(outputs)),
            ]
        )
        active.append((z2 > 0).any(axis=0))
        with tf.GradientTape() as tape:
            loss = nets.LOSS(y[i : i + BATCH], model(batch, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
    return np.array(rows), np.array(active)


WAYS = {
    "plain": {},
    "XLA": {"jit_compile": True},
    "4 steps an execution": {"steps_per_execution": 4},
    "XLA, 4 steps": {"jit_compile": True, "steps_per_execution": 4},
    "eager": {"run_eagerly": True},
    "replicas": {"strategy": nets.two_replicas},
    "wrapped": {"optimizer": lambda o: tfdeep.optimizers.ClipByGlobalNorm(o, 1e3)},
    "loss scale": {"optimizer": keras.optimizers.LossScaleOptimizer},
}


SLOW = {"XLA", "4 steps an execution"}  # which the two together show


@pytest.mark.parametrize("way", nets.slow_unless(lambda way: way not in SLOW, WAYS))
def test_it_records_what_the_layers_compute(way):
    arguments = dict(WAYS[way])
    strategy = arguments.pop("strategy", None)
    wrap = arguments.pop("optimizer", lambda optimizer: optimizer)
    with strategy().scope() if strategy else contextlib.nullcontext():
        model = build()
        nets.compiled(model, wrap(keras.optimizers.SGD(RATE)), **arguments)
    monitor = GradientMonitor(flush_every=5)
    data = nets.dataset(STEPS * BATCH, BATCH)
    model.fit(data, shuffle=False, verbose=0, callbacks=[monitor])
    recording = monitor.recording
    expected, active = reference()
    assert [layer.path for layer in recording.layers] == [
        "hidden1",
        "hidden2",
        "relu2",
        "outputs",
    ]
    np.testing.assert_array_equal(recording.measured_steps, MEASURED)
    found = np.stack([recording[name] for name in NAMES], -1)
    if strategy is None:  # a replica looks at its own half of the batch
        np.testing.assert_allclose(found, expected[MEASURED], rtol=2e-3, atol=2e-5)
    else:
        np.testing.assert_allclose(found[..., 0], expected[MEASURED, :, 0], atol=1e-5)
        np.testing.assert_allclose(found[..., 2], expected[MEASURED, :, 2], atol=1e-5)
    dead = [np.mean(~active[: step + 1].any(axis=0)) for step in MEASURED]
    if strategy is None:
        np.testing.assert_allclose(recording["inactive_fraction"][:, 2], dead)
    assert not recording["nonfinite_output"].any()


def test_the_first_input_is_seen_without_activations():
    model = build()
    model.compile("sgd", nets.LOSS)
    monitor = tfdeep.callbacks.GradientMonitor(rules=None)
    x, y = nets.examples(64)
    x = x * 3 + np.arange(nets.INPUTS)
    model.fit(x, y, batch_size=64, verbose=0, callbacks=[monitor])
    offset = np.sqrt(np.mean(x.mean(axis=0) ** 2))
    spread = np.sqrt(np.mean(x.var(axis=0)))
    np.testing.assert_allclose(monitor.recording["input_offset"], [[offset]], rtol=1e-5)
    np.testing.assert_allclose(monitor.recording["input_spread"], [[spread]], rtol=1e-5)
    assert "output_std" not in monitor.recording


def test_units_that_are_never_active_are_counted_over_many_steps():
    """A unit that is active on one example in a hundred is alive."""
    inputs = keras.Input((2,))
    x = layers.Dense(3, activation="relu", name="hidden1")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="outputs")(x))
    # The first unit is active on x > 0, the second on the rare, the third never.
    kernel, bias = np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([0.0, 0, -1])
    model.get_layer("hidden1").set_weights([kernel, bias])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.full((1000, 2), -1.0)
    x[::2, 0] = 1
    x[150, 1] = 1  # in the step of number 15: not measured
    x[200, 1] = 1  # in step 20
    monitor = GradientMonitor()
    model.fit(
        x, np.zeros(1000), batch_size=10, shuffle=False, verbose=0, callbacks=[monitor]
    )
    fraction = dict(
        zip(
            monitor.recording.measured_steps,
            monitor.recording["inactive_fraction"][:, 0],
            strict=True,
        )
    )
    assert fraction[10] == pytest.approx(2 / 3)
    assert fraction[20] == fraction[60] == pytest.approx(1 / 3)
    assert fraction[70] == pytest.approx(2 / 3)  # more than fifty steps ago


def test_convolutions_recurrent_layers_and_half_precision():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    policy = "mixed_float16"
    x = layers.Conv2D(7, 3, activation="relu", name="conv", dtype=policy)(inputs)
    x = layers.Reshape((36, 7))(x)
    x = layers.SimpleRNN(5, name="recurrent")(x)
    x = layers.Dense(2, name="outputs")(x)
    model = keras.Model(inputs, x)
    model.compile("adam", "mse")
    monitor = GradientMonitor()
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 3))
    model.fit(x, np.zeros((32, 2)), batch_size=8, verbose=0, callbacks=[monitor])
    recording = monitor.recording
    assert [layer.path for layer in recording.layers] == [
        "conv",
        "recurrent",
        "outputs",
    ]
    assert np.isfinite(recording["output_std"]).all()
    assert (recording["flat_fraction"][:, 0] > 0.2).all()
    assert recording.layers[0].units == 7


def test_training_is_the_same_with_and_without_it():
    watched, unwatched = build(), build()
    data = nets.dataset(STEPS * BATCH, BATCH)
    for model, callbacks in ((watched, [GradientMonitor()]), (unwatched, [])):
        model.compile(keras.optimizers.SGD(RATE), nets.LOSS)
        model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    # TensorFlow fuses a bias and its activation where nobody looks between them.
    assert nets.largest_difference(watched, unwatched) <= 1e-6
    for layer in watched.layers:
        assert "call" not in vars(layer)
    assert watched.get_layer("hidden1").activation is keras.activations.tanh


@pytest.mark.parametrize("subclass", [False, True])
def test_a_model_that_is_not_built_before_the_fit(subclass):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden1 = layers.Dense(6, activation="relu", name="hidden1")
            self.outputs = layers.Dense(nets.CLASSES, name="outputs")

        def call(self, x):
            return self.outputs(self.hidden1(tf.identity(x)))

    model = Two() if subclass else keras.Sequential(Two().layers)
    model.compile("sgd", nets.LOSS)
    monitor = GradientMonitor()
    model.fit(nets.dataset(), shuffle=False, verbose=0, callbacks=[monitor])
    recording = monitor.recording
    assert [layer.path for layer in recording.layers] == ["hidden1", "outputs"]
    assert recording.layers[0].gain > 0
    assert (recording["output_std"][0] > 0).all()


def test_accumulated_updates_are_measured_when_they_are_made():
    model, other = build(), build()
    before = other.get_weights()
    monitor = GradientMonitor()
    model.compile(
        tfdeep.optimizers.Accumulate(keras.optimizers.SGD(RATE), steps=4), nets.LOSS
    )
    data = nets.dataset(STEPS * BATCH, BATCH)
    model.fit(data, shuffle=False, verbose=0, callbacks=[monitor])
    other.compile(keras.optimizers.SGD(RATE), nets.LOSS)
    x, y = (values[: 4 * BATCH] for values in nets.examples(STEPS * BATCH))
    other.fit(x, y, batch_size=4 * BATCH, verbose=0)
    moved = [
        np.linalg.norm(a - b) for a, b in zip(before, other.get_weights(), strict=True)
    ]
    update = monitor.recording.at_steps("update_norm")
    np.testing.assert_allclose(update[3], moved, rtol=1e-4)
    assert np.isnan(np.delete(update, 3, axis=0)).all()  # the next is at step 15
