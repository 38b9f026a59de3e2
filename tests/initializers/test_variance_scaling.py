"""Scales against the formulas of the papers, kernel by kernel."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfdeep import initializers
from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers import VarianceScaling

# std of N(0, 1) cut at -2 and 2: 1 - 2 * 2 * pdf(2) / (cdf(2) - cdf(-2)), rooted.
PDF2 = math.exp(-2) / math.sqrt(2 * math.pi)
TRUNCATED = math.sqrt(1 - 4 * PDF2 / math.erf(math.sqrt(2)))


def std(values):
    return float(np.std(np.asarray(values, "float64")))


def built(layer, *shape):
    layer.build((None, *shape))
    return {v.name: v for v in layer.weights}


def test_the_correction_for_the_truncation():
    assert pytest.approx(0.87962566103423978, rel=1e-12) == TRUNCATED
    values = VarianceScaling("linear", seed=3)((1000, 1000)).numpy()
    assert std(values) == pytest.approx(math.sqrt(1 / 1000), rel=5e-3)
    assert abs(values).max() <= 2 * math.sqrt(1 / 1000) / TRUNCATED
    assert abs(values).max() > 1.99 * math.sqrt(1 / 1000) / TRUNCATED


@pytest.mark.parametrize(
    ("activation", "sigma", "limit"),
    [
        ("sigmoid", 0.042954, 0.074398),
        ("tanh", 0.171815, 0.297592),
        ("relu", 0.060746, 0.105215),
    ],
)
def test_the_table_for_784_inputs_and_300_outputs(activation, sigma, limit):
    def values(distribution):
        draw = VarianceScaling(
            activation, distribution=distribution, convention="table", seed=1
        )
        return draw((784, 300)).numpy()

    assert std(values("truncated_normal")) == pytest.approx(sigma, rel=1e-2)
    assert std(values("untruncated_normal")) == pytest.approx(sigma, rel=1e-2)
    assert abs(values("untruncated_normal")).max() > 4 * sigma
    uniform = values("uniform")
    assert std(uniform) == pytest.approx(limit / math.sqrt(3), rel=1e-2)
    assert 0.999 * limit < abs(uniform).max() <= limit * (1 + 1e-6)


def test_fan_in_mode():
    values = VarianceScaling("relu", mode="fan_in", seed=1)((784, 300))
    assert std(values) == pytest.approx(0.050508, rel=1e-2)


# Layer, input shape, variable, fan_in, fan_out.
KERNELS = {
    "dense": (layers.Dense(50), (40,), "kernel", 40, 50),
    "conv1d": (layers.Conv1D(32, 5), (9, 16), "kernel", 80, 160),
    "conv2d": (layers.Conv2D(32, 3), (9, 9, 16), "kernel", 144, 288),
    "conv3d": (layers.Conv3D(16, 2), (9, 9, 9, 8), "kernel", 64, 128),
    "channels first": (
        layers.Conv2D(32, 3, data_format="channels_first"), (16, 9, 9), "kernel",
        144, 288,
    ),
    "strided": (layers.Conv2D(32, 3, strides=2), (9, 9, 16), "kernel", 144, 288),
    "grouped": (layers.Conv2D(64, 3, groups=4), (9, 9, 32), "kernel", 72, 144),
    "grouped 1d": (layers.Conv1D(64, 3, groups=8), (9, 64), "kernel", 24, 24),
    "depthwise 1d": (layers.DepthwiseConv1D(7), (9, 512), "kernel", 7, 7),
    "depthwise 2d": (
        layers.DepthwiseConv2D(3, depth_multiplier=4), (9, 9, 128), "kernel", 9, 36,
    ),
    "transposed 1d": (layers.Conv1DTranspose(64, 5), (9, 16), "kernel", 80, 320),
    "transposed 2d": (layers.Conv2DTranspose(64, 3), (9, 9, 16), "kernel", 144, 576),
    "transposed 3d": (layers.Conv3DTranspose(4, 2), (5, 5, 5, 32), "kernel", 256, 32),
    "separable, depthwise": (
        layers.SeparableConv2D(64, 3, depth_multiplier=2), (9, 9, 256),
        "depthwise_kernel", 9, 18,
    ),
    "separable, pointwise": (
        layers.SeparableConv2D(64, 3, depth_multiplier=2), (9, 9, 64),
        "pointwise_kernel", 128, 64,
    ),
    "separable 1x1, depthwise": (
        layers.SeparableConv1D(64, 1, depth_multiplier=8), (9, 512),
        "depthwise_kernel", 1, 8,
    ),
    "embedding": (layers.Embedding(400, 16), (7,), "embeddings", 1, 16),
    "einsum": (
        layers.EinsumDense("abc,cde->abde", (None, 8, 16)), (5, 64), "kernel", 64, 128,
    ),
    "einsum with experts": (
        layers.EinsumDense("bec,ecd->bed", (8, 32)), (8, 64), "kernel", 64, 32,
    ),
    "einsum over two axes": (
        layers.EinsumDense("abde,dec->abc", (None, 64)), (5, 8, 16), "kernel", 128, 64,
    ),
    "lstm": (layers.LSTMCell(32), (64,), "kernel", 64, 128),
}  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_fans(kernel, mode):
    made, shape, variable, fan_in, fan_out = KERNELS[kernel]
    draw = VarianceScaling("relu", mode=mode, seed=7)
    config = made.get_config()
    for name in config:
        if name.endswith("_initializer") and not name.startswith("bias"):
            config[name] = draw
    values = built(type(made).from_config(config), *shape)[variable]
    n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    size = math.prod(values.shape)
    assert std(values) == pytest.approx(math.sqrt(2 / n), rel=4 / math.sqrt(size))


def test_what_goes_through_keeps_its_scale():
    """Not by a formula: with fan_in the mean square out is that of the input."""
    rng = np.random.default_rng(0)
    linear = VarianceScaling(mode="fan_in", seed=2)
    for layer, shape in (
        (layers.DepthwiseConv2D(3, depthwise_initializer=linear), (12, 12, 400)),
        (layers.Conv2D(64, 3, groups=8, kernel_initializer=linear), (12, 12, 64)),
        # "valid" pads a transposed convolution with zeros: only the middle counts.
        (layers.Conv2DTranspose(64, 3, kernel_initializer=linear), (12, 12, 32)),
        (
            layers.EinsumDense(
                "bij,jkl->bikl", (None, 16, 8), kernel_initializer=linear
            ),
            (50, 64),
        ),
    ):
        output = layer(rng.normal(size=(8, *shape)).astype("float32")).numpy()
        if isinstance(layer, layers.Conv2DTranspose):
            output = output[:, 2:-2, 2:-2]
        assert np.mean(output**2) == pytest.approx(1, rel=0.1)


class Deep(keras.Model):
    """Keras makes its variables while it asks for shapes, and their values later."""

    def __init__(self, draw):
        super().__init__()
        self.attention = layers.MultiHeadAttention(8, 16, kernel_initializer=draw)
        self.depthwise = layers.DepthwiseConv1D(3, depthwise_initializer=draw)

    def call(self, x):
        return self.depthwise(self.attention(x, x))


def as_called(model):
    model(np.zeros((2, 5, 64), "float32"))


def as_symbolic(model):
    model(keras.Input((5, 64)))


def inside_a_function(model):
    tf.function(lambda: model(tf.zeros((2, 5, 64))))()


@pytest.mark.parametrize("build", [as_called, as_symbolic, inside_a_function])
def test_layers_are_known_however_they_are_built(build):
    model = Deep(VarianceScaling("relu", mode="fan_in", seed=1))
    build(model)
    by_path = {v.path.partition("/")[2]: v for v in model.weights}
    attention = {
        path.split("/")[-2]: v for path, v in by_path.items() if path.endswith("kernel")
    }
    for name in ("query", "key", "value"):
        assert std(attention[name]) == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    expected = math.sqrt(2 / 128)
    assert std(attention["attention_output"]) == pytest.approx(expected, rel=0.05)
    depthwise = model.depthwise.kernel
    assert std(depthwise) == pytest.approx(math.sqrt(2 / 3), rel=0.2)
    assert not np.allclose(attention["query"], attention["key"])


def test_keras_reads_a_depthwise_kernel_wrong():
    """Why the layer is asked: 16 times too small (3x3, 256 channels)."""
    values = {}
    for draw in (keras.initializers.HeNormal(1), initializers.HeNormal(1)):
        layer = layers.DepthwiseConv2D(3, depthwise_initializer=draw)
        values[type(draw).__module__.split(".")[0]] = std(
            built(layer, 9, 9, 256)["kernel"]
        )
    assert values["keras"] == pytest.approx(0.0295, rel=0.1)
    assert values["tfdeep"] == pytest.approx(0.4714, rel=0.1)


class TestAmbiguousShapes:
    def test_without_a_layer(self):
        with pytest.raises(InvalidArgumentError, match="shape does not determine"):
            VarianceScaling("relu")((3, 3, 64, 32))
        with pytest.raises(InvalidArgumentError, match="shape does not determine"):
            VarianceScaling("relu")((64,))

    def test_in_a_layer_of_a_kind_that_is_not_known(self):
        class Experts(layers.Layer):
            def build(self, shape):
                self.kernel = self.add_weight(
                    shape=(4, shape[-1], 8), initializer=self.draw, name="kernel"
                )

        layer = Experts()
        layer.draw = VarianceScaling(seed=1)
        with pytest.raises(InvalidArgumentError, match="experts/kernel` of an Experts"):
            layer.build((None, 300))
        layer.draw = VarianceScaling(
            mode="fan_in", seed=1, input_axes=(1,), output_axes=(-1,)
        )
        layer.build((None, 300))
        assert std(layer.kernel) == pytest.approx(math.sqrt(1 / 300), rel=0.05)

    def test_a_layer_of_ones_own_that_is_a_convolution(self):
        class Own(layers.DepthwiseConv2D):
            pass

        layer = Own(3, depthwise_initializer=initializers.HeNormal(1))
        kernel = built(layer, 9, 9, 256)["kernel"]
        assert std(kernel) == pytest.approx(math.sqrt(2 / 9), rel=0.1)

    def test_axes(self):
        draw = VarianceScaling(
            mode="fan_out", input_axes=(0, 1, 2), output_axes=(0, 1, 3), seed=1
        )
        assert std(draw((3, 3, 16, 64))) == pytest.approx(
            math.sqrt(1 / (9 * 64)), rel=0.05
        )
        with pytest.raises(InvalidArgumentError, match="must be given together"):
            VarianceScaling(input_axes=(0,))
        with pytest.raises(InvalidArgumentError, match="no such axes"):
            VarianceScaling(input_axes=(0,), output_axes=(2,))((3, 4))


def test_presets():
    n_in, n_out = 600, 200
    expected = {
        "Xavier": math.sqrt(2 / (n_in + n_out)),
        "He": math.sqrt(2 / n_in),
        "LeCun": math.sqrt(1 / n_in),
    }
    for name, sigma in expected.items():
        for distribution in ("Normal", "Uniform"):
            draw = getattr(initializers, name + distribution)(seed=4)
            values = draw((n_in, n_out)).numpy()
            assert std(values) == pytest.approx(sigma, rel=1e-2)
            bound = {"Normal": 2 / TRUNCATED, "Uniform": math.sqrt(3)}[distribution]
            assert 0.99 * bound < abs(values).max() / sigma <= bound * (1 + 1e-6)
            assert list(draw.get_config()) == ["seed", "input_axes", "output_axes"]


@keras.saving.register_keras_serializable("tests")
def squared_relu(z):
    return keras.ops.square(keras.ops.relu(z))


class TestConfig:
    @pytest.mark.parametrize(
        "activation",
        [
            None,
            "tanh",
            keras.activations.gelu,
            squared_relu,
            keras.layers.LeakyReLU(negative_slope=0.3),
        ],
    )
    def test_activations(self, activation):
        draw = VarianceScaling(activation, mode="fan_in", seed=3)
        config = json.loads(json.dumps(keras.initializers.serialize(draw)))
        back = keras.initializers.get(config)
        assert type(back) is VarianceScaling
        assert back.get_config() == draw.get_config()
        assert back.gain == draw.gain
        np.testing.assert_array_equal(back((5, 6)), draw((5, 6)))

    def test_a_lambda_has_no_name(self):
        draw = VarianceScaling(lambda z: keras.ops.tanh(z))
        with pytest.raises(InvalidArgumentError, match="no name to be saved by"):
            draw.get_config()


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "fan"},
        {"distribution": "normal"},
        {"convention": "he"},
        {"activation": "softmax"},
        {"seed": 1.5},
        {"seed": keras.random.SeedGenerator(1)},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(InvalidArgumentError, match="Fix:"):
        VarianceScaling(**arguments)


def test_whole_numbers_are_not_drawn():
    with pytest.raises(InvalidArgumentError, match="cannot draw numbers of this dtype"):
        VarianceScaling()((3, 3), "int32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_drawn_in_32(dtype):
    exact = VarianceScaling("relu", seed=5)((300, 300)).numpy()
    rounded = VarianceScaling("relu", seed=5)((300, 300), dtype)
    np.testing.assert_array_equal(
        rounded, exact.astype(keras.ops.convert_to_numpy(rounded).dtype)
    )
