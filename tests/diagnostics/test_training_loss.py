"""`diagnose` differentiates the loss that `fit` minimizes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops, regularizers

import tfdeep
from tests import nets
from tfdeep._keras._probe import probe
from tfdeep.diagnostics._batch import loss_function, one_batch
from tfdeep.errors import DataError, InvalidArgumentError

CROSSENTROPY = "sparse_categorical_crossentropy"


class Added(layers.Dense):
    """A layer that passes a term of its own to the loss."""

    def call(self, x):
        x = super().call(x)
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


class OwnLoss(keras.Model):
    """A model with a part of the loss in `call` and the rest in `compute_loss`."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(5, "relu", kernel_regularizer="l2")
        self.out = layers.Dense(nets.CLASSES)

    def call(self, x):
        outputs = self.out(self.hidden(x))
        self.add_loss(ops.mean(ops.square(x)) * ops.sum(self.out.bias + 1))
        return outputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        labels = ops.one_hot(y, nets.CLASSES)
        return 2 * ops.mean(ops.square(y_pred - labels)) + 3 * sum(self.losses)


class Autoencoder(keras.Model):
    """A model that trains without labels."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(3), layers.Dense(nets.INPUTS)

    def call(self, x):
        made = self.out(self.hidden(x))
        self.add_loss(ops.mean(ops.square(made - x)))
        return made


def net(**options):
    return keras.Sequential(
        [
            keras.Input((nets.INPUTS,)),
            layers.Dense(6, "relu", name="hidden", **options),
            layers.Dense(nets.CLASSES, "softmax", name="outputs"),
        ]
    )


def frozen():
    model = net(kernel_regularizer="l2")
    model.layers[0].trainable = False
    return model


def nested():
    inner = net(bias_regularizer=regularizers.L1L2(0.1, 0.2), bias_initializer="ones")
    return keras.Sequential([keras.Input((nets.INPUTS,)), inner])


def with_layer(layer):
    return keras.Sequential(
        [keras.Input((nets.INPUTS,)), layer, layers.Dense(nets.CLASSES, "softmax")]
    )


def two_outputs():
    x = keras.Input((nets.INPUTS,))
    hidden = layers.Dense(4, kernel_regularizer="l2")(x)
    outputs = [layers.Dense(1, name="a")(hidden), layers.Dense(2, name="b")(hidden)]
    return keras.Model(x, outputs)


MODELS = {
    "plain": net,
    "l1": lambda: net(kernel_regularizer="l1"),
    "l2": lambda: net(kernel_regularizer="l2"),
    "orthogonal": lambda: net(kernel_regularizer=regularizers.OrthogonalRegularizer()),
    "a function": lambda: net(kernel_regularizer=lambda w: ops.sum(ops.exp(w))),
    "activity": lambda: net(activity_regularizer=regularizers.L2(0.3)),
    "frozen": frozen,
    "nested": nested,
    "add_loss": lambda: with_layer(Added(5)),
    "activity layer": lambda: with_layer(layers.ActivityRegularization(0.1, 0.1)),
    "normalized": lambda: with_layer(layers.BatchNormalization(gamma_regularizer="l2")),
    "dropout of nothing": lambda: with_layer(layers.Dropout(0.0)),
}


def differentiated(model, x, y=None, **options):
    loss, loss_weights = options.pop("loss", None), options.pop("loss_weights", None)
    batch = one_batch(x, y, **options)
    return probe(model, batch.x, loss_function(model, batch, loss, loss_weights))


def assert_as_in_training(model, found, *data, rtol=1e-4, **options):
    """Compares with what one step of gradient descent reports, and changes."""
    weights = [v.variable for v in found.variables]
    before = [weight.numpy() for weight in weights]
    (loss,) = np.ravel(model.train_on_batch(*data, **options))[:1]
    assert float(found.loss) == pytest.approx(loss, rel=rtol)
    for gradient, weight, value in zip(found.gradients, weights, before, strict=True):
        change = value - weight.numpy()
        expected = 0 * change if gradient is None else np.asarray(gradient)
        np.testing.assert_allclose(expected, change, rtol, rtol, err_msg=weight.path)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_penalties(make, is_compiled):
    model, (x, y) = make(), nets.examples()
    if is_compiled:
        model.compile(keras.optimizers.SGD(1.0), CROSSENTROPY)
    found = differentiated(model, x, y, loss=None if is_compiled else CROSSENTROPY)
    model.compile(keras.optimizers.SGD(1.0), CROSSENTROPY)
    assert_as_in_training(model, found, x, y)


def test_a_loss_of_its_own():
    model, (x, y) = OwnLoss(), nets.examples()
    model.compile(keras.optimizers.SGD(1.0))
    assert_as_in_training(model, differentiated(model, x, y), x, y)


@pytest.mark.parametrize("labels", [False, True])
def test_a_model_that_needs_no_labels(labels):
    model, x = Autoencoder(), nets.examples()[0]
    model.compile(keras.optimizers.SGD(1.0), None)
    assert tfdeep.diagnose(model, x).loss > 0
    data = (x, x) if labels else (x,)
    assert_as_in_training(model, differentiated(model, *data), *data)


def test_sample_weight():
    model, (x, y) = net(kernel_regularizer="l2"), nets.examples()
    weights = np.linspace(0, 2, len(x))
    model.compile(keras.optimizers.SGD(1.0), CROSSENTROPY)
    found = differentiated(model, x, y, sample_weight=weights)
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(32)
    of_dataset = tfdeep.diagnose(model, data)
    assert of_dataset.examples == len(x)
    assert of_dataset.loss == pytest.approx(float(found.loss))
    assert tfdeep.diagnose(model, x, y, sample_weight=weights).loss == of_dataset.loss
    assert_as_in_training(model, found, x, y, weights)


@pytest.mark.parametrize("labels", ["numbers", "column", "one-hot"])
def test_class_weight(labels):
    model, (x, y) = net(), nets.examples()
    loss = "categorical_crossentropy" if labels == "one-hot" else CROSSENTROPY
    y = {"numbers": y, "column": y[:, None], "one-hot": np.eye(3)[y]}[labels]
    model.compile(keras.optimizers.SGD(1.0), loss)
    weights = {0: 0.1, 2: 5.0}
    found = differentiated(model, x, y, class_weight=weights)
    diagnosis = tfdeep.diagnose(model, x, y, class_weight=weights)
    assert diagnosis.loss == pytest.approx(float(found.loss))
    assert_as_in_training(model, found, x, y, class_weight=weights)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_weights_of_several_losses_and_their_examples(is_compiled):
    model, (x, y) = two_outputs(), nets.examples()
    y = [np.float32(y[:, None]), y]
    losses = ["mse", keras.losses.SparseCategoricalCrossentropy(from_logits=True)]
    y[1] = y[1] % 2
    weights = [np.linspace(0, 1, len(x)), np.linspace(2, 0, len(x))]
    training = {"loss": losses, "loss_weights": [0.5, 3.0]}
    if is_compiled:
        model.compile(keras.optimizers.SGD(1.0), **training)
    options = {} if is_compiled else training
    found = differentiated(model, x, y, sample_weight=weights, **options)
    model.compile(keras.optimizers.SGD(1.0), **training)
    assert_as_in_training(model, found, x, y, weights)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_gradients_that_float16_cannot_hold_unscaled(is_compiled):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model, (x, y) = net(kernel_regularizer="l2"), nets.examples()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    weights = np.full(len(x), 1e-6)
    if is_compiled:
        model.compile(keras.optimizers.SGD(1.0), CROSSENTROPY)
    loss = None if is_compiled else CROSSENTROPY
    found = differentiated(model, x, y, loss=loss, sample_weight=weights)
    for gradient in found.data_gradients:
        assert np.any(gradient)
    model.compile(keras.optimizers.SGD(1.0), CROSSENTROPY)
    assert_as_in_training(model, found, x, y, weights, rtol=2e-3)


def test_without_the_penalties_on_weights():
    model, (x, y) = net(kernel_regularizer="l2"), nets.examples()
    found = differentiated(model, x, y, loss=CROSSENTROPY)
    bare = net()
    bare.set_weights(model.get_weights())
    expected = differentiated(bare, x, y, loss=CROSSENTROPY)
    assert float(found.data_loss) == float(expected.loss)
    for gradient, other in zip(found.data_gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5)
    assert model.layers[0].kernel.regularizer is not None


def test_nothing_is_left_behind():
    model, (x, y) = with_layer(Added(5)), nets.examples()
    tfdeep.diagnose(model, x, y, CROSSENTROPY)
    assert model.losses == []


class TestWhatIsNaN:
    @pytest.mark.parametrize("where", ["kernel", "bias", "activity"])
    @pytest.mark.parametrize("labels", [True, False])
    def test_a_penalty(self, where, labels):
        def penalty(w):
            return ops.log(ops.sum(w - w))

        model, (x, y) = net(**{f"{where}_regularizer": penalty}), nets.examples()
        y = y if labels else None
        findings = tfdeep.diagnose(model, x, y, CROSSENTROPY).findings
        assert ("nonfinite", "hidden") in [(f.kind, f.layer) for f in findings]
        assert findings[0].layer == "hidden"
        assert "adds to the loss is -inf" in findings[0].evidence

    def test_added_by_a_layer(self):
        class Logarithm(layers.Layer):
            def call(self, x):
                self.add_loss(ops.log(ops.sum(x - x)))
                return x

        model, (x, y) = with_layer(Logarithm(name="bad")), nets.examples()
        finding = tfdeep.diagnose(model, x, y, CROSSENTROPY).findings[0]
        assert (finding.kind, finding.layer) == ("nonfinite", "bad")


@pytest.mark.parametrize("labels", [True, False])
def test_a_penalty_does_not_hide_that_gradients_vanish(labels):
    model = keras.Sequential(
        [keras.Input((nets.INPUTS,))]
        + [
            layers.Dense(32, "sigmoid", kernel_regularizer=regularizers.L2(1e-2))
            for _ in range(10)
        ]
        + [layers.Dense(nets.CLASSES, "softmax")]
    )
    x, y = nets.examples()
    diagnosis = tfdeep.diagnose(model, x, y if labels else None, CROSSENTROPY)
    assert "vanishing_gradient" in [f.kind for f in diagnosis.findings]


class TestErrors:
    def test_weights_of_other_examples(self):
        x, y = nets.examples()
        with pytest.raises(DataError, match="`sample_weight` of 3"):
            tfdeep.diagnose(net(), x, y, CROSSENTROPY, sample_weight=np.ones(3))

    @pytest.mark.parametrize("labels", ["none", "two", "weighted"])
    def test_class_weight(self, labels):
        x, y = nets.examples()
        weights = np.ones(len(x)) if labels == "weighted" else None
        y = {"none": None, "two": [y, y], "weighted": y}[labels]
        with pytest.raises(InvalidArgumentError, match="by their class"):
            tfdeep.diagnose(
                net(), x, y, "mse", sample_weight=weights, class_weight={0: 1.0}
            )

    def test_weights_of_unknown_losses(self):
        with pytest.raises(InvalidArgumentError, match="which losses to weigh"):
            tfdeep.diagnose(net(), *nets.examples(), loss_weights=[1.0])
