import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.diagnostics.rules import DeadUnits
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
    findings = tfdeep.diagnose(model, *batch(), nets.LOSS).findings
    assert findings[0].kind == "poor_initialization"
    first = next(f for f in findings if f.kind == "nonfinite")
    assert first.explained_by == findings[0].place
    assert "too large for float32: its largest entry is " in first.evidence
    assert first.remedy.text.startswith("keras.initializers.HeNormal()")


class TestABatchThatHoldsNaN:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("labels", [True, False])
    def test_the_inputs_are_named_and_no_layer(self, value, labels):
        x, y = batch()
        x[[3, 7, 7], [0, 1, 2]] = value
        diagnosis = tfdeep.diagnose(dnn(), x, y if labels else None, nets.LOSS)
        (finding,) = diagnosis.findings
        assert (finding.kind, finding.layer) == ("bad_input", "")
        assert finding.severity == "critical"
        assert finding.evidence == (
            "NaN or infinite inputs in 2 of 64 examples of batch 0, the first at "
            "feature 0"
        )
        assert finding.remedy.text.startswith("clean the data")
        assert "bad_input at the net" in str(diagnosis)

    def test_the_labels_are_named(self):
        model = keras.Sequential([keras.Input((nets.INPUTS,)), layers.Dense(1)])
        x, y = batch()[0], np.zeros((64, 1))
        y[5] = np.nan
        (finding,) = tfdeep.diagnose(model, x, y, "mse").findings
        assert finding.kind == "bad_labels"
        assert "targets in 1 of 64 examples" in finding.evidence

    def test_of_several_inputs_one_is_enough(self):
        a, b = keras.Input((3,)), keras.Input((2,), dtype="int32")
        x = layers.Concatenate()([a, layers.Flatten()(layers.Embedding(5, 4)(b))])
        model = keras.Model([a, b], layers.Dense(1)(x))
        inputs = [np.full((8, 3), np.nan), np.zeros((8, 2), "int32")]
        (finding,) = tfdeep.diagnose(model, inputs, np.zeros((8, 1)), "mse").findings
        assert "inputs in 8 of 8 examples" in finding.evidence

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


class WithStatistics(keras.Model):
    """A subclassed model with everything that a call may change."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(16, "relu")
        self.norm = layers.BatchNormalization()
        self.spectral = layers.SpectralNormalization(layers.Dense(16))
        self.always = layers.Dropout(0.5, seed=1)
        self.dropout = layers.Dropout(0.5, seed=2)
        self.out = layers.Dense(nets.CLASSES)

    def call(self, x):
        x = self.spectral(self.norm(self.hidden(x)))
        return self.out(self.dropout(self.always(x, training=True)))


class WithAuxiliaryHead(keras.Model):
    """A model of which one part is called in training only."""

    def __init__(self):
        super().__init__()
        self.hidden, self.norm = layers.Dense(8, "relu"), layers.BatchNormalization()
        self.out, self.head = layers.Dense(3), layers.Dense(3)

    def call(self, x, training=False):
        x = self.norm(self.hidden(x), training=training)
        return self.out(x) + self.head(x) if training else self.out(x)


def built(make):
    """A model of fixed first weights, built by a call that changes no statistics."""
    keras.utils.set_random_seed(0)
    model = make()
    generators = [v for v in model.variables if "seed" in v.name]
    before = [v.numpy() for v in generators]
    model(batch()[0], training=False)
    for variable, value in zip(generators, before, strict=True):
        variable.assign(value)
    return model


def sequential():
    return keras.Sequential(
        [
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5, seed=1),
            layers.Dense(nets.CLASSES),
        ]
    )


def assert_same_variables(model, expected):
    assert [v.name for v in model.variables] == [v.name for v in expected.variables]
    for variable, other in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(variable, other, err_msg=variable.path)


class TestNothingIsChanged:
    @pytest.mark.parametrize("make", [sequential, WithStatistics])
    def test_a_model_that_is_not_built_is_as_its_first_call_leaves_it(self, make):
        keras.utils.set_random_seed(0)
        model = make()
        tfdeep.diagnose(model, *batch(), nets.LOSS)
        assert_same_variables(model, built(make))

    @pytest.mark.parametrize("make", [sequential, WithStatistics])
    def test_a_model_that_is_built(self, make):
        model, expected = built(make), built(make)
        tfdeep.diagnose(model, *batch(), nets.LOSS)
        assert_same_variables(model, expected)

    def test_a_model_that_is_called_built_while_its_layers_are_not(self):
        model = WithStatistics()
        model.built = True
        tfdeep.diagnose(model, *batch(), nets.LOSS)
        np.testing.assert_array_equal(model.norm.moving_mean, np.zeros(16))

    @pytest.mark.filterwarnings("ignore:.*unbuilt state")
    def test_a_part_that_is_called_in_training_only(self):
        model = WithAuxiliaryHead()
        diagnosis = tfdeep.diagnose(model, *batch(), nets.LOSS)
        assert len(diagnosis.layers) == 4
        np.testing.assert_array_equal(model.norm.moving_mean, np.zeros(8))

    def test_a_batch_that_the_model_cannot_take(self):
        class Refuses(layers.Layer):
            def call(self, x, training=False):
                if training:
                    raise ValueError("not in training")
                return x

        model = sequential()
        model.add(Refuses())
        with pytest.raises(DataError, match="not in training"):
            tfdeep.diagnose(model, *batch(), nets.LOSS)
        np.testing.assert_array_equal(model.layers[1].moving_mean, np.zeros(8))

    @pytest.mark.parametrize("were_there", [True, False])
    def test_the_numbers_that_a_compiled_model_keeps_of_its_losses(self, were_there):
        model, x, y = two_outputs()
        model.compile("sgd", ["mse", "mse"], metrics=[["mae"], ["mae"]])
        if were_there:
            model.evaluate(x[:10], [part[:10] for part in y], verbose=0)
        before = {m.name: float(m.result()) for m in parts(model.metrics)}
        tfdeep.diagnose(model, x, y)
        after = {m.name: float(m.result()) for m in parts(model.metrics)}
        assert {"a_loss", "b_loss"} <= set(after)
        assert after == {name: before.get(name, 0) for name in after}
        assert bool(after["a_loss"]) == were_there


def parts(metrics):
    """The metrics that hold one number each."""
    return [m for m in metrics if not hasattr(m, "metrics")]


def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((nets.INPUTS,))
    outputs = [layers.Dense(4, name="a")(inputs), layers.Dense(1, name="b")(inputs)]
    x = batch()[0]
    return keras.Model(inputs, outputs), x, [x[:, :4], x[:, :1]]


class TestLosses:
    @pytest.mark.parametrize(
        "loss",
        [
            "mse",
            ["mse", "mse"],
            {"b": "mse", "a": keras.losses.MeanSquaredError()},
            keras.losses.mean_squared_error,
        ],
    )
    def test_of_several_outputs_as_compile_takes_them(self, loss):
        model, x, y = two_outputs()
        expected = sum(
            np.mean((output - labels) ** 2)
            for output, labels in zip(model.predict(x, verbose=0), y, strict=True)
        )
        found = tfdeep.diagnose(model, x, y, loss).loss
        assert found == pytest.approx(expected, rel=1e-5)
        model.compile("sgd", loss)
        assert tfdeep.diagnose(model, x, y).loss == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("loss", ["mse", ["mse", "mse"], {"a": "mse", "b": "mse"}])
    def test_labels_by_the_names_of_the_outputs(self, loss):
        model, x, (a, b) = two_outputs()
        found = tfdeep.diagnose(model, x, {"b": b, "a": a}, loss).loss
        assert found == tfdeep.diagnose(model, x, [a, b], "mse").loss

    def test_a_loss_without_a_reduction(self):
        model, x, y = two_outputs()
        model = keras.Model(model.inputs, model.outputs[0])
        loss = keras.losses.MeanSquaredError(reduction=None)
        mean = tfdeep.diagnose(model, x, y[0], "mse").loss
        assert tfdeep.diagnose(model, x, y[0], loss).loss == pytest.approx(mean)
        model.compile("sgd", loss)
        assert tfdeep.diagnose(model, x, y[0]).loss == pytest.approx(mean)

    def test_a_model_that_computes_its_own(self):
        class OwnLoss(keras.Model):
            def compute_loss(self, x, y, y_pred, sample_weight, training=True):
                return tf.reduce_mean(x) + tf.reduce_mean(y_pred - y)

        a = keras.Input((3,))
        model = OwnLoss(a, layers.Dense(1)(a))
        model.compile("sgd", "mse")
        loss = tfdeep.diagnose(model, np.zeros((4, 3)), np.full((4, 1), 2.0)).loss
        assert loss == pytest.approx(-2)

    @pytest.mark.parametrize("is_compiled", [True, False])
    @pytest.mark.parametrize(
        ("labels", "loss", "reason"),
        [
            (lambda y: y, "msee", "Could not interpret loss identifier: msee"),
            (lambda y: [y, y], "mse", "different structures"),
        ],
    )
    def test_that_cannot_be_computed(self, labels, loss, reason, is_compiled):
        model, (x, y) = dnn(), batch()
        if is_compiled:
            model.compile("sgd", loss)
        with pytest.raises(InvalidArgumentError) as error:
            tfdeep.diagnose(model, x, labels(y), None if is_compiled else loss)
        assert "cannot compute the loss" in str(error.value)
        assert reason in str(error.value)
        assert "nothing was changed" in str(error.value)

    @pytest.mark.parametrize("is_compiled", [True, False])
    @pytest.mark.parametrize(
        ("labels", "loss", "kind"),
        [
            (lambda y: y + 100, nets.LOSS, "bad_labels"),
            (lambda y: np.eye(9)[y], "categorical_crossentropy", "output_mismatch"),
        ],
    )
    def test_labels_that_show_why_are_a_finding(self, labels, loss, kind, is_compiled):
        model, (x, y) = dnn(), batch()
        if is_compiled:
            model.compile("sgd", loss)
        diagnosis = tfdeep.diagnose(model, x, labels(y), None if is_compiled else loss)
        assert [f.kind for f in diagnosis.causes] == [kind]
        assert diagnosis.loss is None and diagnosis.layers == ()


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return batch()


class TestWhatIsNoBatch:
    @pytest.mark.parametrize(
        ("x", "what"),
        [
            (None, "`x` is a NoneType"),
            (3.0, "`x` is a float"),
            (np.float32(3), "`x` is a float32 of shape ()"),
            (tf.constant(3.0), "of shape ()"),
            (np.zeros((2, nets.INPUTS)).tolist(), "`x` is a list that holds a float"),
            ([], "`x` is a list"),
            ({"a": None}, "`x` is a dict that holds a NoneType"),
            ((pair for pair in [batch()]), "`x` is a generator"),
            (Batches(), "`x` is a Batches"),
            (np.zeros((0, nets.INPUTS)), f"of shape (0, {nets.INPUTS})"),
            (tf.ragged.constant([[1.0], [1.0, 2.0]]), "`x` is a RaggedTensor"),
            (np.array([{}, {}]), "`x` is an ndarray of shape (2,)"),
        ],
    )
    def test_the_inputs(self, x, what):
        with pytest.raises(DataError) as error:
            tfdeep.diagnose(dnn(), x, np.zeros(2), nets.LOSS)
        assert what in str(error.value)
        assert "x, y = next(iter(dataset))" in str(error.value)
        assert "np.asarray" in str(error.value)

    @pytest.mark.parametrize("y", [batch()[1].tolist(), 3, Batches(), []])
    def test_the_labels(self, y):
        with pytest.raises(DataError, match="`y` is a"):
            tfdeep.diagnose(dnn(), batch()[0], y, nets.LOSS)

    def test_a_dataset_of_single_examples(self):
        data = tf.data.Dataset.from_tensor_slices(batch())
        with pytest.raises(DataError, match=r"dataset.batch\(32\)"):
            tfdeep.diagnose(dnn(), data, loss=nets.LOSS)

    @pytest.mark.parametrize("count", [10, 300])
    def test_as_many_labels_as_inputs(self, count):
        x, y = batch(400)
        with pytest.raises(DataError) as error:
            tfdeep.diagnose(dnn(), x, y[:count], nets.LOSS)
        assert f"`x` of 400 and `y` of {count} examples" in str(error.value)


class TestRules:
    @pytest.mark.parametrize("rules", [None, "default"])
    def test_the_default_ones(self, rules):
        diagnosis = tfdeep.diagnose(dnn("sigmoid", 20), *batch(), nets.LOSS, rules)
        assert "vanishing_gradient" in [f.kind for f in diagnosis.findings]

    @pytest.mark.parametrize("rules", [[], (DeadUnits(),)])
    def test_those_given(self, rules):
        diagnosis = tfdeep.diagnose(dnn("sigmoid", 20), *batch(), nets.LOSS, rules)
        assert diagnosis.findings == ()

    @pytest.mark.parametrize(
        "rules", ["all", DeadUnits, DeadUnits(), [DeadUnits], ["dead_units"], 3]
    )
    def test_what_is_no_list_of_them(self, rules):
        with pytest.raises(InvalidArgumentError, match="cannot apply these rules"):
            tfdeep.diagnose(dnn(), *batch(), nets.LOSS, rules)


@pytest.mark.parametrize("model", ["net", None, keras.Model, layers.Dense(3)])
def test_what_is_no_model(model):
    with pytest.raises(ModelError, match="`model` is a"):
        tfdeep.diagnose(model, *batch(), nets.LOSS)


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
