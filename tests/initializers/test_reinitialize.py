"""Chosen variables get new values, all others stay."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from tests import nets
from tfdeep import initializers
from tfdeep.errors import InvalidArgumentError, ModelError, SelectionError
from tfdeep.initializers import reinitialize


def values(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


def changed(model, before):
    return {p for p, v in values(model).items() if not np.array_equal(v, before[p])}


def std(variable):
    return float(np.std(keras.ops.convert_to_numpy(variable).astype("float64")))


def test_only_what_is_chosen_changes():
    model = nets.functional()
    for w in model.weights:
        w.assign(w + 1)
    before = values(model)
    report = reinitialize(model, include="hidden[23]", exclude="hidden3/bias")
    paths = {"hidden2/kernel", "hidden2/bias", "hidden3/kernel"}
    assert changed(model, before) == paths
    assert {v.path for v in report.drawn} == paths
    assert not model.get_layer("hidden2").bias.numpy().any()
    row = report.drawn[0]
    kernel = model.get_layer("hidden2").kernel
    assert row.std_before == pytest.approx(std(before["hidden2/kernel"]))
    assert row.std_after == pytest.approx(std(kernel))
    assert json.loads(report.to_json())["drawn"][0]["shape"] == [6, 6]
    assert "3 variables drawn again" in str(report)


@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
def test_every_kind_of_model(kind):
    model = getattr(nets, kind)()
    before = values(model)
    reinitialize(model)
    assert len(changed(model, before)) == 4  # the biases start at zero again


def test_each_layer_starts_as_it_would():
    """Whatever its `build` does: forget gates, fans, gammas, moving averages."""
    inputs = keras.Input((12, 40))
    x = layers.Conv1D(40, 3, groups=4, kernel_initializer=initializers.HeNormal())(
        inputs
    )
    x = layers.BatchNormalization(gamma_initializer="ones")(x)
    x = layers.MultiHeadAttention(4, 10, kernel_initializer=initializers.HeNormal())(
        x, x
    )
    x = layers.LSTM(8, name="lstm")(x)
    x = layers.PReLU(alpha_initializer=keras.initializers.Constant(0.25))(x)
    model = keras.Model(inputs, layers.Dense(3, kernel_initializer="orthogonal")(x))
    before = values(model)
    deviations = {path: std(v) for path, v in before.items()}
    for w in model.weights:
        if w.name != "seed_generator_state":
            w.assign(w * 0 + 3)
    reinitialize(model)
    for path, v in values(model).items():
        assert std(v) == pytest.approx(deviations[path], rel=0.35, abs=1e-7), path
        is_constant = deviations[path] < 1e-7 or "lstm_cell/bias" in path
        assert np.array_equal(v, before[path]) == is_constant, path


def test_layers_that_share_an_initializer_still_differ():
    draw = initializers.HeNormal(seed=1)
    model = keras.Sequential([keras.Input((6,))] + [
        layers.Dense(6, kernel_initializer=draw) for _ in range(3)
    ])  # fmt: skip
    before = [layer.kernel.numpy() for layer in model.layers]
    reinitialize(model)
    after = [layer.kernel.numpy() for layer in model.layers]
    for i, kernel in enumerate(after):
        for other in before + after[:i]:
            assert not np.allclose(kernel, other)


class TestAnotherInitializer:
    def test_it_is_told_the_layer(self):
        model = keras.Sequential([
            keras.Input((9, 9, 128)),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Conv2D(64, 3, groups=4, name="grouped"),
        ])  # fmt: skip
        kernels = [r".*/kernel"]
        reinitialize(model, kernels, initializer=initializers.HeNormal(1))
        assert std(model.get_layer("depthwise").kernel) == pytest.approx(
            (2 / 9) ** 0.5, rel=0.1
        )
        assert std(model.get_layer("grouped").kernel) == pytest.approx(
            (2 / (9 * 32)) ** 0.5, rel=0.05
        )

    @pytest.mark.parametrize(
        "given",
        ["he_normal", keras.initializers.HeNormal(), keras.initializers.HeNormal],
    )
    def test_those_of_keras_draw_each_kernel_by_itself(self, given):
        model = nets.functional()
        reinitialize(model, "hidden[23]/kernel", initializer=given)
        a, b = (model.get_layer(name).kernel.numpy() for name in ("hidden2", "hidden3"))
        assert not np.allclose(a, b)

    def test_a_function(self):
        model = nets.functional()
        reinitialize(
            model, ".*/bias", initializer=lambda shape, dtype: np.full(shape, 2.0)
        )
        assert (model.get_layer("hidden1").bias.numpy() == 2).all()

    def test_what_cannot_draw_changes_nothing(self):
        model = nets.functional()
        before = values(model)
        for given, text in (
            (initializers.HeNormal(), "shape does not determine"),  # the biases
            ("no_such", "knows no such initializer"),
            (lambda shape, dtype: np.zeros(3), "does not fit `hidden1/kernel`"),
        ):
            with pytest.raises(InvalidArgumentError, match=text):
                reinitialize(model, initializer=given)
            assert not changed(model, before)


def test_what_was_learned_from_data_is_kept():
    normalize = layers.Normalization()
    normalize.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    model = keras.Sequential(
        [keras.Input((4,)), normalize, layers.Dropout(0.5), layers.Dense(3)]
    )
    before = values(model)
    report = reinitialize(model)
    assert changed(model, before) == {p for p in before if p.endswith("dense/kernel")}
    assert {"normalization/mean", "normalization/variance"} <= set(report.kept)


def test_a_layer_without_a_config():
    class Own(layers.Layer):
        def __init__(self, units):
            super().__init__()
            self.units = units

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

        def call(self, x):
            return x @ self.kernel

        def get_config(self):
            return {}

    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), Own(2)])
    before = values(model)
    with pytest.raises(ModelError, match="cannot be made again from its config"):
        reinitialize(model)
    assert not changed(model, before)
    reinitialize(model, "own/kernel", initializer="he_normal")
    assert len(changed(model, before)) == 1


def test_a_pattern_that_selects_nothing():
    with pytest.raises(SelectionError, match="selects no variable"):
        reinitialize(nets.functional(), "hidden7")


def test_a_compiled_model_goes_on():
    model = nets.functional()
    model.compile("adam", nets.LOSS)
    model.fit(nets.dataset(), verbose=0)
    reinitialize(model, include="hidden3")
    kernel = model.get_layer("hidden3").kernel.numpy()
    model.fit(nets.dataset(), verbose=0)
    assert not np.array_equal(kernel, model.get_layer("hidden3").kernel.numpy())
