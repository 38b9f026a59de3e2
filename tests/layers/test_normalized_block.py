import keras
import numpy as np
import pytest
from keras import layers

from tfdeep.errors import InvalidArgumentError
from tfdeep.layers import NormalizedBlock

X = np.random.default_rng(0).normal(2, 3, (64, 8)).astype("float32")


def test_it_normalizes_before_the_activation():
    """The paper's algorithm 1 in float64, with Keras' epsilon inside the root."""
    block = NormalizedBlock(layers.Dense(5, activation="relu"))
    y = block(X, training=True)
    z = X.astype("float64") @ block.layer.kernel.numpy()
    normalized = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-3)
    np.testing.assert_allclose(y, np.maximum(normalized, 0), atol=1e-5)
    moved = block.normalization.moving_mean.numpy()
    np.testing.assert_allclose(moved, 0.01 * z.mean(axis=0), atol=1e-5)


def test_the_numbers_of_weights_are_those_of_the_book():
    """784-300-100-10, normalized first: 271,346, of which 2,368 are not trained.

    The book keeps the two useless biases, of 300 and 100.
    """
    model = keras.Sequential([keras.Input((784,)), layers.BatchNormalization()])
    for units in (300, 100):
        model.add(NormalizedBlock(layers.Dense(units, activation="elu")))
    model.add(layers.Dense(10, activation="softmax"))
    assert model.count_params() == 271_346 - 400
    trained = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert model.count_params() - trained == 2_368


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda **k: layers.Dense(5, **k), (8,)),
        (lambda **k: layers.Conv2D(5, 3, **k), (6, 6, 2)),
        (lambda **k: layers.Conv1DTranspose(5, 3, **k), (6, 2)),
        (lambda **k: layers.DepthwiseConv2D(3, **k), (6, 6, 2)),
        (lambda **k: layers.SeparableConv2D(5, 3, **k), (6, 6, 2)),
        (
            lambda **k: layers.EinsumDense(
                "abc,cd->abd", (None, 5), bias_axes="d", **k
            ),
            (4, 8),
        ),
    ],
)
def test_it_is_the_three_layers_one_after_another(layer, shape):
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    layer = layer(activation="tanh")
    if isinstance(layer, layers.EinsumDense):
        layer.bias_axes = "d"
    block = NormalizedBlock(layer)
    y = block(x, training=True)
    assert block.layer.bias is None
    z = block.layer(x)
    expected = keras.activations.tanh(block.normalization(z, training=True))
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("normalization", "has_bias"),
    [
        (None, False),
        (lambda: layers.BatchNormalization(center=False), False),
        (lambda: layers.GroupNormalization(-1), False),
        (lambda: layers.GroupNormalization(2), True),
        (lambda: layers.LayerNormalization(), True),
    ],
)
def test_only_a_bias_in_vain_is_dropped(normalization, has_bias):
    """In vain: adding to it changes nothing that comes out."""
    layer = layers.Conv2D(4, 3, activation="relu")
    block = NormalizedBlock(layer, normalization and normalization())
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    y = block(x, training=True)
    assert block.layer.use_bias is has_bias
    z = block.layer(x) + np.array([1.0, -2.0, 3.0, 4.0], "float32")
    moved = keras.activations.relu(block.normalization(z, training=True))
    assert (np.abs(moved - y).max() > 0.01) is np.bool_(has_bias)


def test_the_layer_given_stays_and_the_activation_may_be_given_apart():
    layer = layers.Dense(5, activation="relu", kernel_initializer="he_normal")
    block = NormalizedBlock(layer)
    assert layer.activation is keras.activations.relu
    assert layer.use_bias
    assert block.activation is keras.activations.relu
    assert type(block.layer.kernel_initializer) is keras.initializers.HeNormal
    apart = NormalizedBlock(layers.Dense(5), activation="elu")
    assert apart.activation is keras.activations.elu
    bare = layers.Dense(5, use_bias=False)
    bare.build((None, 8))
    assert NormalizedBlock(bare, activation="relu").layer is bare


def test_what_cannot_work_is_refused():
    built = layers.Dense(3)
    built.build((None, 2))
    for arguments in (
        (layers.ReLU(),),
        (layers.LSTM(3),),
        (layers.Dense(3, activation="relu"), None, "elu"),
        (built,),
    ):
        with pytest.raises(InvalidArgumentError, match="cannot put a normalization"):
            NormalizedBlock(*arguments)
