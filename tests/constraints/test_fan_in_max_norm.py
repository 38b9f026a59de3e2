"""Max-norm over what comes into each unit, for every kind of kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep._keras import _owners
from tfdeep.constraints import FanInMaxNorm
from tfdeep.errors import InvalidArgumentError

LIMIT = 0.3


def norms(values, axes):
    return np.sqrt((np.asarray(values, "float64") ** 2).sum(axis=axes))


def reference(values, axes, limit=LIMIT):
    values = np.asarray(values, "float64")
    lengths = np.sqrt((values**2).sum(axis=axes, keepdims=True))
    return values * np.minimum(1, limit / lengths)


# How to make the layer, the shape of an example, and the axes of one unit's weights
# by the name of the weight.
KERNELS = {
    "dense": (lambda c: layers.Dense(5, kernel_constraint=c), (3,), {"kernel": 0}),
    "conv1d": (
        lambda c: layers.Conv1D(4, 3, kernel_constraint=c),
        (6, 2),
        {"kernel": (0, 1)},
    ),
    "conv2d": (
        lambda c: layers.Conv2D(4, 3, kernel_constraint=c),
        (5, 5, 2),
        {"kernel": (0, 1, 2)},
    ),
    "grouped": (
        lambda c: layers.Conv2D(4, 3, groups=2, kernel_constraint=c),
        (5, 5, 4),
        {"kernel": (0, 1, 2)},
    ),
    "conv3d": (
        lambda c: layers.Conv3D(3, 2, kernel_constraint=c),
        (3, 3, 3, 2),
        {"kernel": (0, 1, 2, 3)},
    ),
    "transposed": (
        lambda c: layers.Conv2DTranspose(4, 3, kernel_constraint=c),
        (5, 5, 2),
        {"kernel": (0, 1, 3)},
    ),
    "depthwise": (
        lambda c: layers.DepthwiseConv2D(3, depthwise_constraint=c),
        (5, 5, 2),
        {"kernel": (0, 1)},
    ),
    "separable": (
        lambda c: layers.SeparableConv2D(
            4, 3, depthwise_constraint=c, pointwise_constraint=c
        ),
        (5, 5, 2),
        {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2)},
    ),
    "einsum": (
        lambda c: layers.EinsumDense("abc,cde->abde", (4, 2, 5), kernel_constraint=c),
        (4, 3),
        {"kernel": 0},
    ),
    "recurrent": (
        lambda c: layers.LSTM(4, kernel_constraint=c, recurrent_constraint=c),
        (6, 3),
        {"kernel": 0, "recurrent_kernel": 0},
    ),
    "embedding": (
        lambda c: layers.Embedding(7, 4, embeddings_constraint=c),
        (5,),
        {"embeddings": 1},
    ),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_each_unit_is_bounded_after_every_step(kind):
    make, shape, axes = KERNELS[kind]
    layer = make(FanInMaxNorm(LIMIT))
    inputs = keras.Input(shape, dtype="int32" if kind == "embedding" else "float32")
    x = layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.5), "mse")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (8, *shape)) if kind == "embedding" else None
    x = rng.normal(size=(8, *shape)).astype("float32") if x is None else x
    constrained = {w.name: w for w in layer.weights if w.name in axes}
    assert constrained.keys() == axes.keys()
    for weight in constrained.values():
        weight.assign(rng.normal(size=weight.shape))
    for _ in range(2):
        model.fit(x, np.ones((8, 1)), verbose=0)
        for name, weight in constrained.items():
            found = norms(weight.numpy(), axes[name])
            assert found.max() <= LIMIT + 1e-6
            assert found.max() > LIMIT * 0.99, "it does bound"


@pytest.mark.parametrize("kind", KERNELS)
def test_the_bound_is_the_definition_and_leaves_the_rest_bit_for_bit(kind):
    make, shape, axes = KERNELS[kind]
    layer = make(FanInMaxNorm(LIMIT))
    layer(tf.zeros((1, *shape), "int32" if kind == "embedding" else "float32"))
    _owners.tell(layer)
    rng = np.random.default_rng(0)
    for weight in [w for w in layer.weights if w.name in axes]:
        axis = axes[weight.name]
        unit = norms(weight.numpy(), axis)
        scale = rng.choice([1e-9, 0.5, 3.0], size=unit.shape) * LIMIT / unit
        values = (weight.numpy() * np.expand_dims(scale, axis)).astype("float32")
        weight.assign(values)
        bounded = np.asarray(weight.constraint(weight))
        np.testing.assert_allclose(bounded, reference(values, axis), rtol=1e-6)
        within = np.broadcast_to(
            np.expand_dims(scale * unit, axis) < LIMIT, values.shape
        )
        np.testing.assert_array_equal(bounded[within], values[within])


def test_the_constraint_of_keras_does_not_bound_filters():
    """Why this one is here: norms of whole filters after both constraints."""
    values = np.random.default_rng(0).normal(size=(3, 3, 8, 4)).astype("float32")
    theirs = np.asarray(keras.constraints.MaxNorm(1.0)(values))
    ours = np.asarray(FanInMaxNorm(1.0)(tf.constant(values)))
    assert norms(theirs, (0, 1, 2)).min() > 4
    np.testing.assert_allclose(norms(ours, (0, 1, 2)), 1, rtol=1e-6)


def test_heads_of_attention_are_bounded_each():
    layer = layers.MultiHeadAttention(2, 3, kernel_constraint=FanInMaxNorm(LIMIT))
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")
    layer(x, x)
    _owners.tell(layer)
    for weight in [w for w in layer.weights if w.name == "kernel"]:
        axes = (0, 1) if "output" in weight.path else 0
        bounded = np.asarray(weight.constraint(weight))
        np.testing.assert_allclose(
            bounded, reference(weight.numpy(), axes), rtol=1e-6, err_msg=weight.path
        )


def test_explicit_axes_go_before_the_layer():
    layer = layers.Dense(3, kernel_constraint=FanInMaxNorm(LIMIT, axis=1))
    layer.build((None, 4))
    bounded = layer.kernel.constraint(layer.kernel)
    np.testing.assert_allclose(bounded, reference(layer.kernel.numpy(), 1), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_float_dtype_keeps_its_own(dtype):
    values = tf.cast(np.random.default_rng(0).normal(size=(40, 3)), dtype)
    bounded = FanInMaxNorm(1.0)(values)
    assert bounded.dtype == dtype
    np.testing.assert_allclose(norms(tf.cast(bounded, "float64"), 0), 1, rtol=0.02)


def test_the_same_on_two_replicas_and_in_mixed_precision():
    def trained(constraint_scope):
        with constraint_scope:
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [
                    keras.Input((5, 5, 1)),
                    layers.Conv2D(3, 3, kernel_constraint=FanInMaxNorm(LIMIT)),
                    layers.Flatten(),
                    layers.Dense(1),
                ]
            )
            model.compile(keras.optimizers.SGD(0.1), "mse")
        x = np.random.default_rng(0).normal(size=(8, 5, 5, 1)).astype("float32")
        model.fit(x, np.ones((8, 1)), batch_size=8, epochs=2, verbose=0)
        return model

    one = trained(tf.device("CPU:0"))
    two = trained(nets.two_replicas().scope())
    assert nets.largest_difference(one, two) < 1e-6
    assert norms(two.layers[0].kernel.numpy(), (0, 1, 2)).max() <= LIMIT + 1e-6
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = trained(tf.device("CPU:0"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert norms(mixed.layers[0].kernel.numpy(), (0, 1, 2)).max() <= LIMIT + 1e-6


def test_a_saved_model_keeps_it(tmp_path):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, kernel_constraint=FanInMaxNorm(0.5))]
    )
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    constraint = loaded.layers[0].kernel.constraint
    assert constraint.get_config() == {"max_value": 0.5, "axis": None}


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_a_bound_that_is_none_is_refused(value):
    with pytest.raises(InvalidArgumentError, match="max_value"):
        FanInMaxNorm(value)


def test_axes_that_are_none_are_refused():
    with pytest.raises(InvalidArgumentError, match="axis"):
        FanInMaxNorm(1.0, axis=("0",))
