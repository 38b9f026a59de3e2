"""A train step that was traced once is not traced again."""

import keras
import numpy as np
import pytest

import tfdeep
from tests import nets
from tfdeep._keras._train_step import TrainSteps
from tfdeep.callbacks import GradientMonitor, GradualUnfreeze


class Traced(keras.Model):
    """Counts how often its step is traced."""

    traces = 0

    def train_step(self, data):
        self.traces += 1
        return super().train_step(data)


@pytest.fixture
def model():
    model = nets.functional()
    model = Traced(model.inputs, model.outputs)
    model.compile("adam", nets.LOSS)
    fit(model)
    return model


def fit(model, *callbacks, epochs=1):
    """Fits two batches; returns how often the step was traced."""
    before = model.traces
    x, y = nets.examples(16)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks])
    return model.traces - before


def monitor(**arguments):
    return GradientMonitor(on_finding=None, **arguments)


def test_with_one_monitor(model):
    one = monitor()
    assert [fit(model, one) for _ in range(3)] == [1, 0, 0]


def test_with_a_new_monitor_each_time(model):
    assert [fit(model, monitor()) for _ in range(3)] == [1, 0, 0]


def test_a_monitor_of_other_arguments_has_its_own(model):
    fit(model, monitor())
    assert fit(model, monitor(activations=True)) == 1
    assert fit(model, monitor(include="hidden1")) == 1
    assert fit(model, monitor()) == 0


def test_two_monitors_at_once(model):
    assert fit(model, monitor(), monitor()) == 1
    one, two = monitor(), monitor()
    assert fit(model, one, two) == 0
    norms = [m.recording["norm"] for m in (one, two)]
    np.testing.assert_array_equal(*norms)


def test_plain_after_a_monitored_fit(model):
    fit(model, monitor())
    assert fit(model) == 0


def test_plain_after_a_monitored_fit_that_failed(model):
    def fail(batch, logs):
        raise RuntimeError

    one = monitor()
    with pytest.raises(RuntimeError):
        fit(model, one, keras.callbacks.LambdaCallback(on_train_batch_end=fail))
    assert fit(model) == 0
    assert one.recording.total_steps == 1
    assert fit(model, one) == 0


def test_unfreeze_of_what_was_trained_before(model):
    tfdeep.freeze(model, "hidden1")
    assert fit(model) == 1
    tfdeep.unfreeze(model)
    assert fit(model) == 0


@pytest.mark.parametrize("callbacks", [list, lambda: [monitor()]])
def test_one_trace_for_each_set_of_flags(model, callbacks):
    total = 0
    for number in range(6):
        change = tfdeep.unfreeze if number % 2 else tfdeep.freeze
        change(model, "hidden[12]")
        kernel = model.get_layer("hidden1").kernel
        before = kernel.numpy()
        total += fit(model, *callbacks())
        assert np.array_equal(kernel, before) == (number % 2 == 0)
    assert total == (1 if callbacks is list else 2)


def test_gradual_unfreezing_twice(model):
    def stages():
        tfdeep.freeze(model, "hidden[12]")
        return fit(model, GradualUnfreeze({1: "hidden2"}), monitor(), epochs=2)

    assert stages() == 2
    assert stages() == 0


def test_a_step_trained_by_turns_has_the_moments_of_one_that_is_not():
    """Adam trains the head alone, all, and again: against a model never frozen."""

    def build():
        keras.utils.set_random_seed(1)
        model = nets.functional()
        model.compile(keras.optimizers.Adam(0.01), nets.LOSS)
        return model

    toggled, plain = build(), build()
    x, y = nets.examples(8)
    for model in (toggled, plain):
        model.fit(x, y, verbose=0)
    tfdeep.freeze(toggled, "hidden1")
    tfdeep.unfreeze(toggled)
    for model in (toggled, plain):
        model.fit(x, y, verbose=0)
    for a, b in zip(toggled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        toggled.optimizer.variables, plain.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_compile_forgets_what_was_traced(model):
    one = monitor()
    fit(model, one)
    model.compile("sgd", nets.LOSS)
    assert fit(model) > 0
    assert fit(model, one) == 1


def test_force_makes_the_step_anew(model):
    one = monitor()
    fit(model, one)
    model.make_train_function(force=True)
    assert fit(model) == 1
    assert fit(model, one) == 1


def test_a_train_function_of_the_users_own_stays(model):
    fit(model, monitor())
    calls = []
    function = model.train_function

    def own(iterator):
        calls.append(1)
        return function(iterator)

    model.train_function = own
    fit(model)
    assert len(calls) == 2


def test_not_more_functions_are_kept_than_a_few(model):
    for number in range(12):
        fit(model, monitor(flush_every=number + 1))
    steps = TrainSteps.of(model)
    assert len(steps._functions) <= 8
    assert len(steps._idle) <= 8


@pytest.mark.parametrize("strategy", [nets.two_replicas])
def test_under_a_strategy(strategy):
    with strategy().scope():
        base = nets.functional()
        model = Traced(base.inputs, base.outputs)
        model.compile("adam", nets.LOSS)
    first = fit(model, monitor())
    assert first >= 1
    assert fit(model, monitor()) == 0
    before = model.traces
    fit(model)
    assert model.traces - before == first
    assert fit(model, monitor()) == 0


def test_run_eagerly(model):
    model.compile("adam", nets.LOSS, run_eagerly=True)
    one = monitor()
    fit(model, one)
    fit(model, one)
    assert one.recording.total_steps == 4
    assert fit(model) == 2
    assert one.recording.total_steps == 4
