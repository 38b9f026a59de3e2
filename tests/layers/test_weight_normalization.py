import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep.errors import DataError, ModelError
from tfdeep.layers import WeightNormalization

GOLDEN = np.load(
    pathlib.Path(__file__).parents[1] / "goldens/tfa/weight_normalization.npz"
)
RNG = np.random.default_rng(0)


def data(*shape, mean=0.5, std=2.0):
    return RNG.normal(mean, std, shape).astype("float32")


def start(layer, x):
    """The layer wrapped and called, with lengths, directions and biases of its own."""
    wrapped = WeightNormalization(layer)
    wrapped(x)
    for variable in wrapped.trainable_variables:
        variable.assign(RNG.uniform(0.5, 1.5, variable.shape))
    return wrapped


def values_of(wrapped):
    return {v.name: v.numpy().astype("float64") for v in wrapped.weights}


def normed(v, g, axes):
    """g v / ||v|| by the paper's equation 2, the units' axes left in place."""
    norm = np.sqrt((v.astype("float64") ** 2).sum(axis=axes, keepdims=True))
    return v / norm * np.expand_dims(g.astype("float64"), axes)


# The kind of layer, its input, and the axes of a unit's weights in each kernel.
KINDS = {
    "Dense": (lambda: layers.Dense(5), (6, 7), {"kernel": 0}),
    "Dense of sequences": (lambda: layers.Dense(5), (6, 3, 7), {"kernel": 0}),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,cde->abed", (None, 4, 2), bias_axes="ed"),
        (6, 3, 5),
        {"kernel": 0},
    ),
    "Conv1D": (lambda: layers.Conv1D(4, 3), (6, 9, 5), {"kernel": (0, 1)}),
    "Conv2D": (lambda: layers.Conv2D(4, 3), (6, 7, 7, 3), {"kernel": (0, 1, 2)}),
    "Conv2D in groups": (
        lambda: layers.Conv2D(4, 3, groups=2),
        (6, 7, 7, 6),
        {"kernel": (0, 1, 2)},
    ),
    "Conv3D": (
        lambda: layers.Conv3D(4, 2),
        (6, 4, 4, 4, 3),
        {"kernel": (0, 1, 2, 3)},
    ),
    "Conv1DTranspose": (
        lambda: layers.Conv1DTranspose(4, 3),
        (6, 9, 5),
        {"kernel": (0, 2)},
    ),
    "Conv2DTranspose": (
        lambda: layers.Conv2DTranspose(4, 3, strides=2),
        (6, 5, 5, 3),
        {"kernel": (0, 1, 3)},
    ),
    "Conv3DTranspose": (
        lambda: layers.Conv3DTranspose(4, 2),
        (6, 4, 4, 4, 3),
        {"kernel": (0, 1, 2, 4)},
    ),
    "DepthwiseConv1D": (
        lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
        (6, 9, 5),
        {"kernel": 0},
    ),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        (6, 7, 7, 3),
        {"kernel": (0, 1)},
    ),
    "SeparableConv1D": (
        lambda: layers.SeparableConv1D(4, 3, depth_multiplier=2),
        (6, 9, 5),
        {"depthwise_kernel": 0, "pointwise_kernel": (0, 1)},
    ),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(4, 3, depth_multiplier=2),
        (6, 7, 7, 3),
        {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2)},
    ),
    "SimpleRNN": (
        lambda: layers.SimpleRNN(4),
        (6, 5, 3),
        {"kernel": 0, "recurrent_kernel": 0},
    ),
    "GRU": (lambda: layers.GRU(4), (6, 5, 3), {"kernel": 0, "recurrent_kernel": 0}),
    "LSTM": (lambda: layers.LSTM(4), (6, 5, 3), {"kernel": 0, "recurrent_kernel": 0}),
}
FEED_FORWARD = [kind for kind in KINDS if kind not in ("SimpleRNN", "GRU", "LSTM")]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_the_layer_computes_with_g_v_by_the_norm_of_v(kind):
    make, shape, axes = KINDS[kind]
    x = data(*shape)
    wrapped = start(make(), x)
    values = values_of(wrapped)
    plain = make()
    plain.build(x.shape)
    weights = []
    for variable in plain.weights:
        value = values[variable.name]
        if variable.name in axes:
            g = values[f"{variable.name}_g"]
            value = normed(value, g, axes[variable.name])
            norms = np.sqrt((value**2).sum(axis=axes[variable.name]))
            np.testing.assert_allclose(norms, g)
        weights.append(value)
    plain.set_weights(weights)
    assert len(values) == len(plain.weights) + len(axes)
    np.testing.assert_allclose(wrapped(x), plain(x), rtol=2e-5, atol=2e-5)


@each_kind
def test_at_the_start_it_computes_what_the_layer_did(kind):
    make, shape, _ = KINDS[kind]
    x = data(*shape)
    layer = make()
    expected = layer(x)
    np.testing.assert_allclose(WeightNormalization(layer)(x), expected, atol=1e-5)


@each_kind
def test_gradients_are_those_of_the_paper(kind):
    """Equation 3, from the gradient with respect to w of a plain layer."""
    make, shape, axes = KINDS[kind]
    x = data(*shape)
    wrapped = start(make(), x)
    plain = wrapped.fold()
    for layer in (wrapped, plain):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(x)))
        variables = layer.trainable_variables
        gradients = tape.gradient(loss, variables)
        found = {v.name: g.numpy() for v, g in zip(variables, gradients, strict=True)}
        if layer is wrapped:
            ours = found
    values = values_of(wrapped)
    for name, axis in axes.items():
        v, of_w = values[name], found[name]
        norm = np.sqrt((v**2).sum(axis=axis, keepdims=True))
        g = np.expand_dims(values[f"{name}_g"], axis)
        of_g = (of_w * v).sum(axis=axis, keepdims=True) / norm
        of_v = g / norm * of_w - g * of_g / norm**2 * v
        scale = np.abs(of_w).max()
        np.testing.assert_allclose(
            ours[f"{name}_g"], of_g.squeeze(axis), atol=1e-4 * scale
        )
        np.testing.assert_allclose(ours[name], of_v, atol=1e-4 * scale)
        along = (ours[name] * v).sum(axis=axis)
        np.testing.assert_allclose(along, 0, atol=1e-4 * scale)


@each_kind
def test_folded_it_computes_the_same(kind):
    make, shape, _ = KINDS[kind]
    x = data(*shape)
    wrapped = start(make(), x)
    plain = wrapped.fold()
    assert type(plain) is type(wrapped.layer)
    assert plain.name == wrapped.layer.name
    assert plain.get_config() == wrapped.layer.get_config()
    np.testing.assert_allclose(plain(x), wrapped(x), rtol=1e-5, atol=1e-5)
    assert not {id(v) for v in plain.weights} & {id(v) for v in wrapped.weights}


@pytest.mark.parametrize("kind", ["dense", "conv2d", "conv1d"])
def test_values_and_gradients_are_those_of_tensorflow_addons(kind):
    layer = {
        "dense": layers.Dense(5),
        "conv2d": layers.Conv2D(4, 3),
        "conv1d": layers.Conv1D(4, 3, padding="same"),
    }[kind]
    golden = {
        name.removeprefix(f"{kind}_"): GOLDEN[name]
        for name in GOLDEN
        if name.startswith(f"{kind}_")
    }
    wrapped = WeightNormalization(layer)
    wrapped(golden["x"])
    by_name = {v.name: v for v in wrapped.weights}
    by_name["kernel"].assign(golden["v"])
    by_name["kernel_g"].assign(golden["g"])
    by_name["bias"].assign(golden["bias"])
    with tf.GradientTape() as tape:
        y = wrapped(golden["x"])
        loss = tf.reduce_sum(tf.square(y))
    np.testing.assert_allclose(y, golden["y"], atol=1e-5)
    of_g, of_v = tape.gradient(loss, [by_name["kernel_g"], by_name["kernel"]])
    np.testing.assert_allclose(of_g, golden["gradient_g"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(of_v, golden["gradient_v"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_layers_are_those_of_tensorflow_addons(kind):
    """Which normalizes the recurrent kernel only; the other gets g = ||v|| here."""
    wrapped = WeightNormalization({"lstm": layers.LSTM, "gru": layers.GRU}[kind](4))
    x = GOLDEN[f"{kind}_x"]
    wrapped(x)
    by_name = {v.name: v for v in wrapped.weights}
    kernel = GOLDEN[f"{kind}_kernel"]
    by_name["kernel"].assign(kernel)
    by_name["kernel_g"].assign(np.linalg.norm(kernel, axis=0))
    by_name["recurrent_kernel"].assign(GOLDEN[f"{kind}_v"])
    by_name["recurrent_kernel_g"].assign(GOLDEN[f"{kind}_g"])
    by_name["bias"].assign(GOLDEN[f"{kind}_bias"])
    np.testing.assert_allclose(wrapped(x), GOLDEN[f"{kind}_y"], atol=1e-5)


class TestAdapt:
    @pytest.mark.parametrize("kind", FEED_FORWARD)
    def test_outputs_get_mean_0_and_deviation_1(self, kind):
        make, shape, _ = KINDS[kind]
        x = data(64, *shape[1:], mean=2.0, std=5.0)
        wrapped = start(make(), x)
        wrapped.adapt(x)
        y = wrapped(x).numpy().astype("float64")
        units = (2, 3) if kind == "EinsumDense" else (y.ndim - 1,)
        others = tuple(i for i in range(y.ndim) if i not in units)
        assert np.abs(y.mean(axis=others)).max() < 1e-5
        assert np.abs(y.std(axis=others) - 1).max() < 1e-4

    @pytest.mark.parametrize(
        ("initializer", "theirs"), [("glorot", 1.23), ("he", 0.71), ("normal", 3.71)]
    )
    def test_where_tensorflow_addons_does_not(self, initializer, theirs):
        x = GOLDEN["start_x"]
        assert round(float(GOLDEN[f"start_{initializer}_std"]), 2) == theirs
        wrapped = WeightNormalization(layers.Dense(64))
        wrapped(x)
        wrapped.layer.kernel.assign(GOLDEN[f"start_{initializer}_v"])
        wrapped.adapt(x)
        y = wrapped(x).numpy()
        assert abs(y.std() - 1) < 1e-5
        assert np.abs(y.mean(axis=0)).max() < 1e-5
        assert GOLDEN[f"start_{initializer}_largest_mean"] > 0.03

    def test_directions_stay_and_the_activation_is_left_out(self):
        x = data(64, 8)
        layer = layers.Dense(5, activation="relu")
        wrapped = WeightNormalization(layer)
        wrapped(x)
        v = layer.kernel.numpy()
        wrapped.adapt(x)
        np.testing.assert_array_equal(layer.kernel, v)
        assert layer.activation is keras.activations.relu
        y = wrapped(x).numpy()
        z = x @ wrapped.fold().kernel.numpy() + layer.bias.numpy()
        np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)
        np.testing.assert_allclose(y, np.maximum(z, 0), atol=1e-5)

    def test_again_it_gives_the_same(self):
        x = data(64, 8)
        wrapped = WeightNormalization(layers.Dense(5))
        wrapped.adapt(x)
        before = wrapped.get_weights()
        wrapped.adapt(x)
        for a, b in zip(before, wrapped.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)

    def test_without_a_bias_the_deviation_is_1(self):
        x = data(64, 8, mean=3.0)
        wrapped = WeightNormalization(layers.Dense(5, use_bias=False))
        wrapped.adapt(x)
        y = wrapped(x).numpy()
        np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-4)
        assert np.abs(y.mean(axis=0)).max() > 0.1

    def test_in_mixed_precision(self):
        x = data(256, 8)
        wrapped = WeightNormalization(layers.Dense(5, dtype="mixed_float16"))
        wrapped.adapt(x)
        y = wrapped(x).numpy().astype("float64")
        np.testing.assert_allclose(y.mean(axis=0), 0, atol=2e-3)
        np.testing.assert_allclose(y.std(axis=0), 1, atol=2e-3)

    def test_a_unit_that_is_constant_stays(self):
        x = data(64, 8)
        x[:, 0] = 1.0
        wrapped = WeightNormalization(layers.Dense(2))
        wrapped(x)
        kernel = np.zeros((8, 2), "float32")
        kernel[0, 0] = kernel[1, 1] = 3.0
        wrapped.layer.kernel.assign(kernel)
        g = next(v for v in wrapped.weights if v.name == "kernel_g")
        g.assign([5.0, 5.0])
        wrapped.layer.bias.assign([7.0, 7.0])
        wrapped.adapt(x)
        assert float(g.numpy()[0]) == 5.0
        assert float(wrapped.layer.bias.numpy()[0]) == 7.0
        np.testing.assert_allclose(wrapped(x).numpy()[:, 1].std(), 1, atol=1e-4)

    @pytest.mark.parametrize("x", [np.ones((8, 3)), np.full((8, 3), np.nan)])
    def test_data_that_tells_nothing_is_refused(self, x):
        wrapped = WeightNormalization(layers.Dense(2))
        wrapped(x)
        before = wrapped.get_weights()
        with pytest.raises(DataError, match="nothing was changed"):
            wrapped.adapt(x)
        for a, b in zip(before, wrapped.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_layers_without_such_a_start_are_refused(self):
        for layer in (layers.LSTM(3), layers.Bidirectional(layers.GRU(3))):
            with pytest.raises(ModelError, match="dense or convolution"):
                WeightNormalization(layer).adapt(data(4, 5, 3))
        layer = layers.EinsumDense("abc,cde->abde", (None, 4, 2), bias_axes="e")
        with pytest.raises(ModelError, match="a bias for each unit"):
            WeightNormalization(layer).adapt(data(4, 3, 5))

    def test_a_network_is_adapted_layer_by_layer(self):
        batch = data(256, 8, std=10.0)
        model = keras.Sequential(
            [WeightNormalization(layers.Dense(20, "tanh")) for _ in range(10)]
        )
        x = batch
        for layer in model.layers:
            layer.adapt(x)
            x = layer(x)
            assert 0.5 < x.numpy().std() < 0.75  # of tanh(z), z ~ N(0, 1): 0.628
        np.testing.assert_allclose(model(batch), x, atol=1e-6)


class TestInAModel:
    def model(self, dtype=None):
        inputs = keras.Input((8, 8, 3))
        make = WeightNormalization
        x = make(layers.Conv2D(6, 3, activation="relu", dtype=dtype))(inputs)
        x = make(layers.DepthwiseConv2D(3, dtype=dtype))(x)
        x = layers.Reshape((4, -1))(x)
        x = make(layers.LSTM(5, dropout=0.2, seed=1, dtype=dtype))(x)
        return keras.Model(inputs, make(layers.Dense(3, dtype=dtype))(x))

    def fit(self, model, **arguments):
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(32, 8, 8, 3)), rng.integers(0, 3, 32)
        model.compile(keras.optimizers.SGD(0.1), nets.LOSS, **arguments)
        return model.fit(x, y, batch_size=8, epochs=3, verbose=0).history["loss"]

    def test_lengths_and_directions_train(self):
        model = self.model()
        before = nets.weights_of(model)
        losses = self.fit(model)
        after = nets.weights_of(model)
        assert losses[-1] < losses[0]
        for path, value in before.items():
            assert (value != after[path]).any(), path
        assert len(before) == len(model.weights)  # each has a path of its own

    def test_xla_trains_the_same(self):
        models = []
        for _ in range(2):
            inputs = keras.Input((8, 8, 3))
            x = WeightNormalization(layers.Conv2D(6, 3, activation="relu"))(inputs)
            x = WeightNormalization(layers.DepthwiseConv2D(3))(x)
            x = WeightNormalization(layers.Dense(3))(layers.Flatten()(x))
            models.append(keras.Model(inputs, x))
        models[1].set_weights(models[0].get_weights())
        for model, jit in zip(models, (False, True), strict=True):
            self.fit(model, jit_compile=jit)
        assert nets.largest_difference(*models) < 1e-5

    def test_what_the_layer_draws_goes_on(self):
        model = self.model()
        x = data(2, 8, 8, 3)
        first, second = model(x, training=True), model(x, training=True)
        assert np.abs(first - second).max() > 1e-6

    def test_the_losses_of_the_layer_count(self):
        regularizer = keras.regularizers.L2(0.1)
        plain = layers.Dense(3, activity_regularizer=regularizer)
        x, y, losses = data(4, 5), np.zeros((4, 3)), []
        plain.build((None, 5))
        for layer in (plain, WeightNormalization(plain)):
            model = keras.Sequential([keras.Input((5,)), layer])
            model.compile(keras.optimizers.SGD(0.0), lambda y, z: 0.0 * z)
            losses += model.fit(x, y, verbose=0).history["loss"]
        assert losses[0] > 0.01
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)

    def test_mixed_precision_keeps_the_norm_exact(self):
        wrapped = WeightNormalization(layers.Dense(4, dtype="mixed_float16"))
        x = data(6, 8).astype("float16")
        wrapped(x)
        kernel = data(8, 4)
        for scale in (1e-12, 1.0, 1e12):  # beyond what float16 holds
            wrapped.layer.kernel.assign(kernel * scale)
            y = wrapped(x)
            assert y.dtype == tf.float16
            g = values_of(wrapped)["kernel_g"]
            expected = x.astype("float64") @ normed(kernel, g, 0)
            np.testing.assert_allclose(y, expected, rtol=5e-3, atol=1e-2)
        assert {v.dtype for v in wrapped.variables} == {"float32"}

    def test_inside_a_stateless_call_of_the_model(self):
        model = self.model()
        doubled = [v.value * 2 for v in model.trainable_variables]
        rest = [v.value for v in model.non_trainable_variables]
        x = data(2, 8, 8, 3)
        y, _ = model.stateless_call(doubled, rest, x)
        for variable, value in zip(model.trainable_variables, doubled, strict=True):
            variable.assign(value)
        np.testing.assert_allclose(y, model(x), atol=1e-5)

    def test_masks_pass(self):
        embedded = layers.Embedding(7, 3, mask_zero=True)(
            np.array([[1, 2, 0], [3, 0, 0]])
        )
        layer = layers.LSTM(4, return_sequences=True)
        expected = layer(embedded)
        wrapped = WeightNormalization(layer)
        y = wrapped(embedded)
        np.testing.assert_allclose(y, expected, atol=1e-6)
        other = wrapped(tf.identity(embedded))  # without the mask
        assert np.abs(y - other).max() > 1e-6
        mask = np.array([[True, False, False], [True, True, True]])
        x = tf.identity(embedded)
        expected = wrapped.fold()(x, mask=mask)
        np.testing.assert_allclose(wrapped(x, mask=mask), expected, atol=1e-6)
        expected = [[True, True, False], [True, False, False]]
        np.testing.assert_array_equal(y._keras_mask, expected)

    def test_initial_states_and_several_outputs(self):
        x, state = data(2, 3, 5), [data(2, 4), data(2, 4)]
        layer = layers.LSTM(4, return_state=True)
        expected = layer(x, initial_state=state)
        found = WeightNormalization(layer)(x, initial_state=state)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        outputs = WeightNormalization(layers.LSTM(4, return_state=True))(
            keras.Input((3, 5))
        )
        assert [o.shape for o in outputs] == [(None, 4)] * 3

    def test_layers_of_layers(self):
        x = data(2, 3, 5)
        for layer, kernels in (
            (layers.Bidirectional(layers.LSTM(4)), 4),
            (layers.TimeDistributed(layers.Dense(4)), 1),
        ):
            expected = layer(x)
            wrapped = WeightNormalization(layer)
            np.testing.assert_allclose(wrapped(x), expected, atol=1e-6)
            lengths = [v.path for v in wrapped.weights if "_g" in v.name]
            assert len(set(lengths)) == len(lengths) == kernels
            np.testing.assert_allclose(wrapped.fold()(x), expected, atol=1e-6)

    def test_a_kernel_of_zeros_gives_zeros_and_finite_gradients(self):
        wrapped = WeightNormalization(layers.Dense(2, kernel_initializer="zeros"))
        x = data(3, 4)
        with tf.GradientTape() as tape:
            y = wrapped(x)
            loss = tf.reduce_sum(y)
        np.testing.assert_array_equal(y, 0)
        for gradient in tape.gradient(loss, wrapped.trainable_variables):
            assert np.isfinite(gradient).all()


class TestRefusals:
    def test_layers_without_a_kernel(self):
        for layer in (layers.ReLU(), layers.Embedding(3, 2)):
            with pytest.raises(ModelError, match="finds no kernel"):
                WeightNormalization(layer)(np.ones((2, 3), "int32"))

    def test_lora(self):
        layer = layers.Dense(3)
        layer.build((None, 4))
        layer.enable_lora(2)
        with pytest.raises(ModelError, match="without LoRA"):
            WeightNormalization(layer)(data(2, 4))

    def test_folding_what_has_no_weights(self):
        with pytest.raises(ModelError, match="not built"):
            WeightNormalization(layers.Dense(3)).fold()
