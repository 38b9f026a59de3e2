import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep.errors import InvalidArgumentError
from tfdeep.optimizers import Accumulate, ClipByGlobalNorm


def fit(make_model, optimizer, batch_size, weights=None, data=None, **arguments):
    model = make_model()
    if weights is not None:
        model.set_weights(weights)
    before = model.get_weights()
    nets.compiled(model, optimizer, **arguments)
    x, y = nets.examples() if data is None else data
    model.fit(x, y, batch_size=batch_size, shuffle=False, epochs=3, verbose=0)
    return model, before


@pytest.mark.parametrize("inner", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_micro_batches_are_one_big_batch(inner, jit_compile):
    inner = getattr(keras.optimizers, inner)
    big, small = keras.Variable([1.0, -2.0]), keras.Variable([1.0, -2.0])
    whole, parts = inner(0.02), Accumulate(inner(0.02), steps=4)
    parts.build([small])

    @tf.function(jit_compile=jit_compile)
    def micro_step(gradient):
        parts.apply([gradient], [small])

    for batches in np.random.default_rng(0).normal(size=(9, 4, 2)).astype("float32"):
        whole.apply([tf.constant(batches.mean(axis=0))], [big])
        for gradient in batches:
            micro_step(tf.constant(gradient))
    np.testing.assert_allclose(small, big, rtol=1e-5)
    assert (np.abs(big.numpy() - [1, -2]) > 0.001).all()
    assert int(parts.iterations) == int(whole.iterations) == 9


def test_micro_batches_of_a_fit_are_one_big_batch():
    inner = keras.optimizers.AdamW
    big, before = fit(nets.functional, inner(0.02), 32)
    small, _ = fit(nets.functional, Accumulate(inner(0.02), steps=4), 8, before)
    assert nets.largest_difference(big, small) < 1e-6
    assert int(small.optimizer.iterations) == int(big.optimizer.iterations) == 9


def test_clipping_inside_is_of_the_mean():
    make = lambda: ClipByGlobalNorm(keras.optimizers.SGD(0.5), clip_norm=0.05)  # noqa: E731
    big, before = fit(nets.functional, make(), 32)
    small, _ = fit(nets.functional, Accumulate(make(), steps=4), 8, before)
    assert nets.largest_difference(big, small) < 1e-6
    assert small.optimizer.inner_optimizer.telemetry.clipped_steps == 9


def test_schedules_advance_by_update():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 9, 0.5)
    model, _ = fit(
        nets.functional, Accumulate(keras.optimizers.SGD(schedule), steps=4), 8
    )
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.05, rtol=1e-6)


def test_keras_own_accumulation_agrees_on_one_device():
    inner = keras.optimizers.Adam
    theirs, before = fit(nets.functional, inner(0.02, gradient_accumulation_steps=4), 8)
    ours, _ = fit(nets.functional, Accumulate(inner(0.02), steps=4), 8, before)
    assert nets.largest_difference(ours, theirs) < 1e-6


def test_a_sparse_gradient():
    def embedding():
        inputs = keras.Input((5,), dtype="int32")
        x = layers.Flatten()(layers.Embedding(7, 4)(inputs))
        return keras.Model(inputs, layers.Dense(nets.CLASSES)(x))

    rng = np.random.default_rng(0)
    data = rng.integers(0, 7, (96, 5)), rng.integers(0, nets.CLASSES, 96)
    sgd = keras.optimizers.SGD
    big, before = fit(embedding, sgd(0.5, momentum=0.9), 32, data=data)
    small, _ = fit(
        embedding, Accumulate(sgd(0.5, momentum=0.9), steps=4), 8, before, data
    )
    assert nets.largest_difference(big, small) < 1e-6


def test_what_is_left_over_counts_towards_the_next_update(tmp_path):
    weight = keras.Variable([0.0], name="w")
    optimizer = Accumulate(keras.optimizers.SGD(1.0), steps=3)
    for gradient in [3.0, 3.0, 3.0, 6.0]:
        optimizer.apply([tf.constant([gradient])], [weight])
    assert float(weight.numpy()[0]) == -3.0
    for gradient in [0.0, 0.0]:
        optimizer.apply([tf.constant([gradient])], [weight])
    assert float(weight.numpy()[0]) == -5.0


@pytest.mark.parametrize("steps", [0, 1, 2.5, None, True])
def test_a_number_that_cannot_work_is_refused(steps):
    with pytest.raises(InvalidArgumentError, match="whole number > 1"):
        Accumulate("adam", steps=steps)
