import itertools

import keras
import numpy as np
import pytest

import tfdeep
from tests import nets
from tfdeep.errors import InvalidArgumentError


def kernels(model):
    return [v.numpy() for v in model.weights if v.name == "kernel"]


def test_the_layers_are_named_and_sized_as_asked():
    model = tfdeep.models.dnn((64,), [100, 50], 5)
    assert [layer.name for layer in model.layers] == [
        "inputs",
        "hidden1",
        "hidden2",
        "outputs",
    ]
    assert [w.shape for w in model.weights] == [
        (64, 100), (100,), (100, 50), (50,), (50, 5), (5,)
    ]  # fmt: skip
    assert model.get_layer("hidden2").activation is keras.activations.elu
    assert model.get_layer("outputs").activation is keras.activations.linear


# The variance is the second number over the inputs, or over the mean of inputs and
# outputs.
SCALES = {
    "relu": ("fan_in", 2),
    "leaky_relu": ("fan_in", 2),
    "elu": ("fan_in", 2),
    "gelu": ("fan_in", 2),
    "swish": ("fan_in", 2),
    "selu": ("fan_in", 1),
    "tanh": ("fan_avg", 1),
    "sigmoid": ("fan_avg", 1),
    None: ("fan_avg", 1),
}


@pytest.mark.parametrize("activation", SCALES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_auto_picks_the_scaling_that_fits_the_activation(activation, batch_norm):
    model = tfdeep.models.dnn(
        (400,), [800], 2, activation=activation, batch_norm=batch_norm
    )
    mode, scale = SCALES[activation]
    fan = {"fan_in": 400, "fan_avg": 600}[mode]
    np.testing.assert_allclose(kernels(model)[0].std(), np.sqrt(scale / fan), rtol=0.01)


@pytest.mark.parametrize("initializer", ["he_normal", keras.initializers.HeNormal()])
def test_a_given_initializer_draws_anew_for_each_layer(initializer):
    model = tfdeep.models.dnn((9,), [9, 9, 9], 9, kernel_initializer=initializer)
    drawn = kernels(model)[:3]
    assert not any((a == b).any() for a, b in itertools.pairwise(drawn))
    np.testing.assert_allclose(np.std(drawn), np.sqrt(2 / 9), rtol=0.15)


def test_batch_norm_stands_before_the_activation_without_a_bias():
    model = tfdeep.models.dnn((4,), [3, 3], 2, activation="relu", batch_norm=True)
    block = model.get_layer("hidden1")
    assert [type(layer).__name__ for layer in block.layers] == [
        "Dense",
        "BatchNormalization",
        "Activation",
    ]
    assert not block.layers[0].use_bias
    report = tfdeep.freeze(model, "hidden1")
    assert report.frozen == (
        "hidden1/dense/kernel",
        "hidden1/batch_norm/gamma",
        "hidden1/batch_norm/beta",
        "hidden1/batch_norm/moving_mean",
        "hidden1/batch_norm/moving_variance",
    )


@pytest.mark.parametrize(
    ("activation", "kind"), [("relu", "Dropout"), ("selu", "AlphaDropout")]
)
def test_dropout_follows_each_hidden_layer(activation, kind):
    model = tfdeep.models.dnn((4,), [3, 3], 2, activation=activation, dropout_rate=0.2)
    dropouts = [layer for layer in model.layers if type(layer).__name__ == kind]
    assert [layer.name for layer in dropouts] == ["dropout1", "dropout2"]
    assert {layer.rate for layer in dropouts} == {0.2}


def test_images_are_flattened():
    model = tfdeep.models.dnn((8, 8, 3), [5], 2)
    assert model(np.zeros((2, 8, 8, 3))).shape == (2, 2)


def test_it_saves_and_loads_without_tfdeep(tmp_path):
    model = tfdeep.models.dnn(
        (nets.INPUTS,), [4, 4], 2, batch_norm=True, dropout_rate=0.1
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x, _ = nets.examples(8)
    np.testing.assert_array_equal(model(x), loaded(x))
    assert "tfdeep" not in model.to_json()


@pytest.mark.parametrize(
    ("units", "outputs"),
    [([], 3), ([0], 3), ([5, -1], 3), ([5], 0), ([2.5], 3), ([True], 3)],
)
def test_sizes_that_cannot_be_built_are_refused(units, outputs):
    with pytest.raises(InvalidArgumentError, match="hidden_units="):
        tfdeep.models.dnn((4,), units, outputs)


def test_sizes_may_be_numpy_integers():
    model = tfdeep.models.dnn((4,), np.array([5, 6]), np.int64(3))
    assert model.output_shape == (None, 3)
    assert model.get_layer("hidden2").units == 6


@pytest.mark.parametrize("rate", [-0.1, 1.0, "0.5", None])
def test_a_dropout_rate_outside_its_range_is_refused(rate):
    with pytest.raises(InvalidArgumentError, match="a finite number >= 0 and < 1"):
        tfdeep.models.dnn((4,), [3], 2, dropout_rate=rate)


def test_auto_says_when_it_knows_no_initializer():
    def own(x):
        return x

    with pytest.raises(InvalidArgumentError, match="kernel_initializer='auto'"):
        tfdeep.models.dnn((4,), [3], 2, activation=own)
    tfdeep.models.dnn((4,), [3], 2, activation=own, kernel_initializer="he_normal")
    tfdeep.models.dnn((4,), [3], 2, activation=keras.layers.LeakyReLU())


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ((64, [10]), "`input_shape=(64,)`"),
        (((64,), 10), "`hidden_units=[10]`"),
        ((64, 10), "`input_shape=(64,), hidden_units=[10]`"),
    ],
)
def test_a_number_in_place_of_a_sequence_is_explained(arguments, remedy):
    with pytest.raises(InvalidArgumentError) as error:
        tfdeep.models.dnn(*arguments, num_outputs=2)
    assert f"Fix:      {remedy}" in str(error.value)
