"""After `gc.freeze()`, as servers and data loaders call it, all trains the same bits.

What is looked up among the objects that the garbage collector knows is lost then.
"""

import contextlib
import gc

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tfdeep import optimizers

SGD = keras.optimizers.SGD

WRAPPERS = {
    "AdaptiveClip": lambda o: optimizers.AdaptiveClip(o, 1e-3, exclude="outputs"),
    "ClipByValue": lambda o: optimizers.ClipByValue(o, 1e-3),
    "ClipByNorm": lambda o: optimizers.ClipByNorm(o, 1e-3),
    "ClipByGlobalNorm": lambda o: optimizers.ClipByGlobalNorm(o, 1e-3),
    "PercentileClip": lambda o: optimizers.PercentileClip(o, 50),
    "ZScoreClip": lambda o: optimizers.ZScoreClip(o, warmup_steps=2),
    "SkipNonFinite": lambda o: optimizers.SkipNonFinite(o),
    "Accumulate": lambda o: optimizers.Accumulate(o, 2),
    "LayerRates": lambda o: optimizers.LayerRates(o, {"hidden": 0.1}),
    "nested": lambda o: optimizers.LayerRates(
        optimizers.AdaptiveClip(o, 1e-3, exclude="outputs"), {"hidden": 0.1}
    ),
}


def test_every_wrapper_is_here():
    wrappers = [
        name
        for name in optimizers.__all__
        if isinstance(getattr(optimizers, name), type)
        and issubclass(getattr(optimizers, name), optimizers.OptimizerWrapper)
    ]
    assert set(wrappers) - {"OptimizerWrapper"} == set(WRAPPERS) - {"nested"}


def net(constraint=None):
    keras.utils.set_random_seed(0)
    convolution = layers.Conv2DTranspose(
        3, 2, name="hidden", kernel_constraint=constraint
    )
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            convolution,
            layers.Flatten(),
            layers.Dense(1, name="outputs"),
        ]
    )


def trained(model, freeze):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4, 4, 2)).astype("float32")
    gc.unfreeze()
    if freeze:
        gc.freeze()
    model.fit(x, x.sum((1, 2, 3)), batch_size=4, epochs=2, shuffle=False, verbose=0)
    return [weight.numpy() for weight in model.weights]


def assert_same_bits(make):
    for a, b in zip(trained(make(), False), trained(make(), True), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(name):
    def make():
        model = net()
        model.compile(WRAPPERS[name](SGD(0.1)), "mse")
        return model

    assert_same_bits(make)


def test_the_constraint():
    def make():
        model = net(tfdeep.constraints.FanInMaxNorm(0.3))
        model.compile(SGD(1e-3), "mse")
        return model

    assert_same_bits(make)
    lengths = np.sqrt((make_and_train(make) ** 2).sum((0, 1, 3)))
    assert lengths.max() < 0.3 + 1e-6


def make_and_train(make):
    model = make()
    trained(model, True)
    return model.get_layer("hidden").kernel.numpy()


class TestReplicas:
    """The wrappers guard what Keras' loss scaling sees on the first replica only."""

    def step(self, freeze, policy="mixed_float16"):
        strategy = nets.two_replicas()
        keras.utils.set_random_seed(0)
        keras.mixed_precision.set_global_policy(policy)
        try:
            with strategy.scope():
                model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
                model.compile(optimizers.ClipByGlobalNorm(SGD(1.0), 1.0), "mse")
        finally:
            keras.mixed_precision.set_global_policy("float32")
        x = np.float32([[1], [60000]])  # the second replica overflows
        gc.unfreeze()
        if freeze:
            gc.freeze()
        before = [weight.numpy() for weight in model.weights]
        model.fit(x, np.float32([[1], [6e4]]), batch_size=2, verbose=0, shuffle=False)
        return before, [weight.numpy() for weight in model.weights]

    @pytest.mark.parametrize("freeze", [False, True])
    def test_an_overflow_on_the_second_replica_is_not_applied(self, freeze):
        before, after = self.step(freeze)
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize("freeze", [False, True])
    def test_what_xla_cannot_do_is_refused(self, freeze):
        with nets.two_replicas().scope():
            model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
            optimizer = optimizers.ClipByGlobalNorm(SGD(1.0), 1.0)
            model.compile(optimizer, "mse", jit_compile=True)
        with (
            freeze_objects(freeze),
            pytest.raises(
                tfdeep.errors.InvalidArgumentError, match="XLA cannot compile"
            ),
        ):
            model.fit(np.ones((2, 1)), np.ones((2, 1)), batch_size=2, verbose=0)


@contextlib.contextmanager
def freeze_objects(freeze):
    gc.unfreeze()
    if freeze:
        gc.freeze()
    yield
