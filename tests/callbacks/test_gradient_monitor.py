import contextlib
import functools
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.callbacks._recorder import StepRecorder
from tfdeep.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    ModelError,
    SelectionError,
)
from tfdeep.optimizers import ClipByGlobalNorm, ClipByValue, SkipNonFinite

# What is recorded is one thing, what the rules say of it another; see test_rules.py.
GradientMonitor = functools.partial(tfdeep.callbacks.GradientMonitor, rules=None)

STEPS, BATCH = 13, 16
DUE = [0, 10]  # every tenth step, updates are measured
RATE, LIMIT = 0.1, 0.2


def build():
    keras.utils.set_random_seed(3)
    return nets.functional()


def sgd(**arguments):
    return keras.optimizers.SGD(RATE, momentum=0.9, **arguments)


QUANTITIES = ("norm", "clipped_norm", "update_ratio")
DETAILS = (
    "largest_entry",
    "mean",
    "zero_fraction",
    "nonfinite_count",
    "update_norm",
    "weight_norm",
)


@functools.cache
def reference(limit=None):
    """What happens in an eager loop, by step and variable, in float64.

    Returns the quantities, the details, and the loss.
    """
    model, optimizer, rows, losses = build(), sgd(), [], []
    x, y = nets.examples(STEPS * BATCH)
    for i in range(0, len(x), BATCH):
        with tf.GradientTape() as tape:
            loss = nets.LOSS(y[i : i + BATCH], model(x[i : i + BATCH], training=True))
        losses.append(float(loss))
        gradients = tape.gradient(loss, model.trainable_variables)
        clipped = gradients
        if limit is not None:
            clipped, _ = tf.clip_by_global_norm(gradients, limit)
        before = [v.numpy().astype("float64") for v in model.trainable_variables]
        optimizer.apply(clipped, model.trainable_variables)
        with np.errstate(divide="ignore"):
            rows.append(
                [
                    (
                        np.linalg.norm(np.float64(g)),
                        np.linalg.norm(np.float64(c)),
                        np.divide(np.linalg.norm(v.numpy() - w), np.linalg.norm(w)),
                        np.abs(g).max(),
                        np.mean(g),
                        np.mean(np.asarray(g) == 0),
                        0,
                        np.linalg.norm(v.numpy() - w),
                        np.linalg.norm(w),
                    )
                    for g, c, v, w in zip(
                        gradients,
                        clipped,
                        model.trainable_variables,
                        before,
                        strict=True,
                    )
                ]
            )
    rows = np.array(rows)
    return rows[..., :3], rows[..., 3:], np.array(losses)


def recorded(monitor, names=QUANTITIES):
    """The monitor's history in the order of `reference`."""
    return np.stack(
        [np.stack([h[name] for name in names], -1) for h in monitor.history.values()], 1
    )


def fit(model, monitor, epochs=1, traced_once=True, **arguments):
    data = nets.dataset(STEPS * BATCH, BATCH)
    if traced_once and model.built and model.optimizer is not None:
        nets.traced_once(model)
    callbacks = monitor if isinstance(monitor, list) else [monitor]
    return model.fit(
        data, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **arguments
    )


def loss_scaled(optimizer):
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=128.0)


WAYS = {
    "plain": (sgd, None, {}),
    "plain, XLA": (sgd, None, {"jit_compile": True}),
    "plain, 4 steps an execution": (sgd, None, {"steps_per_execution": 4}),
    "plain, XLA, 4 steps": (sgd, None, {"jit_compile": True, "steps_per_execution": 4}),
    "plain, eager": (sgd, None, {"run_eagerly": True}),
    "plain, loss scale": (lambda: loss_scaled(sgd()), None, {}),
    "plain, fixed scale": (lambda: sgd(loss_scale_factor=64.0), None, {}),
    "plain, replicas": (sgd, None, {"strategy": nets.two_replicas}),
    "Keras clips": (lambda: sgd(global_clipnorm=LIMIT), LIMIT, {}),
    "wrapped": (lambda: ClipByGlobalNorm(sgd(), LIMIT), LIMIT, {}),
    "wrapped, XLA": (
        lambda: ClipByGlobalNorm(sgd(), LIMIT),
        LIMIT,
        {"jit_compile": True},
    ),
    "wrapped twice": (
        lambda: ClipByValue(ClipByGlobalNorm(sgd(), LIMIT), 1e6),
        LIMIT,
        {},
    ),
    "wrapped, loss scale": (
        lambda: loss_scaled(ClipByGlobalNorm(sgd(), LIMIT)),
        LIMIT,
        {},
    ),
    "wrapped, fixed scale": (
        lambda: ClipByGlobalNorm(sgd(loss_scale_factor=64.0), LIMIT),
        LIMIT,
        {},
    ),
    "wrapped, replicas": (
        lambda: ClipByGlobalNorm(sgd(), LIMIT),
        LIMIT,
        {"strategy": nets.two_replicas},
    ),
    "wrapped, loss scale, replicas": (
        lambda: loss_scaled(ClipByGlobalNorm(sgd(), LIMIT)),
        LIMIT,
        {"strategy": nets.two_replicas},
    ),
}


# What these do is done by others as well.
SLOW = {"plain, XLA", "plain, loss scale", "plain, fixed scale", "plain, replicas"}


@pytest.mark.parametrize("way", nets.slow_unless(lambda way: way not in SLOW, WAYS))
def test_it_records_the_gradients_that_train_the_model(way):
    optimizer, limit, arguments = WAYS[way]
    arguments = dict(arguments)
    strategy = arguments.pop("strategy", None)
    with strategy().scope() if strategy else contextlib.nullcontext():
        model = build()
        model.compile(optimizer(), nets.LOSS, **arguments)
    monitor = GradientMonitor(flush_every=5)
    fit(model, monitor, traced_once=way not in ("plain", "wrapped", "plain, XLA"))
    found, (expected, details, losses) = recorded(monitor), reference(limit)
    assert found.shape == expected.shape == (STEPS, 8, 3)
    np.testing.assert_allclose(found[..., :2], expected[..., :2], rtol=2e-4, atol=1e-6)
    # A bias starts at zero: its first ratio is infinite.
    np.testing.assert_allclose(found[DUE, :, 2], expected[DUE, :, 2], rtol=2e-3)
    assert np.isnan(np.delete(found[..., 2], DUE, axis=0)).all()
    np.testing.assert_allclose(monitor.recording["loss"][:, 0], losses, rtol=1e-4)
    found = recorded(monitor, DETAILS)
    measured = [*range(10), 10]
    np.testing.assert_allclose(
        found[measured, :, :4], details[measured, :, :4], rtol=2e-4, atol=1e-7
    )
    assert np.isnan(np.delete(found[..., :4], measured, axis=0)).all()
    np.testing.assert_allclose(found[DUE, :, 4:], details[DUE, :, 4:], rtol=2e-3)


@pytest.mark.parametrize(
    "way", ["plain", "wrapped", "wrapped, loss scale", "plain, XLA"]
)
def test_training_is_the_same_with_and_without_it(way):
    optimizer, _, arguments = WAYS[way]
    watched, unwatched = build(), build()
    for model in (watched, unwatched):
        model.compile(optimizer(), nets.LOSS, **arguments)
    fit(watched, GradientMonitor(), epochs=3)
    fit(unwatched, [], epochs=3)
    # TensorFlow folds the factor of a wrapper into the next product where nobody else
    # looks at the clipped gradient: one rounding less.
    limit = 1e-6 if "wrapped" in way else 0
    assert nets.largest_difference(watched, unwatched) <= limit


class TestLeavesTheModelAsItFoundIt:
    def compiled(self):
        model = build()
        model.compile(ClipByGlobalNorm(sgd(), LIMIT), nets.LOSS)
        return model, model.optimizer

    def check(self, model, optimizer):
        assert model.optimizer is optimizer
        for o in (optimizer, optimizer.inner_optimizer):
            assert not {"apply", "transform"} & set(vars(o))

    def test_after_a_fit(self):
        model, optimizer = self.compiled()
        fit(model, [])
        train_function = model.train_function
        fit(model, GradientMonitor())
        self.check(model, optimizer)
        assert model.train_function is train_function

    def test_while_another_callback_saves_it(self, tmp_path):
        model, optimizer = self.compiled()
        path = tmp_path / "model.keras"
        fit(model, [GradientMonitor(), keras.callbacks.ModelCheckpoint(path)])
        loaded = keras.saving.load_model(path)
        assert loaded.optimizer.get_config() == optimizer.get_config()
        assert len(loaded.optimizer.variables) == len(optimizer.variables)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_a_fit_that_failed(self, error):
        def fail(batch, logs):
            if batch == 4:
                raise error

        model, optimizer = self.compiled()
        monitor = GradientMonitor()
        failing = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
        with pytest.raises(error):
            fit(model, [monitor, failing])
        self.check(model, optimizer)
        assert len(monitor.history["hidden1/kernel"]["norm"]) == 5
        fit(model, [])  # does not record
        assert len(monitor.history["hidden1/kernel"]["norm"]) == 5
        fit(model, monitor)
        assert len(monitor.history["hidden1/kernel"]["norm"]) == 5 + STEPS

    def test_after_a_step_that_failed(self):
        model, optimizer = self.compiled()
        with pytest.raises(ValueError):
            model.fit(
                np.ones((4, 5)), np.zeros(4), verbose=0, callbacks=[GradientMonitor()]
            )
        self.check(model, optimizer)
        fit(model, [])


@pytest.mark.parametrize("strategy", [None, nets.two_replicas])
def test_it_stands_in_the_step_while_that_is_traced_and_not_at_each_call(
    strategy, monkeypatch
):
    entered = []
    watching = StepRecorder.watching
    monkeypatch.setattr(
        StepRecorder, "watching", lambda self: entered.append(1) or watching(self)
    )
    with strategy().scope() if strategy else contextlib.nullcontext():
        model = build()
        model.compile(sgd(), nets.LOSS)
    fit(model, GradientMonitor(), epochs=2, traced_once=False)
    # TensorFlow traces once more what has made variables: those of the optimizer.
    assert 1 <= len(entered) <= 2 < 2 * STEPS


@pytest.mark.parametrize("reset", [False, True])
def test_a_monitor_goes_on_with_its_history_unless_told_otherwise(reset):
    model = build()
    model.compile(sgd(), nets.LOSS)
    monitor = GradientMonitor(reset=reset)
    fit(model, monitor, epochs=2)
    first = recorded(monitor)
    fit(model, monitor)
    assert len(recorded(monitor)) == (STEPS if reset else 3 * STEPS)
    if not reset:
        np.testing.assert_array_equal(recorded(monitor)[: 2 * STEPS], first)
        assert list(monitor.recording.steps) == list(range(3 * STEPS))


def test_another_model_begins_a_new_history():
    monitor = GradientMonitor()
    for _ in range(2):
        model = build()
        model.compile(sgd(), nets.LOSS)
        fit(model, monitor)
        assert len(recorded(monitor)) == STEPS


def test_a_new_monitor_on_a_step_that_was_traced_sees_what_a_first_one_would():
    def history(fits):
        keras.utils.set_random_seed(0)
        model = build()
        model.compile(keras.optimizers.SGD(0.05), nets.LOSS)
        for _ in range(fits - 1):
            fit(model, GradientMonitor())
        monitor = GradientMonitor(on_finding=None)
        weights = model.get_weights()
        fit(model, monitor)
        return weights, monitor

    weights, second = history(2)
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(keras.optimizers.SGD(0.05), nets.LOSS)
    model.set_weights(weights)
    first = GradientMonitor(on_finding=None)
    fit(model, first)
    np.testing.assert_array_equal(recorded(second), recorded(first))
    for name in ("update_norm", "zero_fraction", "silent_fraction"):
        np.testing.assert_array_equal(
            second.recording[name], first.recording[name], err_msg=name
        )


def test_two_monitors_see_the_same():
    model = build()
    model.compile(ClipByGlobalNorm(sgd(), LIMIT), nets.LOSS)
    first, second = GradientMonitor(), GradientMonitor(flush_every=3)
    fit(model, [first, second])
    np.testing.assert_array_equal(recorded(first), recorded(second))
    fit(model, [])
    assert len(recorded(first)) == len(recorded(second)) == STEPS


def test_it_may_be_read_while_training_goes_on():
    lengths = []
    monitor = GradientMonitor()
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: lengths.append(
            len(monitor.history["outputs/bias"]["update_ratio"])
        )
    )
    model = build()
    model.compile(sgd(), nets.LOSS)
    fit(model, [monitor, look])
    assert lengths == list(range(1, STEPS + 1))
    np.testing.assert_allclose(
        recorded(monitor)[..., 0], reference()[0][..., 0], rtol=1e-4
    )


def test_a_model_that_builds_itself_in_its_first_step():
    model = keras.Sequential(
        [layers.Dense(6, name="hidden1"), layers.Dense(nets.CLASSES)]
    )
    model.compile(sgd(), nets.LOSS)
    monitor = GradientMonitor(include="hidden1")
    fit(model, monitor)
    assert list(monitor.history) == ["hidden1/kernel", "hidden1/bias"]
    assert len(monitor.history["hidden1/bias"]["norm"]) == STEPS


def test_a_layer_frozen_during_the_fit_has_no_more_gradient():
    model = build()
    model.compile(sgd(), nets.LOSS)
    freeze = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: (
            epoch == 1 and tfdeep.freeze(model, "hidden1")
        )
    )
    monitor = GradientMonitor()
    fit(model, [monitor, freeze], epochs=2)
    norm = monitor.history["hidden1/kernel"]["norm"]
    assert (norm[:STEPS] > 0).all()
    assert np.isnan(norm[STEPS:]).all()
    assert (monitor.history["hidden2/kernel"]["norm"] > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_reads_as_infinite(bad):
    model = build()
    # Whether NaN weights have NaN gradients is up to the processor's ReLU.
    model.compile(SkipNonFinite(sgd()), nets.LOSS)
    x, y = nets.examples(4 * BATCH)
    x[3 * BATCH] = bad  # in the last step: what comes after it is not defined
    monitor = GradientMonitor()
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[monitor])
    norm = monitor.history["hidden1/kernel"]["norm"]
    assert list(np.isinf(norm)) == [False, False, False, True]
    assert not np.isnan(norm).any()
    summary = monitor.report().variables[0]
    assert (summary.first_nonfinite_step, summary.nonfinite_steps) == (3, 1)
    assert "first in hidden1/kernel at step 3" in str(monitor.report())


def test_steps_skipped_by_the_loss_scale_are_recorded_as_not_applied():
    model = build()
    optimizer = keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=3.3e38)
    model.compile(optimizer, nets.LOSS)
    monitor = GradientMonitor()
    x, y = nets.examples(STEPS * BATCH)
    model.fit(1000 * x, y, batch_size=BATCH, verbose=0, callbacks=[monitor])
    norm = monitor.history["outputs/kernel"]["norm"]
    applied = int(optimizer.inner_optimizer.iterations)
    assert 0 < applied < STEPS == len(norm)
    assert (norm > 0).sum() == applied
    assert np.isnan(norm).sum() == STEPS - applied


def test_a_vanishing_gradient_is_not_rounded_to_zero():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, use_bias=False, name="hidden1"),
            layers.Rescaling(1e-28),
        ]
    )
    model.compile(ClipByGlobalNorm(sgd(), LIMIT), "mae")
    monitor = GradientMonitor()
    model.fit(np.ones((8, 4)), np.zeros((8, 3)), verbose=0, callbacks=[monitor])
    (recorded,) = monitor.history.values()
    assert 1e-30 < recorded["norm"][0] < 1e-27
    assert recorded["clipped_norm"][0] == recorded["norm"][0]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("hidden[12]/kernel", None, ["hidden1/kernel", "hidden2/kernel"]),
        (None, ["hidden.*", ".*/bias"], ["outputs/kernel"]),
    ],
)
def test_patterns_choose_what_is_recorded(include, exclude, expected):
    model = build()
    model.compile(sgd(), nets.LOSS)
    monitor = GradientMonitor(include=include, exclude=exclude)
    fit(model, monitor)
    assert list(monitor.history) == expected
    everything = GradientMonitor()
    model = build()
    model.compile(sgd(), nets.LOSS)
    fit(model, everything)
    for path in expected:
        for name, values in monitor.history[path].items():
            np.testing.assert_allclose(
                values, everything.history[path][name], rtol=1e-6
            )


def test_large_weights_are_measured_like_small_ones():
    """Above 131,072 entries a weight is compared by itself, not in a shared copy."""
    inputs = keras.Input((4,))
    x = layers.Dense(40_000, name="wide")(inputs)
    model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))
    model.compile(sgd(), nets.LOSS)
    before = model.get_weights()
    monitor = GradientMonitor()
    x, y = nets.examples(BATCH)
    model.fit(x[:, :4], y, batch_size=BATCH, verbose=0, callbacks=[monitor])
    for path, a, b in zip(monitor.history, before, model.get_weights(), strict=True):
        with np.errstate(divide="ignore"):
            expected = np.divide(np.linalg.norm(b - a), np.linalg.norm(a))
        ratio = monitor.history[path]["update_ratio"]
        np.testing.assert_allclose(ratio, [expected], rtol=1e-4)


def test_a_pattern_that_matches_nothing_is_an_error_before_the_first_step():
    model = build()
    model.compile(sgd(), nets.LOSS)
    before = model.get_weights()
    with pytest.raises(SelectionError, match="selects no trainable variable"):
        fit(model, GradientMonitor(include="hidden9"))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(model, [])


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "10", None])
def test_a_flush_interval_that_cannot_work_is_refused(value):
    with pytest.raises(InvalidArgumentError, match="flush_every="):
        GradientMonitor(flush_every=value)


def test_a_model_without_optimizer_is_refused():
    model = build()
    model.compile(optimizer=None, loss=nets.LOSS)
    with pytest.raises(ModelError, match="no optimizer to watch"):
        fit(model, GradientMonitor())


def test_without_tensorboard_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install tfdeep\[tensorboard\]"
    ):
        GradientMonitor(log_dir=tmp_path)
    GradientMonitor()


def test_the_report_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = build()
    model.compile(ClipByGlobalNorm(sgd(), LIMIT), nets.LOSS)
    monitor = GradientMonitor()
    fit(model, monitor)
    text = str(monitor.report())
    assert max(map(len, text.splitlines())) <= 80
    assert f"Gradients over {STEPS} steps" in text
    assert "hidden1/kernel" in text
    assert monitor.report().to_dict()["steps"] == STEPS


def test_the_optimizer_wrappers_tell_what_they_did(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = nets.functional()
    model.compile(SkipNonFinite(ClipByGlobalNorm(sgd(), 1e-3)), nets.LOSS)
    monitor = GradientMonitor(tmp_path)
    x, y = nets.examples(64)
    x[20] = np.nan  # the second of four batches
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[monitor])
    skip, clip = monitor.telemetry
    assert (skip.steps, skip.skipped_steps) == (4, 1)
    assert (clip.steps, clip.clipped_steps) == (3, 3)
    norm = monitor.history["hidden1/kernel"]["norm"]
    clipped = monitor.history["hidden1/kernel"]["clipped_norm"]
    assert np.isinf(norm[1]) and np.isnan(clipped[1])  # seen, and not applied
    assert (clipped[[0, 2, 3]] < norm[[0, 2, 3]]).all()
    report = str(monitor.report())
    assert f"{skip.wrapper}: 4 steps, 1 skipped." in report
    assert f"{clip.wrapper}: 3 steps, 100% clipped, threshold 0.001." in report
    events = EventAccumulator(str(tmp_path)).Reload()
    tag = f"optimizer/{skip.wrapper}/skipped_steps"
    assert tag in events.Tags()["scalars"]


def test_what_is_unfrozen_between_fits_joins_the_history():
    model = build()
    model.compile(sgd(), nets.LOSS)
    tfdeep.freeze(model, "hidden1")
    monitor = GradientMonitor(on_finding=None)
    fit(model, monitor)
    head = monitor.history["outputs/kernel"]["norm"]
    assert "hidden1/kernel" not in monitor.history
    tfdeep.unfreeze(model)
    fit(model, monitor)
    assert monitor.recording.variables[0] == "hidden1/kernel"
    joined = monitor.history["hidden1/kernel"]["norm"]
    assert np.isnan(joined[:STEPS]).all()
    assert (joined[STEPS:] > 0).all()
    np.testing.assert_array_equal(
        monitor.history["outputs/kernel"]["norm"][:STEPS], head
    )
    tfdeep.freeze(model, "hidden1")
    fit(model, monitor)
    joined = monitor.history["hidden1/kernel"]["norm"]
    assert np.isnan(joined[2 * STEPS :]).all()
    assert len(joined) == 3 * STEPS
    str(monitor.report())
