import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfdeep._keras import _owners
from tfdeep._keras._layouts import unit_axes

LAYERS = {
    "dense": (lambda: layers.Dense(5), (3,), 1),
    "conv1d": (lambda: layers.Conv1D(4, 3), (6, 2), 1),
    "conv2d": (lambda: layers.Conv2D(4, 3), (5, 5, 2), 1),
    "conv2d in groups": (lambda: layers.Conv2D(4, 3, groups=2), (5, 5, 4), 1),
    "conv3d": (lambda: layers.Conv3D(3, 2), (3, 3, 3, 2), 1),
    "conv1d transposed": (lambda: layers.Conv1DTranspose(4, 3), (6, 2), 1),
    "conv2d transposed": (lambda: layers.Conv2DTranspose(4, 3), (5, 5, 2), 1),
    "conv3d transposed": (lambda: layers.Conv3DTranspose(3, 2), (3, 3, 3, 2), 1),
    "depthwise 1d": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (6, 3), 1),
    "depthwise 2d": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        (5, 5, 3),
        1,
    ),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (None, 5)), (4, 3), 1),
    "einsum to heads": (
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 5)),
        (4, 3),
        2,
    ),
    "einsum from heads": (
        lambda: layers.EinsumDense("abcd,cde->abe", (None, 5)),
        (4, 2, 3),
        1,
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_unit_is_what_one_output_depends_on(kind):
    make, shape, feature_axes = LAYERS[kind]
    layer = make()
    x = tf.random.stateless_uniform((2, *shape), [1, 2], 0.5, 1.5)
    layer(x)
    kernel = layer.kernel
    axes = unit_axes(kernel, layer)
    units = [n for i, n in enumerate(kernel.shape) if i not in axes]
    features = layer(x).shape[-feature_axes:]
    assert np.prod(units) == np.prod(features)
    for place in range(int(np.prod(units))):
        with tf.GradientTape() as tape:
            y = tf.reshape(layer(x), [-1, int(np.prod(features))])
            out = tf.reduce_sum(y[:, place])
        depends_on = tape.gradient(out, kernel.value).numpy() != 0
        inside = np.zeros(units, bool)
        inside.flat[place] = True
        for axis in sorted(axes):
            inside = np.expand_dims(inside, axis)
        np.testing.assert_array_equal(depends_on, np.broadcast_to(inside, kernel.shape))


def test_an_embedding_has_a_unit_for_each_id():
    layer = layers.Embedding(7, 4)
    layer.build()
    assert unit_axes(layer.embeddings, layer) == (1,)


def test_attention_has_a_unit_for_each_output_of_a_head():
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=3)
    x = tf.zeros((1, 4, 5))
    attention(x, x)
    _owners.tell(attention)
    axes = {
        v.path.split("/", 1)[1]: unit_axes(v, _owners.layer_of(v))
        for v in attention.trainable_variables
    }
    assert axes["query/kernel"] == axes["key/kernel"] == axes["value/kernel"] == (0,)
    assert axes["attention_output/kernel"] == (0, 1)
    assert axes["query/bias"] == (0, 1)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.LSTM(4), (6, 3)),
        (lambda: layers.GRU(4), (6, 3)),
        (lambda: layers.SeparableConv2D(4, 3), (5, 5, 2)),
        (lambda: layers.LayerNormalization(axis=(1, 2)), (3, 4)),
        (lambda: layers.BatchNormalization(), (4,)),
    ],
)
def test_the_rest_by_name_and_shape(layer, shape):
    layer = layer()
    layer(tf.zeros((2, *shape)))
    _owners.tell(layer)
    for v in layer.trainable_variables:
        axes = unit_axes(v, _owners.layer_of(v))
        if v.name in ("kernel", "recurrent_kernel", "pointwise_kernel"):
            assert axes == tuple(range(len(v.shape) - 1))
        elif v.name == "depthwise_kernel":
            assert axes == (0, 1)
        else:  # biases and gains, also GRU's of two rows
            assert axes == tuple(range(len(v.shape)))


def test_a_variable_without_a_layer_goes_by_its_shape():
    variable = keras.Variable(np.zeros((3, 4)), name="w")
    assert _owners.layer_of(variable) is None
    assert unit_axes(variable) == (0,)
