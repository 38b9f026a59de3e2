"""A branch that is rarely run: left whole on one CPU, taken apart anywhere else."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeep
from tests import nets
from tfdeep.callbacks._sometimes import are_on_one_cpu, nothing, sometimes


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
def test_both_forms_do_the_same_in_the_same_order(is_whole, jit_compile):
    weight, before = tf.Variable(1.0), tf.Variable(0.0)

    @tf.function(jit_compile=jit_compile)
    def step(runs, x):
        def then():
            before.assign(weight)  # must not see what comes after
            return 10.0 * x

        y = sometimes(runs, then, x, is_whole)
        weight.assign_add(1.0)
        return y + weight

    x = tf.constant([1.0, 2.0])
    np.testing.assert_array_equal(step(tf.constant(False), x), [3, 4])
    assert before.numpy() == 0
    np.testing.assert_array_equal(step(tf.constant(True), x), [13, 23])
    assert before.numpy() == 2
    assert weight.numpy() == 3


def test_it_runs_eagerly():
    assert sometimes(tf.constant(True), lambda: tf.constant(1), nothing(), True) == 1


@pytest.mark.parametrize("is_whole", [False, True])
def test_tensorflow_leaves_a_whole_branch_as_it_is(is_whole):
    """What is taken apart costs an operation for each tensor, at every step."""

    @tf.function
    def step(runs, x):
        return sometimes(runs, lambda: x + 1, x, is_whole)

    concrete = step.get_concrete_function(tf.constant(True), tf.constant(1.0))
    [branch] = [
        op for op in concrete.graph.get_operations() if op.type in ("If", "StatelessIf")
    ]
    is_taken_apart = branch.node_def.attr["_lower_using_switch_merge"].b
    assert is_taken_apart != is_whole


def test_tensorflow_has_nothing_to_warn_of(caplog):
    x, y = tf.constant(1.0), tf.constant(2.0)

    @tf.function
    def step(runs):
        return sometimes(runs, lambda: x * y, x, True)

    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        step(tf.constant(True))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_only_one_cpu_keeps_a_branch_whole():
    with tf.device("CPU:0"):
        first = tf.Variable(0.0)
    with tf.device("CPU:1"):
        second = tf.Variable(0.0)
    assert are_on_one_cpu([first, first])
    assert are_on_one_cpu([second])
    assert not are_on_one_cpu([first, second])
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        assert not are_on_one_cpu([first])


def on_two_devices(second):
    inputs = keras.Input((nets.INPUTS,))
    x = keras.layers.Dense(6, activation="relu", name="hidden1")(inputs)
    with tf.device(second):
        x = keras.layers.Dense(6, activation="relu", name="hidden2")(x)
    return keras.Model(inputs, keras.layers.Dense(nets.CLASSES, name="outputs")(x))


def test_the_monitor_watches_a_net_on_two_devices():
    x, y = nets.examples(64)
    recorded = []
    for second in ("CPU:0", "CPU:1"):
        keras.utils.set_random_seed(0)
        model = on_two_devices(second)
        assert model.get_layer("hidden2").kernel.value.device.endswith(second)
        model.compile("adam", nets.LOSS)
        monitor = tfdeep.callbacks.GradientMonitor(activations=True, rules=None)
        model.fit(x, y, 16, shuffle=False, verbose=0, callbacks=[monitor])
        recorded.append(monitor.history)
    assert list(recorded[0]) == list(recorded[1])
    for path, quantities in recorded[0].items():
        for name, values in quantities.items():
            np.testing.assert_allclose(recorded[1][path][name], values, rtol=1e-5)
