import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tfdeep._keras import _owners
from tfdeep._keras._layer_facts import (
    ACTIVATIONS,
    Shape,
    activation,
    activation_name,
    is_normalization,
    kernel_axes,
    unit_axes,
)

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


# Activations: each fact of the table against Keras' function, in float64.

Z = np.linspace(-12, 12, 240_001)
DENSITY = np.exp(-(Z**2) / 2) / np.sqrt(2 * np.pi)


def values_of(name):
    """An activation on Z as rows of one unit, and its slopes."""
    x = tf.constant(Z[:, None])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = keras.activations.get(name)(x)
    return y.numpy()[:, 0], tape.gradient(y, x).numpy()[:, 0]


ELEMENT_WISE = [n for n, a in ACTIVATIONS.items() if a.shape is not Shape.MIXING]


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_the_shape_of_an_activation(name):
    y, slope = values_of(name)
    known = ACTIVATIONS[name]
    # Slopes below .01 pass on almost nothing; softsign gets there at 9.
    flat_below, flat_above = (np.abs(slope[[0, -1]]) < 0.01).tolist()
    assert known.can_die == (flat_below and (not flat_above or name == "relu6"))
    assert known.saturates == (flat_below and flat_above and name != "relu6")
    assert (known.shape is Shape.LINEAR) == bool(np.all(slope == 1))
    assert known.has_slopes == (known.shape is not Shape.LINEAR)
    if known.saturates:
        assert known.is_positive == bool((y >= 0).all())
    np.testing.assert_allclose(keras.activations.get(name)(Z[:8])[3], y[3], rtol=1e-6)


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_what_an_activation_leaves_of_the_scale(name):
    y, _ = values_of(name)
    rms = np.sqrt(np.sum(y**2 * DENSITY) * (Z[1] - Z[0]))
    assert ACTIVATIONS[name].rms == pytest.approx(rms, abs=6e-4)


# Keras' own sparsemax gives zeros where some versions should not.
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "glu"])
def test_what_mixes_its_inputs(name):
    function = keras.activations.get(name)
    x = np.array([[0.5, 0.2, 0.4, 0.3]])
    changed = x + np.array([[0, 0, 0, 0.2]])
    assert not np.allclose(function(x)[0, :2], function(changed)[0, :2])
    assert not ACTIVATIONS[name].has_slopes


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_the_initializer_keeps_the_scale_best(name):
    """Of He's, LeCun's and Glorot's scale; Glorot's where units are linear near 0."""
    known = ACTIVATIONS[name]
    if known.saturates or known.shape is Shape.LINEAR:
        assert known.initializer == "glorot_normal"
    elif known.rms == 1:  # the scale is kept with weights of variance 1 / fan_in
        assert known.initializer == "lecun_normal"
    else:  # with about 2 / fan_in
        assert known.initializer == "he_normal"
        assert abs(2 * known.rms**2 - 1) < abs(known.rms**2 - 1)


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (keras.activations.relu, "relu"),
        (keras.activations.get("swish"), "silu"),
        (keras.activations.get(None), "linear"),
        (layers.ReLU(), "relu"),
        (layers.ReLU(negative_slope=0.1), "leaky_relu"),
        (layers.LeakyReLU(), "leaky_relu"),
        (layers.PReLU(), "leaky_relu"),
        (tfdeep.layers.RReLU(), "leaky_relu"),
        (layers.ELU(), "elu"),
        (layers.Softmax(), "softmax"),
        (layers.Activation("tanh"), "tanh"),
        (layers.Dense(2), "linear"),
        (layers.Dense(2, "gelu"), "gelu"),
        (layers.Dense(2, layers.LeakyReLU()), "leaky_relu"),
        (layers.LSTM(2), "tanh"),
        (layers.Dropout(0.5), None),
        (layers.BatchNormalization(), None),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_activation_has_one_name(of, name):
    assert activation_name(of) == name


def test_a_function_of_your_own_is_unknown():
    def own(x):
        return x

    assert activation_name(own) == "own"
    assert activation("own").shape is Shape.UNKNOWN
    assert activation("own").has_slopes and not activation("own").can_die
    assert activation("swish") == activation("silu")


# Fans: how many inputs an output sums over, and how many outputs an input reaches.


@pytest.mark.parametrize("kind", LAYERS)
def test_the_fans_are_what_the_layer_does(kind):
    make, shape, feature_axes = LAYERS[kind]
    layer = make()
    x = tf.random.stateless_uniform((1, *shape), [1, 2], 0.5, 1.5)
    layer(x)
    kernel = layer.kernel
    axes = kernel_axes("kernel", len(kernel.shape), layer)
    assert axes.rank == len(kernel.shape)
    fan_in, fan_out = axes.fans(kernel.shape)
    # Each weight joins one input of the window with one output of a unit.
    units = np.prod(layer(x).shape[-feature_axes:])
    assert fan_in * units == np.prod(kernel.shape)
    given = shape[-1] if kind != "einsum from heads" else np.prod(shape[-2:])
    assert fan_out * given == np.prod(kernel.shape)


def test_what_the_shape_alone_does_not_tell():
    assert kernel_axes("kernel", 4) is None
    assert kernel_axes("depthwise_kernel", 4).unit == (0, 1)
    assert kernel_axes("recurrent_kernel", 2).fans((3, 5)) == (3, 5)
    assert kernel_axes("embeddings", 2).fans((100, 5)) == (1, 5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BatchNormalization", True),
        ("RMSNormalization", True),
        ("WeightNormalization", False),
        ("SpectralNormalization", False),
        ("LocalResponseNormalization", False),
        ("Dense", False),
    ],
)
def test_which_layers_bring_inputs_to_a_fixed_scale(kind, expected):
    assert is_normalization(kind) == expected
