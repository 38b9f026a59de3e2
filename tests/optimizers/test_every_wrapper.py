"""What holds for each wrapper, and for each one inside another."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeep
from benchmarks import replica_parity
from tests import nets
from tfdeep import optimizers

WRAPPERS = {
    **replica_parity.WRAPPERS,
    "LayerRates": lambda inner: optimizers.LayerRates(
        inner, {"hidden[12]": 0.5, "outputs/kernel": 2.0}
    ),
}
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
ONE_DEEP = [name for name in WRAPPERS if "(" not in name]
each_wrapper = pytest.mark.parametrize("wrapper", ONE_DEEP)
STEPS = 6


# Each is the outer one and the inner one three times; all other pairs are slow.
PAIRS = nets.latin(ONE_DEEP, ONE_DEEP)


def equal(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def momentum():
    return SGD(0.05, momentum=0.9)


def fit(optimizer, weights=None, epochs=3, build=nets.functional, **arguments):
    model = build()
    if weights is not None:
        model.set_weights(weights)
    before = model.get_weights()
    nets.compiled(model, optimizer, **arguments)
    model.fit(nets.dataset(), epochs=epochs, verbose=0)
    return model, before


@each_wrapper
def test_xla_and_several_steps_an_execution_train_the_same(wrapper):
    wrap, build = WRAPPERS[wrapper], nets.small
    several, before = fit(
        wrap(Adam(0.02)), build=build, jit_compile=True, steps_per_execution=4
    )
    single, _ = fit(wrap(Adam(0.02)), before, build=build)
    assert nets.largest_difference(several, single) < 1e-6
    assert several.optimizer.telemetry.steps == 3 * STEPS
    moved = [
        np.abs(a - b).max() for a, b in zip(before, several.get_weights(), strict=True)
    ]
    assert max(moved) > 1e-3


@each_wrapper
def test_saved_in_the_middle_it_goes_on_the_same(wrapper, tmp_path):
    model, _ = fit(WRAPPERS[wrapper](momentum()), epochs=1)
    model.fit(nets.dataset().take(3), verbose=0)  # an odd number of micro-batches
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")  # no custom_objects
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) > 0
    for m in (model, loaded):
        m.fit(nets.dataset(), epochs=2, verbose=0)
    equal(loaded.get_weights(), model.get_weights())
    equal(loaded.optimizer.variables, model.optimizer.variables)
    np.testing.assert_equal(
        loaded.optimizer.telemetry.to_dict(), model.optimizer.telemetry.to_dict()
    )


@each_wrapper
def test_a_model_that_was_never_trained_can_be_loaded(wrapper, tmp_path):
    model = nets.functional()
    model.compile(WRAPPERS[wrapper](Adam(0.02)), nets.LOSS)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    equal(loaded.get_weights(), model.get_weights())
    for m in (model, loaded):
        nets.apply_random_gradients(m.optimizer, m.trainable_variables, steps=4)
    equal(loaded.get_weights(), model.get_weights())
    before = loaded.get_weights()
    loaded.fit(nets.dataset(), verbose=0)
    assert any(
        (a != b).any() for a, b in zip(before, loaded.get_weights(), strict=True)
    )


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_nested_saved_and_loaded_it_goes_on_the_same(outer, inner, tmp_path):
    model = nets.small()
    model.compile(WRAPPERS[outer](WRAPPERS[inner](momentum())), nets.LOSS)
    # Three: an odd number of micro-batches, and past the warm-up of ZScoreClip.
    nets.apply_random_gradients(model.optimizer, model.trainable_variables, steps=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    before = model.get_weights()
    equal(loaded.get_weights(), before)
    for m in (model, loaded):
        nets.apply_random_gradients(m.optimizer, m.trainable_variables, 5, seed=1)
    equal(loaded.get_weights(), model.get_weights())
    equal(loaded.optimizer.variables, model.optimizer.variables)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


@each_wrapper
def test_mixed_precision_puts_its_loss_scaling_around_it(wrapper):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        optimizer = WRAPPERS[wrapper](SGD(0.05))
        model = nets.compiled(nets.functional(), optimizer)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.optimizer.inner_optimizer is optimizer
    losses = model.fit(nets.dataset(), epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert optimizer.telemetry.steps == 6 * STEPS


@each_wrapper
def test_the_state_has_one_place_in_a_list_of_weights(wrapper):
    model = nets.small()
    model.compile(WRAPPERS[wrapper](Adam(0.02)), nets.LOSS)
    nets.apply_random_gradients(model.optimizer, model.trainable_variables, steps=6)
    values = [v.numpy() for v in model.optimizer.variables]
    other = WRAPPERS[wrapper](Adam(0.02))
    other.build(model.trainable_variables)
    other.set_weights(values)
    equal(other.variables, values)
    assert len({id(v) for v in other.variables}) == len(values)


@each_wrapper
def test_weights_that_freeze_and_thaw_leave_the_state(wrapper):
    model, _ = fit(WRAPPERS[wrapper](momentum()), epochs=1)
    iterations = int(model.optimizer.iterations)
    steps = model.optimizer.telemetry.steps
    tfdeep.freeze(model, "hidden1")
    frozen = model.get_layer("hidden1").get_weights()
    model.fit(nets.dataset(), verbose=0)
    equal(model.get_layer("hidden1").get_weights(), frozen)
    tfdeep.unfreeze(model, "hidden1")
    model.fit(nets.dataset(), epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == iterations * 4
    assert model.optimizer.telemetry.steps == steps * 4


class TestTelemetry:
    def test_norms_and_threshold(self):
        weight = keras.Variable([0.0, 0.0])
        optimizer = optimizers.ClipByGlobalNorm(SGD(1.0), clip_norm=2.0)
        assert optimizer.telemetry.steps == 0
        for gradient in [[0.6, 0.8], [3.0, 4.0], [30.0, 40.0]]:
            optimizer.apply([tf.constant(gradient)], [weight])
        telemetry = optimizer.telemetry
        assert (telemetry.steps, telemetry.clipped_steps) == (3, 2)
        assert math.isclose(telemetry.clipped_fraction, 2 / 3)
        assert math.isclose(telemetry.norm, 50, rel_tol=1e-6)
        assert math.isclose(telemetry.clipped_norm, 2, rel_tol=1e-6)
        assert telemetry.threshold == 2.0
        assert str(telemetry) == ("ClipByGlobalNorm: 3 steps, 67% clipped, threshold 2")

    @each_wrapper
    def test_the_norms_are_those_of_the_gradients(self, wrapper):
        optimizer = WRAPPERS[wrapper](SGD(1.0))
        if wrapper in ("Accumulate", "LayerRates"):
            pytest.skip("it does not measure gradients")
        rng = np.random.default_rng(0)
        kernel = keras.Variable(rng.normal(size=(4, 3)), name="outputs")
        for _ in range(5):
            gradient = rng.normal(size=(4, 3))
            before = kernel.numpy()
            if wrapper == "AdaptiveClip":
                optimizer.exclude = None
            optimizer.apply([tf.constant(gradient, tf.float32)], [kernel])
            step = np.linalg.norm(kernel.numpy() - before)
            telemetry = optimizer.telemetry
            assert math.isclose(telemetry.norm, np.linalg.norm(gradient), rel_tol=1e-5)
            if wrapper != "SkipNonFinite":
                assert math.isclose(telemetry.clipped_norm, step, rel_tol=1e-4)
        assert telemetry.steps == 5

    def test_sparse_gradients_count_by_their_true_norm(self):
        table = keras.Variable(np.zeros((4, 2)), name="embeddings")
        values = tf.constant([[3.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        slices = tf.IndexedSlices(values, tf.constant([1, 1, 2]), (4, 2))
        for wrap in (
            lambda inner: optimizers.ClipByGlobalNorm(inner, 1.0),
            lambda inner: optimizers.ClipByNorm(inner, 1.0),
            lambda inner: optimizers.PercentileClip(inner),
            lambda inner: optimizers.ClipByValue(inner, 100.0),
        ):
            optimizer = wrap(SGD(1.0))
            table.assign(np.zeros((4, 2)))
            optimizer.apply([slices], [table])
            telemetry = optimizer.telemetry
            assert math.isclose(telemetry.norm, 5, rel_tol=1e-6)
            step = np.linalg.norm(table.numpy())
            assert math.isclose(telemetry.clipped_norm, step, rel_tol=1e-6)


class TestBehavesAsTheInnerOptimizer:
    """What callbacks and users ask of an optimizer, through two wrappers."""

    def wrap(self, inner):
        return optimizers.SkipNonFinite(optimizers.ClipByGlobalNorm(inner, 100.0))

    def test_reduce_on_plateau(self):
        model = nets.functional()
        model.compile(self.wrap(SGD(0.25)), nets.LOSS)
        callback = keras.callbacks.ReduceLROnPlateau(
            monitor="loss", factor=0.5, patience=1, min_delta=100.0, cooldown=0
        )
        model.fit(nets.dataset(), epochs=3, verbose=0, callbacks=[callback])
        assert float(model.optimizer.learning_rate) == 0.0625
        model.optimizer.learning_rate = 1.5
        assert (
            float(model.optimizer.inner_optimizer.inner_optimizer.learning_rate) == 1.5
        )

    @pytest.mark.parametrize("scaled", [False, True])
    def test_averaged_weights_are_swapped_in(self, scaled):
        arguments = {"use_ema": True, "ema_momentum": 0.5}
        plain = SGD(0.05, **arguments)
        ours = self.wrap(SGD(0.05, **arguments))
        if scaled:
            plain, ours = map(keras.optimizers.LossScaleOptimizer, (plain, ours))
        results, weights = [], None
        for optimizer in (plain, ours):
            model = nets.functional()
            if weights is None:
                weights = model.get_weights()
            model.set_weights(weights)
            model.compile(optimizer, nets.LOSS)
            history = model.fit(
                nets.dataset(),
                epochs=3,
                verbose=0,
                validation_data=nets.dataset(),
                callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=False)],
            ).history
            results.append((history["val_loss"], model))
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
        assert nets.largest_difference(results[0][1], results[1][1]) < 1e-6

    def test_attributes_are_read_and_set(self):
        inner = keras.optimizers.AdamW(0.1, weight_decay=0.5, use_ema=True)
        optimizer = self.wrap(inner)
        assert optimizer.weight_decay == 0.5
        assert optimizer.ema_momentum == inner.ema_momentum
        assert optimizer.beta_1 == inner.beta_1
        optimizer.weight_decay = 0.25
        assert inner.weight_decay == 0.25
        assert not hasattr(optimizer, "optimizers")
        with pytest.raises(AttributeError):
            _ = optimizer.not_an_attribute

    def test_weight_decay_spares_what_is_excluded(self):
        optimizer = self.wrap(keras.optimizers.AdamW(0.1, weight_decay=0.5))
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        kernel = keras.Variable([1.0], name="kernel")
        bias = keras.Variable([1.0], name="bias")
        optimizer.apply([tf.zeros([1]), tf.zeros([1])], [kernel, bias])
        assert float(bias.numpy()[0]) == 1.0
        assert float(kernel.numpy()[0]) < 1.0


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="new in Keras 3.15"
)
class TestAroundSeveralOptimizers:
    def make(self, wrap=None, **arguments):
        groups = keras.optimizers.OptimizerMap(
            SGD(1.0, **arguments), {"hidden1/.*": SGD(1.0), "hidden2/.*": SGD(1.0)}
        )
        inner = keras.optimizers.MultiOptimizer(groups)
        return (wrap or WRAPPERS["ClipByGlobalNorm"])(inner)

    def test_the_norm_is_that_of_all_groups(self):
        model = nets.functional()
        model.compile(self.make(), nets.LOSS)
        before = model.get_weights()
        x, y = nets.examples(16)
        model.fit(x, y, batch_size=16, verbose=0)
        steps = [a - b for a, b in zip(before, model.get_weights(), strict=True)]
        norm = math.sqrt(sum((s.astype("float64") ** 2).sum() for s in steps))
        assert math.isclose(norm, 0.1, rel_tol=1e-5)
        assert int(model.optimizer.iterations) == 1

    @each_wrapper
    def test_training_is_that_of_the_single_optimizer(self, wrapper):
        groups, single = nets.functional(), nets.functional()
        single.set_weights(groups.get_weights())
        groups.compile(self.make(WRAPPERS[wrapper]), nets.LOSS)
        single.compile(WRAPPERS[wrapper](SGD(1.0)), nets.LOSS)
        for m in (groups, single):
            nets.apply_random_gradients(m.optimizer, m.trainable_variables, steps=6)
        assert nets.largest_difference(groups, single) < 1e-6

    def test_callbacks_see_its_groups(self):
        model, _ = fit(self.make(), epochs=1)
        callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5)
        model.fit(nets.dataset(), verbose=0, callbacks=[callback])
        for group in model.optimizer.optimizers:
            assert float(group.learning_rate) == 0.5

    def test_a_saved_model_goes_on_the_same(self, tmp_path):
        model, _ = fit(self.make(), epochs=1)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        for m in (model, loaded):
            m.fit(nets.dataset(), verbose=0)
        equal(loaded.get_weights(), model.get_weights())

    def test_what_a_group_does_by_itself_is_refused(self):
        from tfdeep.errors import InvalidArgumentError

        with pytest.raises(InvalidArgumentError, match="must not use `clipnorm`"):
            self.make(clipnorm=1.0)
        late = keras.optimizers.MultiOptimizer(lambda variable: SGD(1.0, clipvalue=1.0))
        optimizer = WRAPPERS["ClipByNorm"](late)
        with pytest.raises(InvalidArgumentError, match="must not use `clipvalue`"):
            optimizer.apply([tf.ones(2)], [keras.Variable([0.0, 0.0])])
