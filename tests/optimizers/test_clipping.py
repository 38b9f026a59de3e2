import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep.errors import InvalidArgumentError
from tfdeep.optimizers import (
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
    OptimizerWrapper,
)

SGD = keras.optimizers.SGD
CLIPS = {
    "value": (ClipByValue, "clip_value", "clipvalue", 0.02),
    "norm": (ClipByNorm, "clip_norm", "clipnorm", 0.1),
    "global_norm": (ClipByGlobalNorm, "clip_norm", "global_clipnorm", 0.1),
}
each_clip = pytest.mark.parametrize("clip", CLIPS)


def reference(clip, gradients, limit):
    """The clipped gradients in float64, from the definitions."""
    gradients = [np.asarray(g, "float64") for g in gradients]
    norms = [math.sqrt((g**2).sum()) for g in gradients]
    if clip == "value":
        return [np.clip(g, -limit, limit) for g in gradients]
    if clip == "norm":
        return [g * min(1, limit / n) for g, n in zip(gradients, norms, strict=True)]
    together = math.sqrt(sum(n**2 for n in norms))
    return [g * min(1, limit / together) for g in gradients]


@each_clip
@pytest.mark.parametrize("limit", [1e-3, 0.7, 1.9, 50.0])
def test_one_step_is_the_definition(clip, limit):
    rng = np.random.default_rng(0)
    gradients = [
        rng.normal(size=s).astype("float32") for s in [(3, 4), (4,), (4, 2), (2,)]
    ]
    variables = [keras.Variable(np.zeros_like(g)) for g in gradients]
    wrapper, argument, _, _ = CLIPS[clip]
    optimizer = wrapper(SGD(1.0), **{argument: limit})
    optimizer.apply([tf.constant(g) for g in gradients], variables)
    for variable, expected in zip(
        variables, reference(clip, gradients, limit), strict=True
    ):
        np.testing.assert_allclose(variable.numpy(), -expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("clip", ["norm", "global_norm"])
def test_a_gradient_within_the_limit_passes_bit_for_bit(clip):
    wrapper, argument, _, _ = CLIPS[clip]
    gradient = np.float32([0.1, 0.2, 0.3])
    variable = keras.Variable(np.zeros(3, "float32"))
    wrapper(SGD(1.0), **{argument: 100.0}).apply([tf.constant(gradient)], [variable])
    np.testing.assert_array_equal(variable.numpy(), -gradient)


@each_clip
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("inner", ["SGD", "Adam", "AdamW"])
def test_steps_equal_keras_own_clipping_on_one_device(clip, inner, jit_compile):
    wrapper, argument, keras_argument, limit = CLIPS[clip]
    inner = getattr(keras.optimizers, inner)
    start = [np.ones((3, 4), "float32"), np.ones(4, "float32")]
    results = []
    for optimizer, compiled_by_xla in (
        (wrapper(inner(0.05), **{argument: limit}), jit_compile),
        (inner(0.05, **{keras_argument: limit}), False),
    ):
        variables = [keras.Variable(value) for value in start]
        optimizer.build(variables)

        @tf.function(jit_compile=compiled_by_xla)
        def step(gradients):
            optimizer.apply(gradients, variables)  # noqa: B023

        rng = np.random.default_rng(0)
        for scale in (1e-3, 0.1, 1.0, 100.0, 1e-3):
            gradients = [scale * rng.normal(size=v.shape) for v in start]
            step([tf.constant(g, "float32") for g in gradients])
        results.append([v.numpy() for v in variables])
    for ours, theirs, before in zip(*results, start, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
        assert (np.abs(ours - before) > 1e-4).any()


@each_clip
def test_training_equals_keras_own_clipping_on_one_device(clip):
    wrapper, argument, keras_argument, limit = CLIPS[clip]
    ours, theirs = nets.functional(), nets.functional()
    theirs.set_weights(ours.get_weights())
    inner = keras.optimizers.AdamW
    nets.compiled(ours, wrapper(inner(0.05), **{argument: limit}))
    nets.compiled(theirs, inner(0.05, **{keras_argument: limit}))
    for model in (ours, theirs):
        model.fit(nets.dataset(), epochs=3, shuffle=False, verbose=0)
    assert nets.largest_difference(ours, theirs) < 2e-6


def test_the_global_norm_is_that_of_the_summed_gradient():
    """Keras clips each replica by itself: two of them step up to twice as far."""
    with nets.two_replicas().scope():
        model = nets.functional()
        model.compile(ClipByGlobalNorm(SGD(1.0), clip_norm=0.5), nets.LOSS)
    before = model.get_weights()
    x, y = nets.examples(16)
    model.fit(x * 10, y, batch_size=16, verbose=0)
    steps = [a - b for a, b in zip(before, model.get_weights(), strict=True)]
    assert math.isclose(math.sqrt(sum((s**2).sum() for s in steps)), 0.5, rel_tol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("wrapper", [ClipByNorm, ClipByGlobalNorm])
def test_a_gradient_whose_squares_overflow_makes_no_step_and_counts_as_clipped(
    wrapper, jit_compile
):
    variable = keras.Variable([1.0, 2.0])
    optimizer = wrapper(SGD(1.0), clip_norm=1.0)
    optimizer.build([variable])

    @tf.function(jit_compile=jit_compile)
    def step():
        optimizer.apply([tf.constant([1e20, 1e20])], [variable])

    step()
    np.testing.assert_array_equal(variable, [1, 2])
    telemetry = optimizer.telemetry
    assert (telemetry.steps, telemetry.clipped_steps) == (1, 1)
    assert (telemetry.norm, telemetry.clipped_norm) == (math.inf, 0)


def test_wrappers_nest_from_the_outside_in():
    variable = keras.Variable([0.0, 0.0])
    optimizer = ClipByValue(ClipByNorm(SGD(1.0), clip_norm=1.0), clip_value=4.0)
    optimizer.apply([tf.constant([30.0, 3.0])], [variable])  # (4, 3), then (.8, .6)
    np.testing.assert_allclose(variable.numpy(), [-0.8, -0.6], rtol=1e-6)


def test_the_state_is_saved_once(tmp_path):
    model = nets.functional()
    model.compile(ClipByNorm(keras.optimizers.Adam(0.01), clip_norm=1.0), nets.LOSS)
    model.fit(nets.dataset(), epochs=1, verbose=0)
    model.save_weights(tmp_path / "net.weights.h5")
    import h5py

    with h5py.File(tmp_path / "net.weights.h5") as file:
        sizes = {}
        file["optimizer"].visititems(
            lambda name, item: (
                sizes.update({name: item.size})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    moments = 2 * model.count_params()
    assert moments <= sum(sizes.values()) <= moments + 16


class TestBehavesAsTheInnerOptimizer:
    def build(self, inner, **compile_arguments):
        model = nets.functional()
        optimizer = ClipByGlobalNorm(inner, clip_norm=100.0)
        return nets.compiled(model, optimizer, **compile_arguments), optimizer

    def test_learning_rate_and_iterations(self):
        inner = keras.optimizers.Adam(0.01)
        model, optimizer = self.build(inner)
        callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
        history = model.fit(nets.dataset(), epochs=3, verbose=0, callbacks=[callback])
        np.testing.assert_allclose(
            history.history["learning_rate"], [0.005, 0.0025, 0.00125], rtol=1e-6
        )
        optimizer.learning_rate = 0.25
        assert float(inner.learning_rate) == 0.25
        assert int(optimizer.iterations) == int(inner.iterations) == 18

    def test_schedule(self):
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 6, 0.5)
        model, optimizer = self.build(keras.optimizers.SGD(schedule))
        model.fit(nets.dataset(), epochs=1, verbose=0)
        assert math.isclose(float(optimizer.learning_rate), 0.05, rel_tol=1e-6)

    def test_moving_average_of_the_weights(self):
        arguments = {"use_ema": True, "ema_momentum": 0.5}
        model, _ = self.build(keras.optimizers.SGD(0.05, **arguments))
        plain = nets.functional()
        plain.set_weights(model.get_weights())
        plain.compile(keras.optimizers.SGD(0.05, **arguments), nets.LOSS)
        for m in (model, plain):
            m.fit(nets.dataset(), epochs=2, shuffle=False, verbose=0)
        assert nets.largest_difference(model, plain) < 1e-7

    def test_loss_scale_factor(self):
        model, _ = self.build(keras.optimizers.SGD(0.05, loss_scale_factor=1024.0))
        plain = nets.functional()
        plain.set_weights(model.get_weights())
        plain.compile(keras.optimizers.SGD(0.05), nets.LOSS)
        for m in (model, plain):
            m.fit(nets.dataset(), epochs=2, shuffle=False, verbose=0)
        assert nets.largest_difference(model, plain) < 1e-6

    def test_a_variable_without_gradient_is_left_alone(self):
        used, unused = keras.Variable([1.0]), keras.Variable([1.0])
        optimizer = ClipByNorm(SGD(1.0), clip_norm=0.5)
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([tf.constant([9.0]), None], [used, unused])
        assert float(used.numpy()[0]) == 0.5
        assert float(unused.numpy()[0]) == 1.0

    def test_the_name_of_an_optimizer_will_do(self):
        assert isinstance(
            ClipByNorm("adam", clip_norm=1.0).inner_optimizer, keras.optimizers.Adam
        )


def test_sparse_gradients_are_clipped_to_their_true_norm():
    """Keras measures the rows of a repeated id one by one, before they are added."""
    inputs = keras.Input((6,), dtype="int32")
    table = layers.Embedding(5, 4, name="table")
    x = layers.GlobalAveragePooling1D()(table(inputs))
    model = keras.Model(inputs, layers.Dense(nets.CLASSES)(x))
    model.compile(ClipByGlobalNorm(SGD(1.0), clip_norm=0.01), nets.LOSS)
    before = model.get_weights()
    model.fit(np.ones((16, 6), "int32"), np.zeros(16), batch_size=16, verbose=0)
    steps = [a - b for a, b in zip(before, model.get_weights(), strict=True)]
    assert math.isclose(math.sqrt(sum((s**2).sum() for s in steps)), 0.01, rel_tol=1e-4)


@each_clip
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", None, True])
def test_a_limit_that_cannot_work_is_refused(clip, value):
    wrapper, argument, _, _ = CLIPS[clip]
    with pytest.raises(InvalidArgumentError) as error:
        wrapper(SGD(0.1), **{argument: value})
    message = str(error.value)
    assert f"Received: {argument}={value!r}" in message
    assert "a finite number > 0, in gradient units" in message


@each_clip
@pytest.mark.parametrize("optimizer", ["adam", SGD(0.1)], ids=["name", "object"])
def test_swapped_arguments_are_told(clip, optimizer):
    wrapper, argument, _, _ = CLIPS[clip]
    with pytest.raises(InvalidArgumentError) as error:
        wrapper(1.0, optimizer)
    call = f"`{wrapper.__name__}(optimizer, {argument}=1)`"
    assert f"the arguments are swapped: write {call}" in str(error.value)
    with pytest.raises(InvalidArgumentError) as error:
        wrapper(SGD(0.1), "auto")  # no optimizer
    assert "swapped" not in str(error.value)


@pytest.mark.parametrize(
    "argument",
    ["clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps"],
)
def test_the_remedy_for_a_second_clipping_is_to_leave_it_out(argument):
    with pytest.raises(InvalidArgumentError) as error:
        ClipByGlobalNorm(keras.optimizers.Adam(**{argument: 2}), 1.0)
    assert f"Fix:      leave `{argument}` out of `Adam(...)`" in str(error.value)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1)), "unscaled twice"),
        (lambda: SGD(0.1, clipnorm=1.0), "must not use `clipnorm`"),
        (lambda: SGD(0.1, global_clipnorm=1.0), "must not use `global_clipnorm`"),
        (lambda: SGD(0.1, clipvalue=1.0), "must not use `clipvalue`"),
        (lambda: SGD(0.1, gradient_accumulation_steps=2), "must not use `gradient_acc"),
        (lambda: 3, "needs an optimizer"),
        (lambda: SGD, "needs an optimizer"),
    ],
)
def test_an_inner_optimizer_that_cannot_work_is_refused(inner, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ClipByGlobalNorm(inner(), clip_norm=1.0)


def test_a_rule_of_ones_own_takes_one_method_and_may_keep_state():
    class Centralize(OptimizerWrapper):
        def build_state(self, variables):
            self.steps = self.add_variable((), name="steps")

        def transform(self, gradients, variables):
            self.steps.assign_add(1.0)
            return [g - tf.reduce_mean(g) for g in gradients]

    model = nets.functional()
    optimizer = Centralize(SGD(0.1))
    model.compile(optimizer, nets.LOSS)
    model.fit(nets.dataset(), epochs=1, verbose=0)
    assert float(optimizer.steps.numpy()) == 6
    assert any(v is optimizer.steps for v in optimizer.variables)
