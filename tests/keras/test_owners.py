"""Who tells whose a variable is, and what is not known."""

import gc

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tfdeep._keras import _owners
from tfdeep.errors import ModelError


def kernel_of_a_transposed_convolution():
    layer = layers.Conv2DTranspose(2, 3)
    layer.build((None, 5, 5, 4))
    return layer, layer.kernel


def test_a_variable_that_nobody_told_has_no_known_layer():
    _, kernel = kernel_of_a_transposed_convolution()
    assert _owners.layer_of(kernel) is None


def test_a_model_tells_the_variables_of_all_its_layers():
    model = nets.nested()
    _owners.tell(model)
    for variable in model.trainable_variables:
        owner = _owners.layer_of(variable)
        assert any(v is variable for v in owner.trainable_variables)


def test_a_variable_does_not_keep_its_layer_alive():
    layer, kernel = kernel_of_a_transposed_convolution()
    _owners.tell(layer)
    assert _owners.layer_of(kernel) is layer
    del layer
    gc.collect()
    assert _owners.layer_of(kernel) is None


def test_the_model_in_training_is_found_through_optimizers_around():
    inner, other = keras.optimizers.SGD(), keras.optimizers.SGD()
    seen = []

    class Model(keras.Sequential):
        def train_step(self, data):
            seen.append(_owners.model_in_training(inner))
            seen.append(_owners.model_in_training(other))
            return super().train_step(data)

    model = Model([keras.Input((2,)), layers.Dense(1)])
    model.compile(keras.optimizers.LossScaleOptimizer(inner), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert seen[0] is model
    assert seen[1] is None


class TestALayerThatIsNotKnown:
    """Guessing the axes would clip or bound by other weights than those of a unit."""

    def test_adaptive_clip(self):
        _, kernel = kernel_of_a_transposed_convolution()
        optimizer = tfdeep.optimizers.AdaptiveClip(keras.optimizers.SGD(1.0))
        before = kernel.numpy()
        with pytest.raises(ModelError, match=r"bind\(model\)"):
            optimizer.apply([keras.ops.ones(kernel.shape)], [kernel])
        np.testing.assert_array_equal(kernel, before)

    def test_adaptive_clip_that_is_told(self):
        layer, kernel = kernel_of_a_transposed_convolution()
        optimizer = tfdeep.optimizers.AdaptiveClip(keras.optimizers.SGD(1.0))
        optimizer.bind(keras.Sequential([layer]))
        weights = kernel.numpy().astype("float64")
        optimizer.apply([keras.ops.ones(kernel.shape)], [kernel])
        length = np.sqrt((weights**2).sum((0, 1, 3), keepdims=True))
        step = 0.01 * np.maximum(length, 1e-3) / np.sqrt(3 * 3 * 4)
        np.testing.assert_allclose(kernel, weights - step, rtol=1e-5)

    def test_fan_in_max_norm(self):
        _, kernel = kernel_of_a_transposed_convolution()
        with pytest.raises(ModelError, match="axis"):
            tfdeep.constraints.FanInMaxNorm(0.1)(kernel)

    def test_a_dense_kernel_leaves_no_doubt(self):
        kernel = keras.Variable(np.ones((4, 2)), name="kernel")
        bounded = tfdeep.constraints.FanInMaxNorm(1.0)(kernel)
        np.testing.assert_allclose(bounded, np.full((4, 2), 0.5))
