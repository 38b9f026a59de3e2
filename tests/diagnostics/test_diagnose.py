import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.errors import DataError, InvalidArgumentError, ModelError


def batch(count=64):
    return nets.examples(count)


def dnn(activation="relu", depth=4, units=32):
    keras.utils.set_random_seed(0)
    return tfdeep.models.dnn(
        (nets.INPUTS,), [units] * depth, nets.CLASSES, activation=activation
    )


def test_forward_and_backward_by_numpy():
    keras.utils.set_random_seed(0)
    model = tfdeep.models.dnn((nets.INPUTS,), [16, 16], 3, activation="tanh")
    x, y = batch()
    diagnosis = tfdeep.diagnose(model, x, y, nets.LOSS)
    w1, b1, w2, b2, w3, b3 = (np.float64(w) for w in model.get_weights())
    h1 = np.tanh(x @ w1 + b1)
    h2 = np.tanh(h1 @ w2 + b2)
    logits = h2 @ w3 + b3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    d3 = (p - np.eye(3)[y]) / len(x)
    d2 = d3 @ w3.T
    d1 = (d2 * (1 - h2**2)) @ w2.T
    first, second, last = diagnosis.layers
    for layer, output, gradient in (
        (first, h1, d1),
        (second, h2, d2),
        (last, logits, d3),
    ):
        assert layer.output_mean == pytest.approx(output.mean(), abs=1e-6)
        assert layer.output_std == pytest.approx(output.std(), rel=1e-4)
        assert layer.gradient_std == pytest.approx(gradient.std(), rel=1e-4)
    assert first.kernel_gradient_norm == pytest.approx(
        np.linalg.norm(x.T @ (d1 * (1 - h1**2))), rel=1e-4
    )
    assert first.saturated_fraction == pytest.approx(np.mean(1 - h1**2 < 0.01))
    assert diagnosis.loss == pytest.approx(
        -np.log(p[np.arange(64), y]).mean(), rel=1e-5
    )
    assert diagnosis.findings == ()


@pytest.mark.parametrize("way", ["labels", "no labels", "dataset", "compiled"])
def test_a_deep_sigmoid_net_vanishes(way):
    model, (x, y) = dnn("sigmoid", 20), batch()
    if way == "dataset":
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
        diagnosis = tfdeep.diagnose(model, data, loss=nets.LOSS)
    elif way == "compiled":
        model.compile("sgd", nets.LOSS)
        diagnosis = tfdeep.diagnose(model, x, y)
    elif way == "labels":
        diagnosis = tfdeep.diagnose(model, x, y, nets.LOSS)
    else:
        diagnosis = tfdeep.diagnose(model, x)
    assert diagnosis.findings[0].kind == "vanishing_gradient"
    assert diagnosis.findings[0].layer == "hidden1"


def test_a_healthy_net_has_no_findings():
    for activation in ("relu", "elu", "tanh", "selu", "gelu"):
        x, y = batch()
        assert tfdeep.diagnose(dnn(activation), x, y, nets.LOSS).findings == ()


def test_a_gradient_whose_norm_overflows_is_too_large():
    keras.utils.set_random_seed(0)
    wide = keras.initializers.RandomNormal(stddev=1.0, seed=0)
    model = keras.Sequential(
        [layers.Dense(64, "relu", kernel_initializer=wide) for _ in range(30)]
        + [layers.Dense(nets.CLASSES)]
    )
    first = tfdeep.diagnose(model, *batch(), nets.LOSS).findings[0]
    assert first.kind == "nonfinite"
    assert "too large for float32: its largest entry is " in first.evidence
    assert first.remedy.startswith("keras.initializers.HeNormal()")


class TestABatchThatHoldsNaN:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("labels", [True, False])
    def test_the_inputs_are_named_and_no_layer(self, value, labels):
        x, y = batch()
        x[[3, 7, 7], [0, 1, 2]] = value
        diagnosis = tfdeep.diagnose(dnn(), x, y if labels else None, nets.LOSS)
        (finding,) = diagnosis.findings
        assert (finding.kind, finding.layer) == ("nonfinite", "")
        assert finding.severity == "critical"
        assert finding.evidence == (
            "the batch holds NaN or infinite values, in the inputs of 2 of 64 examples"
        )
        assert finding.remedy.startswith("clean the data")
        assert "nonfinite at the net" in str(diagnosis)

    def test_the_labels_are_named(self):
        model = keras.Sequential([keras.Input((nets.INPUTS,)), layers.Dense(1)])
        x, y = batch()[0], np.zeros((64, 1))
        y[5] = np.nan
        (finding,) = tfdeep.diagnose(model, x, y, "mse").findings
        assert "in the labels of 1 of 64 examples" in finding.evidence

    def test_of_several_inputs_one_is_enough(self):
        a, b = keras.Input((3,)), keras.Input((2,), dtype="int32")
        x = layers.Concatenate()([a, layers.Flatten()(layers.Embedding(5, 4)(b))])
        model = keras.Model([a, b], layers.Dense(1)(x))
        inputs = [np.full((8, 3), np.nan), np.zeros((8, 2), "int32")]
        (finding,) = tfdeep.diagnose(model, inputs, np.zeros((8, 1)), "mse").findings
        assert "in the inputs of 8 of 8 examples" in finding.evidence

    def test_a_model_that_fills_them_in_is_well(self):
        class FillIn(layers.Layer):
            def call(self, x):
                return tf.where(tf.math.is_nan(x), tf.zeros_like(x), x)

        keras.utils.set_random_seed(0)
        model = keras.Sequential([FillIn(), layers.Dense(32, "relu"), layers.Dense(3)])
        x, y = batch()
        x[3] = np.nan
        assert tfdeep.diagnose(model, x, y, nets.LOSS).findings == ()

    def test_of_a_clean_batch_the_layer_is_named(self):
        model = dnn()
        model.get_layer("hidden2").bias.assign(np.full(32, np.inf))
        finding = tfdeep.diagnose(model, *batch(), nets.LOSS).findings[0]
        assert (finding.kind, finding.layer) == ("nonfinite", "hidden2")


def test_nothing_is_changed():
    model = nets.regularized()
    model.compile("adam", nets.LOSS)
    before = [np.array(v) for v in model.variables]
    tfdeep.diagnose(model, *batch())
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert model.optimizer.iterations == 0
    assert "call" not in vars(model.get_layer("hidden1"))


def test_a_model_that_is_not_built():
    model = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(3)])
    x, y = batch()
    assert len(tfdeep.diagnose(model, x, y, nets.LOSS).layers) == 2


def test_several_inputs_and_labels_in_float64():
    a, b = keras.Input((3,)), keras.Input((2,))
    x = layers.Concatenate()([layers.Dense(4)(a), layers.Dense(4)(b)])
    model = keras.Model([a, b], layers.Dense(1)(x))
    rng = np.random.default_rng(0)
    diagnosis = tfdeep.diagnose(
        model,
        [rng.normal(size=(8, 3)), rng.normal(size=(8, 2))],
        np.zeros((8, 1)),
        "mse",
    )
    assert len(diagnosis.layers) == 3


def test_embeddings_have_no_input_scale():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Embedding(1000, 8),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    ids = np.random.default_rng(0).integers(0, 1000, (32, 6)).astype("float32")
    assert tfdeep.diagnose(model, ids, np.zeros(32), nets.LOSS).findings == ()


def test_the_table_fits_the_terminal_and_names_the_remedy(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    x, y = batch()
    text = str(tfdeep.diagnose(dnn("sigmoid", 20), x, y, nets.LOSS))
    assert max(map(len, text.splitlines())) <= 80
    assert "critical: vanishing_gradient at hidden1 ... hidden" in text
    assert "keras.initializers.HeNormal()" in text.replace("\n", " ")


def test_it_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    figure = tfdeep.diagnose(dnn("sigmoid", 20), *batch(), nets.LOSS).plot()
    figure.savefig(tmp_path / "diagnosis.png")
    forward, backward = figure.axes[0].get_lines()
    assert np.ptp(np.log10(backward.get_ydata())) > 6
    assert np.ptp(np.log10(forward.get_ydata())) < 2


class TestErrors:
    def test_the_loss_is_not_known(self):
        with pytest.raises(InvalidArgumentError, match="does not know the loss"):
            tfdeep.diagnose(dnn(), *batch())

    def test_an_empty_dataset(self):
        data = tf.data.Dataset.from_tensor_slices(batch()).batch(8).take(0)
        with pytest.raises(DataError, match="no batch"):
            tfdeep.diagnose(dnn(), data, loss=nets.LOSS)

    def test_a_batch_of_another_shape(self):
        with pytest.raises(DataError, match="cannot take this batch"):
            tfdeep.diagnose(dnn(), np.zeros((4, 5)), np.zeros(4), nets.LOSS)

    def test_nothing_to_train(self):
        model = dnn()
        model.trainable = False
        with pytest.raises(ModelError, match="nothing to train"):
            tfdeep.diagnose(model, *batch(), nets.LOSS)
