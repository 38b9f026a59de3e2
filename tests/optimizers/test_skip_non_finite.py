import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import nets
from tfdeep import optimizers
from tfdeep.errors import InvalidArgumentError, NonFiniteGradientError
from tfdeep.optimizers import SkipNonFinite

SGD = keras.optimizers.SGD
INNER = {
    "SGD": lambda: SGD(0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.1, use_ema=True),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.9, centered=True),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Nadam": lambda: keras.optimizers.Nadam(0.1),
    "Lion": lambda: keras.optimizers.Lion(0.1),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.1),
}
CLIPS = {
    "none": lambda inner: inner,
    "ClipByValue": lambda inner: optimizers.ClipByValue(inner, 0.5),
    "ClipByNorm": lambda inner: optimizers.ClipByNorm(inner, 0.5),
    "ClipByGlobalNorm": lambda inner: optimizers.ClipByGlobalNorm(inner, 0.5),
    "AdaptiveClip": lambda inner: optimizers.AdaptiveClip(inner, 0.1),
    "PercentileClip": lambda inner: optimizers.PercentileClip(inner, 50, window=4),
    "ZScoreClip": lambda inner: optimizers.ZScoreClip(inner, 0.5, warmup_steps=2),
    "Accumulate": lambda inner: optimizers.Accumulate(inner, steps=3),
}
BAD = {"nan": np.nan, "+inf": np.inf, "-inf": -np.inf, "overflow": 3e38}


def variables():
    return [
        keras.Variable(np.linspace(-1, 1, 6).reshape(3, 2), name="kernel"),
        keras.Variable(np.zeros(2), name="bias"),
    ]


def gradients(step):
    rng = np.random.default_rng(step)
    return [rng.normal(size=s).astype("float32") for s in [(3, 2), (2,)]]


def values(items):
    return {f"{i} {v.path}": v.numpy().copy() for i, v in enumerate(items)}


# Each optimizer with three of the clips; all other pairs are slow.
@pytest.mark.parametrize(("clip", "inner"), nets.latin(CLIPS, INNER))
def test_a_skipped_step_changes_nothing(inner, clip):
    """With each kind of value, on either side of the clipping."""
    weights = variables()
    inside = CLIPS[clip](INNER[inner]())
    optimizer = SkipNonFinite(inside)
    optimizer.build(weights)

    @tf.function
    def step(*gradients):
        optimizer.apply(list(gradients), weights)

    for i in range(4):
        step(*gradients(i))
    state = [*weights, *inside.variables]
    for skipped, (kind, bad) in enumerate(BAD.items()):
        before = values(state)
        broken = gradients(9)
        broken[0][1, 1] = bad
        step(*broken)
        after = values(state)
        assert list(after) == list(before)
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=f"{kind} {name}")
        assert optimizer.telemetry.skipped_steps == skipped + 1
        assert optimizer.nonfinite_variable == weights[0].path
    before = values(weights)
    for i in range(3):  # and the training goes on
        step(*gradients(i))
    assert all((values(weights)[name] != v).any() for name, v in before.items())


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("bad", ["nan", "+inf", "-inf"])
def test_clipping_may_stand_outside_as_well(clip, bad):
    if clip == "Accumulate":
        pytest.skip("a mean of micro-batches is broken as a whole")
    if clip == "ClipByValue" and bad != "nan":
        pytest.skip("an infinite entry is clipped to the bound")
    weights = variables()
    inner = INNER["Adam"]()
    optimizer = CLIPS[clip](SkipNonFinite(inner))
    optimizer.apply([tf.constant(g) for g in gradients(0)], weights)
    before = values([*weights, *inner.variables])
    broken = gradients(9)
    broken[0][1, 1] = BAD[bad]
    optimizer.apply([tf.constant(g) for g in broken], weights)
    for name, value in values([*weights, *inner.variables]).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_is_as_if_the_batch_had_not_been(jit_compile):
    x, y = nets.examples(96)
    broken = x.copy()
    broken[40, 3] = np.nan  # the third batch of 16
    rest = np.r_[0:32, 48:96]
    ours, plain = nets.small(), nets.small()
    plain.set_weights(ours.get_weights())
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.8)
    adam = keras.optimizers.Adam
    nets.compiled(ours, SkipNonFinite(adam(schedule)), jit_compile=jit_compile)
    nets.compiled(plain, adam(schedule), jit_compile=jit_compile)
    ours.fit(broken, y, batch_size=16, shuffle=False, verbose=0)
    plain.fit(x[rest], y[rest], batch_size=16, shuffle=False, verbose=0)
    assert nets.largest_difference(ours, plain) < 1e-7
    assert int(ours.optimizer.iterations) == int(plain.optimizer.iterations) == 5
    assert ours.optimizer.telemetry.skipped_steps == 1
    assert ours.optimizer.nonfinite_variable == "hidden1/kernel"


def test_the_variable_that_broke_is_named():
    weights = variables()
    optimizer = SkipNonFinite(SGD(0.1))
    assert optimizer.nonfinite_variable is None
    optimizer.apply([tf.zeros((3, 2)), tf.constant([0.0, np.nan])], weights)
    assert optimizer.nonfinite_variable == weights[1].path


class TestTooManyInARow:
    def broken_fit(self, **compile_arguments):
        optimizer = SkipNonFinite(keras.optimizers.Adam(0.1), max_consecutive=3)
        model = nets.compiled(nets.small(), optimizer, **compile_arguments)
        x, y = nets.examples(160)
        x[64:] = np.nan  # four good steps, then none
        before = None

        class Remember(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                nonlocal before
                if batch == 3:
                    before = values(model.weights)

        error = None
        try:
            model.fit(
                x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[Remember()]
            )
        except Exception as raised:
            error = raised
        for name, value in values(model.weights).items():
            np.testing.assert_array_equal(value, before[name])
        assert int(optimizer.iterations) == 4
        return error, optimizer

    def test_stops_the_compiled_step(self):
        error, optimizer = self.broken_fit()
        assert isinstance(error, tf.errors.InvalidArgumentError)
        assert "a gradient of `hidden1/kernel`" in str(error)
        assert "in more than 3 steps in a row" in str(error)
        assert optimizer.telemetry.skipped_steps == 4

    def test_stops_an_eager_step(self):
        error, optimizer = self.broken_fit(run_eagerly=True)
        assert isinstance(error, NonFiniteGradientError)
        assert "a gradient of `hidden1/kernel`" in str(error)
        assert optimizer.telemetry.skipped_steps == 4

    def test_under_xla_nothing_is_applied_and_fit_ends_with_the_error(self):
        error, optimizer = self.broken_fit(jit_compile=True)
        assert isinstance(error, NonFiniteGradientError)
        assert "a gradient of `hidden1/kernel`" in str(error)
        assert optimizer.telemetry.skipped_steps == 6

    def test_a_good_step_starts_the_count_anew(self):
        weights = variables()
        optimizer = SkipNonFinite(SGD(0.1), max_consecutive=1)
        bad = [tf.fill((3, 2), np.nan), tf.zeros(2)]
        for _ in range(3):
            optimizer.apply(bad, weights)
            optimizer.apply([tf.constant(g) for g in gradients(0)], weights)
        with pytest.raises(NonFiniteGradientError):
            for _ in range(2):
                optimizer.apply(bad, weights)

    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
    def test_a_limit_that_cannot_work_is_refused(self, value):
        with pytest.raises(InvalidArgumentError, match="whole number > 0"):
            SkipNonFinite(SGD(0.1), max_consecutive=value)
