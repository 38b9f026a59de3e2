"""Loops that no callback sees, watched like a fit."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep._keras import installed
from tfdeep.callbacks import GradientMonitor, watch
from tfdeep.diagnostics import Judgment, read_run
from tfdeep.errors import InvalidArgumentError, ModelError, SickLayerError

STEPS, BATCH, RATE = 13, 16, 0.1


def build():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((nets.INPUTS,))
    x = layers.Dense(6, activation="tanh", name="hidden1")(inputs)
    return keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))


def batches():
    x, y = nets.examples(STEPS * BATCH)
    return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]


def reference():
    """The loss and the norm of each gradient by step, in float64 NumPy."""
    w1, b1, w2, b2 = (np.float64(w) for w in build().get_weights())
    losses, norms = [], []
    for x, y in batches():
        x = np.float64(x)
        h = np.tanh(x @ w1 + b1)
        z = h @ w2 + b2
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        losses.append(-np.log(p[rows, y]).mean())
        dz = p.copy()
        dz[rows, y] -= 1
        dz /= len(y)
        dh = dz @ w2.T * (1 - h**2)
        gradients = [x.T @ dh, dh.sum(axis=0), h.T @ dz, dz.sum(axis=0)]
        norms.append([np.linalg.norm(g) for g in gradients])
        w1, b1, w2, b2 = (
            w - RATE * g for w, g in zip((w1, b1, w2, b2), gradients, strict=True)
        )
    return np.array(losses), np.array(norms)


def train_step(model, optimizer, scale=1.0):
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = nets.LOSS(y, model(x, training=True)) * scale
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(
            zip(gradients, model.trainable_variables, strict=True)
        )
        return loss

    return step


def check(monitor):
    losses, norms = reference()
    recording = monitor.recording
    assert recording.total_steps == STEPS
    np.testing.assert_allclose(recording["loss"][:, 0], losses, rtol=1e-4)
    np.testing.assert_allclose(recording["norm"], norms, rtol=2e-4)
    found = [h["norm"] for h in monitor.history.values()]
    np.testing.assert_allclose(np.transpose(found), norms, rtol=2e-4)


WAYS = {
    "eager": lambda step: step,
    "traced": tf.function,
    "XLA": lambda step: tf.function(step, jit_compile=True),
}


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_it_sees_loops_with_a_tape(way, activations):
    model, optimizer = build(), keras.optimizers.SGD(RATE)
    step = WAYS[way](train_step(model, optimizer))
    with watch(model, optimizer, activations=activations, flush_every=5) as monitor:
        for x, y in batches():
            step(x, y)
    check(monitor)
    if activations:
        assert (monitor.recording["output_std"] > 0).all()


def test_it_sees_a_loop_inside_a_function():
    model, optimizer = build(), keras.optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)
    step = train_step(model, optimizer)
    data = tf.data.Dataset.from_tensor_slices(nets.examples(STEPS * BATCH))

    @tf.function
    def epoch(data):
        for x, y in data:
            step(x, y)

    with watch(model, optimizer) as monitor:
        epoch(data.batch(BATCH))
    check(monitor)


@pytest.mark.parametrize("train", ["train_on_batch", "fit"])
def test_it_sees_what_keras_trains(train):
    model = build()
    model.compile(keras.optimizers.SGD(RATE), nets.LOSS)
    with watch(model, rules=None) as monitor:
        if train == "fit":
            model.fit(nets.dataset(STEPS * BATCH, BATCH), shuffle=False, verbose=0)
        else:
            for x, y in batches():
                model.train_on_batch(x, y)
    check(monitor)


def test_a_model_that_was_trained_before_is_seen():
    model = build()
    model.compile(keras.optimizers.SGD(0.0), nets.LOSS)
    model.fit(nets.dataset(STEPS * BATCH, BATCH), shuffle=False, verbose=0)
    plain = model.train_function
    with watch(model, rules=None) as monitor:
        model.fit(nets.dataset(STEPS * BATCH, BATCH), shuffle=False, verbose=0)
    assert monitor.recording.total_steps == STEPS
    model.fit(nets.dataset(STEPS * BATCH, BATCH), shuffle=False, verbose=0)
    assert model.train_function is plain
    assert monitor.recording.total_steps == STEPS


def test_a_loss_scale_is_no_part_of_what_is_recorded():
    model = build()
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(RATE), initial_scale=128.0
    )

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(nets.LOSS(y, model(x, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    with watch(model, optimizer) as monitor:
        for x, y in batches():
            step(x, y)
    check(monitor)


def test_it_trains_the_same():
    plain, watched = build(), build()
    for model in (plain, watched):
        optimizer = keras.optimizers.Adam()
        step = tf.function(train_step(model, optimizer))
        is_watched = model is watched
        with watch(model, optimizer) if is_watched else contextlib.nullcontext():
            for x, y in batches():
                step(x, y)
    assert nets.largest_difference(plain, watched) == 0


class Gan(keras.Model):
    """As on keras.io: two optimizers, and a train step of its own."""

    def __init__(self):
        super().__init__()
        self.discriminator = keras.Sequential(
            [keras.Input((4,)), layers.Dense(8, "leaky_relu"), layers.Dense(1)],
            name="discriminator",
        )
        self.generator = keras.Sequential(
            [keras.Input((3,)), layers.Dense(8, "leaky_relu"), layers.Dense(4)],
            name="generator",
        )
        self.seen = []

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.loss_fn = loss_fn

    def call(self, x):
        return self.discriminator(x)

    def train_step(self, real):
        noise = tf.random.normal((tf.shape(real)[0], 3))
        both = tf.concat([self.generator(noise), real], 0)
        labels = tf.concat([tf.ones((4, 1)), tf.zeros((4, 1))], 0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        d_gradients = tape.gradient(d_loss, self.discriminator.trainable_weights)
        self.d_optimizer.apply_gradients(
            zip(d_gradients, self.discriminator.trainable_weights, strict=True)
        )
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(tf.zeros((4, 1)), fake)
        g_gradients = tape.gradient(g_loss, self.generator.trainable_weights)
        self.g_optimizer.apply_gradients(
            zip(g_gradients, self.generator.trainable_weights, strict=True)
        )
        norms = [tf.norm(g_gradients[0]), tf.norm(d_gradients[0])]
        return {"d_loss": d_loss, "g_loss": g_loss, "g": norms[0], "d": norms[1]}


class Keeps(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


@pytest.mark.parametrize("is_built", [False, True])
def test_a_gan_has_a_recording_of_each_optimizer(is_built, tmp_path):
    pytest.importorskip("tensorboard")
    gan, keeps = Gan(), Keeps()
    optimizers = keras.optimizers.Adam(), keras.optimizers.Adam()
    gan.compile(*optimizers, keras.losses.BinaryCrossentropy(from_logits=True))
    if is_built:
        optimizers[0].build(gan.discriminator.trainable_variables)
        optimizers[1].build(gan.generator.trainable_variables)
    data = np.random.default_rng(0).normal(size=(8 * 4, 4)).astype("float32")
    with watch(gan, [*optimizers], activations=True, log_dir=tmp_path) as monitor:
        gan.fit(data, batch_size=4, verbose=0, callbacks=[keeps])
    assert list(monitor.recordings) == ["d_optimizer", "g_optimizer"]
    for short, other in (("d", "generator"), ("g", "discriminator")):
        recording = monitor.recordings[f"{short}_optimizer"]
        assert recording.total_steps == 8
        assert len(recording.variables) == 4
        paths = [*recording.variables, *(info.path for info in recording.layers)]
        assert paths and not any(path.startswith(f"{other}/") for path in paths)
        losses = [logs[f"{short}_loss"] for logs in keeps.logs]
        np.testing.assert_allclose(recording["loss"][:, 0], losses, rtol=1e-5)
        norms = [logs[short] for logs in keeps.logs]
        np.testing.assert_allclose(recording["norm"][:, 0], norms, rtol=1e-5)
        assert (recording["output_std"] > 0).all()
        run = read_run(tmp_path / f"{short}_optimizer")
        assert run.is_complete and run.recording.total_steps == 8
    report = monitor.report()
    assert [part.optimizer for part in report.parts] == [*monitor.recordings]
    assert report.judgment is Judgment.TOO_FEW_STEPS
    assert "Optimizer d_optimizer" in str(report)
    assert len(monitor.history) == 8
    monitor.plot("g_optimizer")
    with pytest.raises(InvalidArgumentError, match="there are several"):
        monitor.plot()


class TestItPutsEverythingBack:
    @pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
    def test_after_the_block(self, error):
        model, optimizer = build(), keras.optimizers.SGD(RATE)
        gradient = vars(tf.GradientTape)["gradient"]
        function = type(tf.function(lambda: 0))
        call = vars(function)["__call__"]
        objects = [model, optimizer, *model.layers]
        before = [set(vars(one)) for one in objects]
        suppressed = contextlib.suppress(*([] if error is None else [error]))
        with suppressed, watch(model, optimizer, activations=True):
            train_step(model, optimizer)(*batches()[0])
            assert vars(tf.GradientTape)["gradient"] is not gradient
            if error is not None:
                raise error
        for one, names in zip(objects, before, strict=True):
            new = {n for n in set(vars(one)) - names if "tfdeep" in n}
            assert not new
            assert not {"apply", "call", "scale_loss", "compute_loss"} & set(vars(one))
        assert vars(tf.GradientTape)["gradient"] is gradient
        assert vars(function)["__call__"] is call
        assert installed(model) == []

    def test_after_a_fit_in_the_block(self):
        model = build()
        model.compile("sgd", nets.LOSS)
        with watch(model):
            model.fit(nets.dataset(), verbose=0)
        assert installed(model) == []
        model.fit(nets.dataset(), verbose=0)

    def test_the_rows_before_an_error_are_there(self):
        model, optimizer = build(), keras.optimizers.SGD(RATE)
        monitor = watch(model, optimizer)
        with pytest.raises(ZeroDivisionError), monitor:
            train_step(model, optimizer)(*batches()[0])
            raise ZeroDivisionError
        assert monitor.recording.total_steps == 1


def test_beside_a_monitor_of_the_same_model():
    model = build()
    model.compile(keras.optimizers.SGD(RATE), nets.LOSS)
    inner = GradientMonitor(rules=None, activations=True)
    with watch(model, activations=True) as outer, watch(model) as second:
        model.fit(
            nets.dataset(STEPS * BATCH, BATCH),
            shuffle=False,
            verbose=0,
            callbacks=[inner],
        )
    for monitor in (outer, second, inner):
        check(monitor)
    np.testing.assert_array_equal(
        outer.recording["output_std"], inner.recording["output_std"]
    )
    model.fit(nets.dataset(), verbose=0, callbacks=[inner])


def test_it_may_be_entered_again_and_goes_on():
    model, optimizer = build(), keras.optimizers.SGD(RATE)
    step = tf.function(train_step(model, optimizer))
    monitor = watch(model, optimizer)
    data = batches()
    with monitor:
        for x, y in data[:5]:
            step(x, y)
    step(*data[5])  # is of no block
    with monitor:
        for x, y in data[6:]:
            step(x, y)
    losses = reference()[0]
    found = monitor.recording["loss"][:, 0]
    np.testing.assert_allclose(found, np.delete(losses, 5), rtol=1e-4)


class TestWhatWasNotSeenIsSaid:
    def test_a_function_that_was_traced_before_the_block(self):
        model, optimizer = build(), keras.optimizers.SGD(RATE)
        step = tf.function(train_step(model, optimizer))
        step(*batches()[0])
        with (
            pytest.warns(UserWarning, match="saw no step"),
            watch(model, optimizer) as monitor,
        ):
            step(*batches()[0])
        report = monitor.report()
        assert report.judgment is Judgment.NO_STEP
        assert str(report).startswith("No step was seen")

    @pytest.mark.parametrize(
        ("steps", "judgment", "text"),
        [
            (9, Judgment.TOO_FEW_STEPS, "9 steps are too few to judge: 50 are needed."),
            (50, Judgment.DONE, "Nothing found."),
        ],
    )
    def test_too_few_steps(self, steps, judgment, text):
        model = build()
        model.compile(keras.optimizers.SGD(0.01), nets.LOSS)
        monitor = GradientMonitor()
        x, y = nets.examples(8 * steps)
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
        report = monitor.report()
        assert report.judgment is judgment
        assert str(report).startswith(text)

    def test_no_rules(self):
        model, optimizer = build(), keras.optimizers.SGD(RATE)
        with watch(model, optimizer, rules=None) as monitor:
            train_step(model, optimizer)(*batches()[0])
        assert monitor.report().judgment is Judgment.NO_RULES


class TestFindings:
    def loop(self, **arguments):
        model, optimizer = build(), keras.optimizers.SGD(RATE)
        step = tf.function(train_step(model, optimizer, scale=np.nan))
        with watch(model, optimizer, **arguments) as monitor:
            for _ in range(40):
                step(*batches()[0])
                if vars(model).get("stop_training"):
                    break
        return monitor

    def test_are_told_while_the_loop_runs(self):
        told = []
        monitor = self.loop(on_finding=told.append)
        assert {finding.kind for finding in told} >= {"nonfinite"}
        assert {f.kind for f in monitor.findings} >= {"nonfinite"}

    def test_may_end_it_by_an_error(self, tmp_path):
        pytest.importorskip("tensorboard")
        with pytest.raises(SickLayerError):
            self.loop(on_finding="raise", log_dir=tmp_path)
        assert not read_run(tmp_path).is_complete

    def test_may_ask_it_to_stop(self):
        with pytest.warns(UserWarning, match="nonfinite"):
            monitor = self.loop(on_finding="stop")
        assert monitor.recording.total_steps < 40


@pytest.mark.parametrize(
    "optimizers", [[], "adam", [keras.optimizers.SGD(), None], {"a": 3}]
)
def test_optimizers_that_cannot_be_watched_are_refused(optimizers):
    with pytest.raises(InvalidArgumentError, match="cannot watch these optimizers"):
        watch(build(), optimizers)


def test_other_arguments_that_cannot_work_are_refused():
    optimizer = keras.optimizers.SGD()
    with pytest.raises(InvalidArgumentError, match="cannot watch these"):
        watch(build(), [optimizer, optimizer])
    with pytest.raises(ModelError, match="no optimizer to watch"):
        watch(build())
    with pytest.raises(InvalidArgumentError, match="`watch` cannot watch this"):
        watch(layers.Dense(2), optimizer)
    with pytest.raises(InvalidArgumentError, match="flush_every="):
        watch(build(), optimizer, flush_every=0)
    monitor = watch(build(), optimizer)
    opened = pytest.raises(InvalidArgumentError, match="open already")
    with monitor, opened, monitor:
        pass


def test_autograph_converts_what_it_would_without_it():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x=None, y=None, y_pred=None, **kwargs):
            loss = tf.reduce_mean(y_pred**2)
            if loss > 0:  # of a tensor
                return loss
            return -loss

    model, optimizer = Own(), keras.optimizers.SGD(RATE)
    model(np.ones((2, 3)))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y_pred=model(x))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    with watch(model, optimizer) as monitor:
        loss = step(np.ones((4, 3), "float32"))
    assert monitor.recording["loss"][0, 0] == pytest.approx(float(loss))
    assert tfdeep.callbacks.Watch is type(monitor)
