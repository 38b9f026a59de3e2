"""Unit variance, measured again from outside."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.errors import DataError, InvalidArgumentError, ModelError, SelectionError
from tfdeep.initializers import lsuv


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def weights_of(model):
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


def same(before, after):
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_fifty_layers(activation):
    model = tfdeep.models.dnn((64,), [100] * 50, 10, activation=activation)
    x = data(256, 64)
    report = lsuv(model, x, seed=1)
    assert len(report.layers) == 51
    assert not report.skipped
    hidden = x.astype("float64")
    function = {
        "tanh": np.tanh,
        "relu": lambda z: np.maximum(z, 0),
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    }[activation]
    for layer, row in zip(model.layers[1:], report.layers, strict=True):
        kernel, bias = layer.get_weights()
        z = hidden @ kernel.astype("float64") + bias
        assert abs(z.var() - 1) < 0.02
        assert row.variance == pytest.approx(z.var(), rel=1e-4)
        assert row.signal == pytest.approx(z.var(axis=0).mean() / z.var(), abs=1e-4)
        # A multiple of an orthogonal matrix, and the multiple that is reported.
        lengths = np.linalg.svd(kernel, compute_uv=False)
        np.testing.assert_allclose(lengths, row.factor, rtol=1e-4)
        hidden = function(z)
    assert ("nearly the same for every example" in str(report)) == (
        activation == "sigmoid"
    )


def test_the_model_is_called_once():
    """Not once for each layer: each is called as it is found, and as it is scaled."""
    model = nets.functional()
    names, calls = [layer.name for layer in model.layers[1:]], []

    def noting(layer):
        call = layer.call

        def noted(*args, **kwargs):
            calls.append(layer.name)
            return call(*args, **kwargs)

        return noted

    for layer in model.layers[1:]:
        layer.call = noting(layer)
    lsuv(model, data(64, nets.INPUTS))
    assert calls == [name for name in names for _ in range(2)]


@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
def test_every_kind_of_model(kind):
    report = lsuv(getattr(nets, kind)(), data(64, nets.INPUTS))
    paths = [row.path for row in report.layers]
    assert paths == ["hidden1", "hidden2", "hidden3", "outputs"]
    assert all(abs(row.variance - 1) < 0.01 for row in report.layers)


def test_convolutions_attention_and_residual_branches():
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for i in range(4):
        y = layers.SeparableConv2D(8, 3, padding="same", name=f"separable{i}")(x)
        y = layers.DepthwiseConv2D(3, padding="same", name=f"depthwise{i}")(y)
        y = layers.ReLU()(y)
        y = layers.Conv2DTranspose(8, 3, padding="same", name=f"transposed{i}")(y)
        y = layers.Conv2D(8, 3, padding="same", groups=2, name=f"grouped{i}")(y)
        x = layers.Add()([x, y])
    x = layers.Reshape((64, 8))(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(inputs, layers.Dense(3, name="outputs")(x))
    batch = data(32, 8, 8, 6)
    report = lsuv(model, batch)
    names = {row.path for row in report.layers}
    assert len(names) == 1 + 16 + 4 + 1
    for path in sorted(names):
        if "attention" in path:
            continue
        layer = model.get_layer(path)  # linear, so its output is what is measured
        seen = keras.Model(inputs, layer.output)(batch).numpy()
        assert abs(seen.var() - 1) < 0.02, path


def test_normalized_layers():
    """Batch normalization works as in training, and keeps what it has averaged."""
    inputs = keras.Input((20,))
    x = layers.Dense(30, name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5)(layers.ReLU()(x))
    x = layers.LayerNormalization()(layers.Dense(30, name="second")(x))
    model = keras.Model(inputs, layers.Dense(3, name="outputs")(x))
    model.get_layer("norm").moving_mean.assign(np.full(30, 5.0))
    others = [w for w in model.weights if w.name not in ("kernel",)]
    before = [w.numpy() for w in others]
    x = data(128, 20)
    report = lsuv(model, x)
    assert same(before, [w.numpy() for w in others])
    assert [row.path for row in report.layers] == ["first", "second", "outputs"]
    z = x @ model.get_layer("first").kernel.numpy()
    hidden = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-3), 0)
    second = hidden @ model.get_layer("second").kernel.numpy()
    assert abs(second.var() - 1) < 0.02


def test_shared_layers():
    inputs = keras.Input((20,))
    shared = layers.Dense(20, "tanh", name="shared")
    model = keras.Model(inputs, shared(shared(shared(inputs))))
    x = data(128, 20)
    report = lsuv(model, x)
    (row,) = report.layers
    z = [x @ shared.kernel.numpy()]
    for _ in range(2):
        z.append(np.tanh(z[-1]) @ shared.kernel.numpy())
    assert [row.variance, *row.later] == pytest.approx([a.var() for a in z], rel=1e-4)
    assert "shared is called 3 times; later variances" in str(report)


def test_what_is_left_as_it_is():
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, name="table")(ids)
    x = layers.LSTM(8, return_sequences=True, name="recurrent")(x)
    x = layers.SpectralNormalization(layers.Dense(8, name="inner"), name="spectral")(x)
    x = layers.Dense(8, name="frozen", trainable=False)(x)
    x = layers.Dense(8, name="scaled")(x)
    branch = layers.Dense(8, kernel_initializer="zeros", name="zero")(x)
    model = keras.Model(ids, layers.Dense(3, name="excluded")(x + branch))
    kept = [w for w in model.weights if "scaled" not in w.path]
    before = [w.numpy() for w in kept]
    report = lsuv(
        model, np.random.default_rng(0).integers(0, 20, (32, 6)), exclude="excluded"
    )
    assert same(before, [w.numpy() for w in kept])
    assert [row.path for row in report.layers] == ["scaled"]
    assert dict(report.skipped) == {
        "table": "a table",
        "recurrent/lstm_cell": "recurrent",
        "spectral": "inside a SpectralNormalization",
        "spectral/inner": "inside a SpectralNormalization",
        "frozen": "frozen",
        "zero": "all zero",
        "excluded": "not selected",
    }
    assert json.loads(report.to_json())["layers"][0]["path"] == "scaled"


def test_weights_as_they_are():
    model = nets.functional()
    before = weights_of(model)
    report = lsuv(model, data(64, nets.INPUTS), orthogonal=False)
    factors = [row.factor for row in report.layers]
    for old, new, factor in zip(
        before[::2], weights_of(model)[::2], factors, strict=True
    ):
        np.testing.assert_allclose(new, old * factor, rtol=1e-5)


def test_a_bias_takes_several_attempts():
    model = nets.functional()
    bias = model.get_layer("hidden1").bias
    bias.assign([0.9, -0.9, 0.5, 0.0, 0.0, 0.0])
    report = lsuv(model, data(64, nets.INPUTS), tolerance=1e-3)
    assert abs(report.layers[0].variance - 1) < 1e-3


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = tfdeep.models.dnn((64,), [50] * 10, 4, activation="tanh")
    finally:
        keras.config.set_dtype_policy("float32")
    report = lsuv(model, data(256, 64))
    assert all(abs(row.variance - 1) < 0.02 for row in report.layers)


class TestFailures:
    """All or nothing: the weights are as they were."""

    def refused(self, model, batch, kind, text, **arguments):
        before = weights_of(model)
        with pytest.raises(kind, match=text) as error:
            lsuv(model, batch, **arguments)
        assert str(error.value).count("Received:") == 1
        assert same(before, weights_of(model))

    def test_a_bias_that_is_too_large(self):
        model = nets.functional()
        model.get_layer("hidden3").bias.assign(np.arange(6.0))
        x = data(64, nets.INPUTS)
        self.refused(model, x, ModelError, "`hidden3` cannot be brought to unit")
        assert len(lsuv(model, x, exclude="hidden3").layers) == 3

    def test_inputs_that_are_not_finite_or_all_the_same(self):
        for value in (np.nan, np.inf, 0.0):
            x = np.full((16, nets.INPUTS), value, "float32")
            self.refused(nets.functional(), x, ModelError, "`hidden1` cannot be")

    def test_a_call_inside_a_function(self):
        class Hidden(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = layers.Dense(4)

            @tf.function
            def call(self, x):
                return self.dense(x)

        model = Hidden()
        model(data(4, 3))
        self.refused(model, data(8, 3), ModelError, "runs inside a `tf.function`")

    def test_an_error_of_the_model_itself(self):
        before = weights_of(model := nets.functional())
        with pytest.raises(ValueError, match="incompatible"):
            lsuv(model, data(16, nets.INPUTS + 1))
        assert same(before, weights_of(model))

    def test_arguments(self):
        model, x = nets.functional(), data(16, nets.INPUTS)
        self.refused(model, nets.dataset(), DataError, "measured on one batch")
        self.refused(model, x, SelectionError, "selects no kernel", include="nope")
        for tolerance in (0, -1, float("nan")):
            self.refused(
                model, x, InvalidArgumentError, "this `tolerance`", tolerance=tolerance
            )

    def test_nothing_stays_behind(self):
        """The layers are called as before, after a success and after a failure."""
        model, x = nets.functional(), data(16, nets.INPUTS)
        lsuv(model, x)
        with pytest.raises(ModelError):
            lsuv(model, x * np.nan)
        for layer in model.layers:
            assert "call" not in vars(layer)
        model.compile("sgd", nets.LOSS)
        model.fit(nets.dataset(), verbose=0)
