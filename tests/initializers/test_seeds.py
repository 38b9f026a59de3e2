"""Layers that share an initializer differ; programs that run again do not."""

import keras
import numpy as np
import pytest
from keras import layers

from tfdeep import initializers


def two_dense(draw):
    found = []
    for _ in range(2):
        layer = layers.Dense(4, kernel_initializer=draw)
        layer.build((None, 4))
        found.append(layer.kernel.numpy())
    return found


@pytest.mark.parametrize("seed", [None, 0, 12])
def test_layers_that_share_an_instance_differ(seed):
    first, second = two_dense(initializers.HeNormal(seed))
    assert not np.allclose(first, second)


def test_a_seed_makes_the_same_net_again():
    runs = [two_dense(initializers.HeNormal(12)) for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], two_dense(initializers.HeNormal(13)))


def test_set_random_seed_governs_those_without_a_seed():
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        runs.append(two_dense(initializers.HeNormal()))
    np.testing.assert_array_equal(runs[0], runs[1])


def test_named_layers_do_not_depend_on_the_order_in_which_they_are_built():
    kernels = []
    for order in ("ab", "ba"):
        draw = initializers.HeNormal(3)
        made = {
            name: layers.Dense(4, kernel_initializer=draw, name=name) for name in order
        }
        for layer in made.values():
            layer.build((None, 4))
        kernels.append([made[name].kernel.numpy() for name in "ab"])
    np.testing.assert_array_equal(kernels[0], kernels[1])


def test_attention_layers_that_share_an_instance_differ_in_all_their_kernels():
    draw = initializers.XavierUniform(1)  # Keras copies it for each kernel
    x = keras.Input((5, 16))
    y = x
    for _ in range(2):
        y = layers.MultiHeadAttention(4, 4, kernel_initializer=draw)(y, y)
    kernels = [w.numpy() for w in keras.Model(x, y).weights if w.name == "kernel"]
    assert len(kernels) == 8
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert a.shape != b.shape or not np.allclose(a, b)


def test_both_directions_differ():
    rnn = layers.LSTM(4, kernel_initializer=initializers.XavierUniform(1))
    layer = layers.Bidirectional(rnn)
    layer.build((None, 5, 3))
    assert not np.allclose(
        layer.forward_layer.cell.kernel, layer.backward_layer.cell.kernel
    )


def test_a_kernel_drawn_as_a_matrix_is_a_matrix():
    """An initializer of the user's own may draw another shape and make it fit."""
    draw = initializers.Orthogonal(seed=1)

    def flat(shape, dtype=None):
        return keras.ops.reshape(draw((shape[0], shape[1] * shape[2]), dtype), shape)

    layer = layers.EinsumDense("ab,bcd->acd", (2, 4), kernel_initializer=flat)
    layer.build((None, 8))
    matrix = layer.kernel.numpy().reshape(8, 8)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-6)
