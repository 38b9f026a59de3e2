"""Several replicas: the weights of one device, and what cannot be right is refused."""

import functools
import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeep
from benchmarks import replica_parity
from tests import nets
from tfdeep.errors import InvalidArgumentError
from tfdeep.optimizers import Accumulate, ClipByGlobalNorm, SafeLossScaleOptimizer

SGD = keras.optimizers.SGD


# Parity with one device.


@functools.cache
def alone(name):
    makers = replica_parity.cases() | replica_parity.keras_cases()
    return replica_parity.train(makers[name], tf.distribute.get_strategy())


def each_wrapper_once():
    inner = list(replica_parity.INNER)
    for i, wrapper in enumerate(replica_parity.WRAPPERS):
        yield f"{wrapper}, {inner[i % len(inner)]}"


EVERY = list(replica_parity.cases())
ONCE = [
    *each_wrapper_once(),
    "ClipByGlobalNorm, SGD, use_ema",
    "Accumulate, SGD, loss_scale_factor",
]
# The same code runs on the workers, in more processes.
FEW = ["Accumulate(ClipByGlobalNorm), AdamW"]


@pytest.mark.parametrize(
    ("way", "names"),
    [
        pytest.param("2 replicas", ONCE, id="2 replicas"),
        pytest.param("2 workers", FEW, id="2 workers"),
        *(
            pytest.param(way, EVERY, id=f"{way}, all", marks=pytest.mark.slow)
            for way in ("2 replicas", "4 replicas", "2 workers")
        ),
    ],
)
def test_the_weights_are_those_of_one_device(way, names):
    names = [*names, "Keras global_clipnorm, SGD"]
    if way == "2 workers":
        first, second = replica_parity.train_on_workers(names)
        for key, weights in first.items():  # the workers stay together
            assert replica_parity.difference(weights, second[key]) == 0
    else:
        first = replica_parity.train_on_replicas(names, int(way[0]))
    for (name, epochs), weights in first.items():
        difference = replica_parity.difference(weights, alone(name)[epochs])
        print(way, name, epochs, difference)
        if name.startswith("Keras"):
            assert difference > 1e-3  # clips each replica by itself
        else:
            assert difference < 1e-6, (name, epochs)
    assert len(first) == 2 * len(names)


# Without the pattern that leaves out the head.
WRAPPERS = replica_parity.WRAPPERS | {"AdaptiveClip": tfdeep.optimizers.AdaptiveClip}


def all_reduces(optimizer_of):
    """The number of sums over replicas in the graph of one step, by replica."""
    calls = []
    own = tf.distribute.ReplicaContext.all_reduce

    def counted(self, *args, **kwargs):
        calls.append(self.replica_id_in_sync_group)
        return own(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.distribute.ReplicaContext, "all_reduce", counted)
        run_step(lambda here: tf.constant([1.0, 3.0]), lambda: [optimizer_of(SGD(0.1))])
    return len(calls) / 2


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_step_sums_over_the_replicas_once(wrapper):
    assert all_reduces(WRAPPERS[wrapper]) == all_reduces(lambda inner: inner) == 1


def run_step(replica_gradient, make_optimizers):
    """Applies, with one optimizer after the other, what a function of the replica is.

    Returns the weight after each of them.
    """
    strategy = nets.two_replicas()
    with strategy.scope():
        weight = keras.Variable([1.0, 2.0])
        optimizers = make_optimizers()
        for optimizer in optimizers:
            optimizer.build([weight])

    def step(optimizer):
        def on_each():
            here = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer.apply([replica_gradient(here)], [weight])

        strategy.run(on_each)

    values = []
    for optimizer in optimizers:
        tf.function(step)(optimizer)
        values.append(weight.numpy())
    return values, optimizers


def test_an_optimizer_that_was_wrapped_sums_again_when_it_is_not():
    def make():
        inner = SGD(1.0)
        return ClipByGlobalNorm(inner, 1e6), inner

    values, _ = run_step(lambda here: [1.0, 3.0] * tf.cast(here + 1, tf.float32), make)
    np.testing.assert_array_equal(values, [[-2, -7], [-5, -16]])  # 1 + 2 times


# Loss scaling.


def overflow_on(replica, make_optimizer):
    """Trains one step in which the gradient of one of two replicas is infinite."""

    def gradient(here):
        return tf.stack([tf.where(here == replica, np.inf, 1.0), 1.0])

    [weight], [optimizer] = run_step(gradient, lambda: [make_optimizer()])
    return weight, optimizer


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_overflow_on_one_replica_skips_the_step_on_all(wrapper, replica):
    """Keras looks at the first replica only, whatever it has inside."""
    wrap = WRAPPERS[wrapper]
    weight, optimizer = overflow_on(
        replica, lambda: keras.optimizers.LossScaleOptimizer(wrap(SGD(0.1)))
    )
    np.testing.assert_array_equal(weight, [1, 2])
    assert int(optimizer.iterations.numpy()) == 0
    inner = optimizer.inner_optimizer
    assert inner.telemetry.skipped_steps == (1 if replica == 1 else 0)


def test_keras_own_loss_scaling_does_not():
    weight, _ = overflow_on(1, lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1)))
    assert not np.isfinite(weight).all()


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("wrapped", [False, True])
def test_our_loss_scaling_is_lowered_for_any_replica(replica, wrapped):
    def make():
        inner = ClipByGlobalNorm(SGD(0.1), 1.0) if wrapped else SGD(0.1)
        return SafeLossScaleOptimizer(inner, initial_scale=1024.0)

    weight, optimizer = overflow_on(replica, make)
    np.testing.assert_array_equal(weight, [1, 2])
    assert float(optimizer.dynamic_scale.numpy()) == 512
    weight, optimizer = overflow_on(7, make)  # none
    assert np.isfinite(weight).all() and (weight != [1, 2]).all()
    assert float(optimizer.dynamic_scale.numpy()) == 1024


def test_our_loss_scaling_is_not_wrapped_again_and_is_saved(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = nets.functional()
        optimizer = SafeLossScaleOptimizer(ClipByGlobalNorm("adam", 1.0))
        model.compile(optimizer, nets.LOSS)
        assert model.optimizer is optimizer
        model.fit(nets.dataset(), verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert type(loaded.optimizer) is SafeLossScaleOptimizer
    for m in (model, loaded):
        m.fit(nets.dataset(), verbose=0)
    assert nets.largest_difference(model, loaded) == 0


# What cannot be right.


def test_an_optimizer_made_outside_the_scope_is_refused():
    inner = SGD(0.1)  # Keras counts its steps twice
    strategy = nets.two_replicas()
    with strategy.scope():
        model = nets.functional()
        model.compile(ClipByGlobalNorm(inner, 1.0), nets.LOSS)
    with pytest.raises(InvalidArgumentError, match="`SGD` was not made in the scope"):
        model.fit(nets.dataset(), verbose=0)


def test_a_wrapper_made_outside_the_scope_is_refused():
    optimizer = ClipByGlobalNorm(SGD(0.1), 1.0)
    with nets.two_replicas().scope():
        model = nets.functional()
        model.compile(optimizer, nets.LOSS)
    with pytest.raises(InvalidArgumentError, match="was not made in the scope"):
        model.fit(nets.dataset(), verbose=0)


def test_xla_of_several_replicas_is_refused():
    with nets.two_replicas().scope():
        model = nets.functional()
        model.compile(ClipByGlobalNorm(SGD(0.1), 1.0), nets.LOSS, jit_compile=True)
    before = model.get_weights()
    with pytest.raises(InvalidArgumentError, match="XLA cannot compile a step of sev"):
        model.fit(nets.dataset(), verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_steps_an_execution_are_refused_where_the_all_reduce_fails():
    with nets.two_replicas().scope():
        model = nets.functional()
        model.compile(ClipByGlobalNorm(SGD(0.1), 1.0), nets.LOSS, steps_per_execution=2)
    with pytest.raises(InvalidArgumentError, match="ReductionToOneDevice"):
        model.fit(nets.dataset(), verbose=0)


@pytest.mark.parametrize(
    "all_reduce", ["ReductionToOneDevice", "HierarchicalCopyAllReduce"]
)
def test_several_steps_an_execution_work_with_another_all_reduce(all_reduce):
    reference, weights = None, None
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(
            ["CPU:0", "CPU:1"], getattr(tf.distribute, all_reduce)()
        ),
    ):
        with strategy.scope():
            optimizer = Accumulate(ClipByGlobalNorm(SGD(0.1), 0.1), steps=2)
            model = nets.compiled(nets.small(), optimizer, steps_per_execution=3)
        if weights is not None:
            model.set_weights(weights)
        weights = model.get_weights()
        model.fit(nets.dataset(), epochs=2, verbose=0)
        if reference is not None:
            assert nets.largest_difference(model, reference) < 1e-6
        reference = model


def test_weights_overwritten_by_their_average_are_refused_on_replicas():
    inner = dict(use_ema=True, ema_overwrite_frequency=2)
    with nets.two_replicas().scope():
        model = nets.functional()
        model.compile(ClipByGlobalNorm(SGD(0.1, **inner), 1.0), nets.LOSS)
    with pytest.raises(InvalidArgumentError, match="ema_overwrite_frequency"):
        model.fit(nets.dataset(), verbose=0)


def test_keras_distribution_is_refused():
    try:
        parallel = keras.distribution.DataParallel(
            devices=keras.distribution.list_devices()
        )
    except AttributeError:
        pytest.skip("this Keras refuses it by itself")
    keras.distribution.set_distribution(parallel)
    try:
        with pytest.raises(InvalidArgumentError, match="set_distribution"):
            ClipByGlobalNorm(SGD(0.1), 1.0)
    finally:
        keras.distribution.set_distribution(None)


def run_python(code, *environments, timeout=120):
    """What processes print that run the code at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in environments or [{}]
    ]
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_a_parameter_server_is_refused():
    [output] = run_python("""
        import json, os, socket
        import tensorflow as tf, keras, tfdeep
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("localhost", 0))
                ports.append(free.getsockname()[1])
        cluster = tf.train.ClusterSpec(
            {"worker": [f"localhost:{ports[0]}"], "ps": [f"localhost:{ports[1]}"]}
        )
        servers = [
            tf.distribute.Server(cluster, job_name=job, task_index=0, protocol="grpc")
            for job in ("worker", "ps")
        ]
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            cluster, rpc_layer="grpc"
        )
        strategy = tf.distribute.ParameterServerStrategy(resolver)
        with strategy.scope():
            try:
                tfdeep.optimizers.ClipByNorm("sgd", 1.0)
            except tfdeep.errors.InvalidArgumentError as error:
                print("REFUSED", error)
        os._exit(0)
    """)
    assert (
        "REFUSED `ClipByNorm` cannot work under a `ParameterServerStrategy`" in output
    )


@pytest.mark.slow
def test_keras_still_cannot_fit_on_the_workers_of_tensorflows_own_strategy():
    """If this fails, `tfdeep.distribute` is needed no longer."""
    import socket

    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            ports.append(free.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    outputs = run_python(
        """
        import os
        import keras, numpy as np, tensorflow as tf
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            model.compile("sgd", "mse")
        try:
            model.fit(np.ones((8, 4)), np.ones((8, 2)), batch_size=4, verbose=0)
            print("IT WORKS")
        except ValueError as error:
            print("FAILED", error)
        os._exit(0)
        """,
        *(
            {
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": "worker", "index": i}}
                )
            }
            for i in range(2)
        ),
    )
    for output in outputs:
        assert "IT WORKS" not in output
        assert "FAILED Attempt to convert a value (PerReplica" in output


class TestReduce:
    """The one method that `tfdeep.distribute` changes, on a worker of its own."""

    def test_nests_and_scalars(self):
        strategy = tfdeep.distribute.MultiWorkerMirroredStrategy()
        value = {"a": tf.constant(3.0), "b": (tf.constant([[1.0, 3.0], [5.0, 7.0]]),)}
        reduced = strategy.reduce("MEAN", value, axis=0)
        assert float(reduced["a"]) == 3
        np.testing.assert_array_equal(reduced["b"][0], [3, 5])
        np.testing.assert_array_equal(
            strategy.reduce("SUM", tf.constant([1.0, 2.0]), axis=None), [1, 2]
        )
