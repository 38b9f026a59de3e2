"""Outputs that do not fit the loss or the targets."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from benchmarks.programs import _data, _nets
from benchmarks.programs._program import Prepared, program

_MISMATCH = "output_mismatch"


# A softmax over one number, which is always 1.


@program(
    "softmax_of_one_activation",
    "31880720",
    "softmax over one unit, as an Activation layer, with binary crossentropy",
    _MISMATCH,
    ("output", "probability"),
    wrong={"last": "softmax"},
    right={"last": "sigmoid"},
)
def _(last: str) -> Prepared:
    x, y = _data.blobs(2000, 2, 128)
    x = (1 / (1 + np.exp(-x))).astype("float32")  # in [0, 1], mean .5
    model = keras.Sequential(
        [
            keras.Input((128,)),
            layers.Dense(50, activation="relu", name="hidden1"),
            layers.Activation("relu", name="relu1"),
            layers.Dropout(0.2, name="dropout1"),
            layers.Dense(50, name="hidden2"),
            layers.Activation("relu", name="relu2"),
            layers.Dropout(0.2, name="dropout2"),
            layers.Dense(1, name="output"),
            layers.Activation(last, name="probability"),
        ]
    )
    model.compile("rmsprop", "binary_crossentropy", metrics=["accuracy"])
    return model, x, y, {"batch_size": 1}


@program(
    "softmax_of_one_digits",
    "42800203",
    "softmax over one unit with binary crossentropy",
    _MISMATCH,
    "output",
    wrong={"last": "softmax"},
    right={"last": "sigmoid"},
)
def _(last: str) -> Prepared:
    x, y = _data.flat_digits()
    model = _nets.dense(64, [32], 1, last)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model, x, (y % 2).astype("float32"), {}


@program(
    "softmax_of_one_layer",
    "NeuraLint 51749207",
    "a Softmax layer after one unit, with a loss object",
    _MISMATCH,
    ("output", "softmax"),
    wrong={"is_softmax": True},
    right={"is_softmax": False},
)
def _(is_softmax: bool) -> Prepared:
    x, y = _data.waves(2000, 120)
    head = layers.Softmax(name="softmax")
    model = keras.Sequential(
        [
            keras.Input((120, 1)),
            layers.Conv1D(20, 4, activation="relu", name="conv1"),
            layers.MaxPooling1D(name="pool1"),
            layers.Dropout(0.3, name="dropout1"),
            layers.Flatten(name="flatten"),
            layers.Dense(50, activation="relu", name="hidden1"),
            *_nets.output(1, head if is_softmax else "sigmoid"),
        ]
    )
    model.compile("nadam", keras.losses.BinaryCrossentropy(), metrics=["accuracy"])
    return model, x, y.astype("float32"), {"batch_size": 8}


@program(
    "softmax_over_one_channel",
    "own",
    "a segmentation net ends in a softmax over one channel",
    _MISMATCH,
    "output",
    wrong={"last": "softmax"},
    right={"last": "sigmoid"},
)
def _(last: str) -> Prepared:
    x, _ = _data.digits(16)
    noise = 0.2 * np.random.RandomState(0).normal(size=x.shape)
    mask = (x > 0.5).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2"),
            layers.Conv2D(1, 1, activation=last, name="output"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, (x + noise).astype("float32"), mask, {"batch_size": 16}


@program(
    "crossentropy_of_one_output",
    "own",
    "categorical crossentropy over one sigmoid: the loss is 0 from the start",
    _MISMATCH,
    "output",
    wrong={"loss": "categorical_crossentropy"},
    right={"loss": "binary_crossentropy"},
)
def _(loss: str) -> Prepared:
    x, y = _data.table(1000, 20)
    model = _nets.dense(20, [32, 16], 1, "sigmoid")
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["binary_accuracy"])
    return model, x, y.astype("float32")[:, None], {"batch_size": 32}


@program(
    "softmax_regression_of_one",
    "own",
    "a regression ends in a softmax over one unit",
    _MISMATCH,
    "output",
    wrong={"last": "softmax"},
    right={"last": "linear"},
)
def _(last: str) -> Prepared:
    x, y = _data.regression(800, 8)
    model = _nets.dense(8, [32, 32], 1, last)
    model.compile(keras.optimizers.Adam(0.003), "mse", metrics=["mae"])
    return model, x, y, {"batch_size": 16}


# A softmax, a sigmoid and a crossentropy that do not belong together.


@program(
    "softmax_mse_multilabel",
    "38648195",
    "softmax and MSE where several labels may hold at once",
    _MISMATCH,
    ("output", "probabilities"),
    wrong={"last": "softmax", "loss": "mean_squared_error"},
    right={"last": "sigmoid", "loss": "binary_crossentropy"},
)
def _(last: str, loss: str) -> Prepared:
    x, _ = _data.table(6000, 20)
    y = np.stack([x[:, :3].sum(1), x[:, 2] - x[:, 3], x[:, 4] + x[:, 5]], axis=1) > 0
    model = keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(20, name="hidden1"),
            layers.Activation("relu", name="relu1"),
            layers.Dropout(0.5, name="dropout1"),
            layers.Dense(20, name="hidden2"),
            layers.Activation("relu", name="relu2"),
            layers.Dropout(0.5, name="dropout2"),
            layers.Dense(3, name="output"),
            layers.Activation(last, name="probabilities"),
        ]
    )
    # The original has inputs of mean 2.5 and a rate of .01, and learns in hours.
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["binary_accuracy"])
    return model, x, y.astype("float32"), {"batch_size": 20}


@program(
    "sigmoid_categorical_iris",
    "59278771",
    "sigmoid units with categorical crossentropy",
    _MISMATCH,
    "output",
    wrong={"last": "sigmoid"},
    right={"last": "softmax"},
)
def _(last: str) -> Prepared:
    x, labels = _data.iris()
    x = x / x.max(axis=0)  # as in the repaired form
    model = _nets.dense(4, [4, 8], 3, last, kernel="he_normal")
    model.compile(
        keras.optimizers.Adam(0.01), "categorical_crossentropy", metrics=["accuracy"]
    )
    return model, x, _data.one_hot(labels, 3), {"batch_size": 5}


@program(
    "sigmoid_categorical_conv",
    "NeuraLint 44399299",
    "sigmoid units with categorical crossentropy, as a loss object",
    _MISMATCH,
    "output",
    wrong={"last": "sigmoid"},
    right={"last": "softmax"},
)
def _(last: str) -> Prepared:
    x, labels = _data.digits(16)
    kept = labels < 4
    x = 7 * (x[kept] * 2 - 1)  # in [-7, 7]
    model = _nets.convolutional((16, 16, 1), [8, 8], [32], 4, last)
    model.compile("adam", keras.losses.CategoricalCrossentropy(), metrics=["accuracy"])
    return model, x, _data.one_hot(labels[kept], 4), {"batch_size": 32}


@program(
    "sigmoid_sparse",
    "own",
    "sigmoid units with sparse categorical crossentropy",
    _MISMATCH,
    "output",
    wrong={"last": "sigmoid"},
    right={"last": "softmax"},
)
def _(last: str) -> Prepared:
    x, y = _data.flat_digits()
    model = _nets.dense(64, [64, 32], 10, last)
    model.compile(
        keras.optimizers.Adam(0.003),
        keras.losses.sparse_categorical_crossentropy,
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 64}


@program(
    "softmax_binary_crossentropy",
    "41327601",
    "binary crossentropy on ten softmax units: an accuracy of .9 that is none",
    _MISMATCH,
    "output",
    wrong={"loss": "binary_crossentropy"},
    right={"loss": "categorical_crossentropy"},
)
def _(loss: str) -> Prepared:
    x, labels = _data.digits()
    model = _nets.convolutional((8, 8, 1), [16], [64], 10, "softmax")
    model.compile("adamax", loss, metrics=["accuracy"])
    return model, x, _data.one_hot(labels, 10), {"batch_size": 64}


def _lenet(outputs: int, last: str | None, loss: object) -> Prepared:
    """LeNet with fewer filters, on digits of 16 pixels or on whether they are even."""
    x, labels = _data.digits(16)
    model = _nets.convolutional(
        (16, 16, 1), [8, 16], [64], outputs, last, size=5, dropout=0.25
    )
    model.compile("adam", loss, metrics=["accuracy"])
    if outputs == 1:
        return model, x, (labels % 2).astype("float32"), {"batch_size": 32}
    return model, x, _data.one_hot(labels, 10), {"batch_size": 32}


_RIGHT = {"outputs": 10, "last": "softmax", "loss": "categorical_crossentropy"}
_RIGHT_BINARY = {"outputs": 1, "last": "sigmoid", "loss": "binary_crossentropy"}
_LENET = {
    "no_softmax": ("no softmax before categorical crossentropy", {"last": None}),
    "softmax_mse": ("softmax with MSE", {"loss": "mse"}),
    "relu_crossentropy": ("ReLU before categorical crossentropy", {"last": "relu"}),
    "tanh_crossentropy": ("tanh before categorical crossentropy", {"last": "tanh"}),
    "softmax_and_logits": (
        "softmax and from_logits=True",
        {"loss": keras.losses.CategoricalCrossentropy(from_logits=True)},
    ),
    "kullback_leibler_of_logits": (
        "no softmax before the Kullback-Leibler divergence",
        {"last": None, "loss": "kl_divergence"},
    ),
}
_LENET_BINARY = {
    "no_sigmoid": ("no sigmoid before binary crossentropy", {"last": None}),
    "sigmoid_and_logits": (
        "sigmoid and from_logits=True",
        {"loss": keras.losses.BinaryCrossentropy(from_logits=True)},
    ),
    "tanh_binary": ("tanh before binary crossentropy", {"last": "tanh"}),
}
for _cases, _repaired in ((_LENET, _RIGHT), (_LENET_BINARY, _RIGHT_BINARY)):
    for _name, (_fault, _change) in _cases.items():
        program(
            f"lenet_{_name}",
            "NeuraLint",
            _fault,
            _MISMATCH,
            "output",
            wrong={**_repaired, **_change},
            right=_repaired,
        )(_lenet)


@program(
    "logits_into_function",
    "UMLAUT a2",
    "logits into sparse crossentropy, given as a function, that expects probabilities",
    _MISMATCH,
    "output",
    wrong={"last": None},
    right={"last": "softmax"},
)
def _(last: str | None) -> Prepared:
    x, y = _data.photos(8)
    model = _nets.convolutional((16, 16, 3), [16], [64], 10, last)
    model.compile(
        "adam", keras.losses.sparse_categorical_crossentropy, metrics=["accuracy"]
    )
    return model, x, y, {"batch_size": 64}


@program(
    "no_softmax_ten_binary",
    "NeuraLint gh6",
    "no softmax before binary crossentropy over ten classes",
    _MISMATCH,
    "output",
    wrong={"last": None, "loss": "binary_crossentropy"},
    right={"last": "softmax", "loss": "categorical_crossentropy"},
)
def _(last: str | None, loss: str) -> Prepared:
    x, labels = _data.digits(16)
    x = (x - x.mean()) / x.std()
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(8, 5, name="conv1"),
            layers.Activation("relu", name="relu1"),
            layers.AveragePooling2D(2, name="pool1"),
            layers.Flatten(name="flatten"),
            layers.Dense(64, name="hidden1"),
            layers.Activation("relu", name="relu2"),
            *_nets.output(10, last),
        ]
    )
    model.compile("adam", loss, metrics=["accuracy"])
    return model, x, _data.one_hot(labels, 10), {"batch_size": 64}


@program(
    "softmax_twice",
    "own",
    "a softmax layer after a softmax",
    _MISMATCH,
    ("output", "probabilities"),
    wrong={"last": "softmax"},
    right={"last": None},
)
def _(last: str | None) -> Prepared:
    x, y = _data.flat_digits()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, activation="relu", name="hidden1"),
            layers.Dense(10, activation=last, name="output"),
            layers.Softmax(name="probabilities"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.003),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


@program(
    "relu_crossentropy_lambda",
    "47352366",
    "ReLU on the output, crossentropy written as a lambda",
    _MISMATCH,
    "output",
    wrong={"last": "relu"},
    right={"last": "softmax"},
)
def _(last: str) -> Prepared:
    x, labels = _data.flat_digits()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Reshape((8, 8, 1), name="image"),
            layers.Conv2D(16, 3, activation="relu", padding="same", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Flatten(name="flatten"),
            layers.Dense(128, activation="relu", name="hidden1"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(10, activation=last, name="output"),
        ]
    )
    model.compile(
        "adam",
        lambda y, p: keras.losses.categorical_crossentropy(y, p),
        metrics=["accuracy"],
    )
    return model, x, _data.one_hot(labels, 10), {"batch_size": 50}


@program(
    "relu_binary_crossentropy",
    "44066044",
    "ReLU on the output with binary crossentropy",
    _MISMATCH,
    "output",
    wrong={"last": "relu"},
    right={"last": "sigmoid"},
)
def _(last: str) -> Prepared:
    # The original has 21 rows and inputs of 3e9, which is another fault.
    x, y = _data.table(200, 11)
    model = _nets.dense(11, [12, 12], 1, last)
    model.compile(
        keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x, y.astype("float32"), {"batch_size": 5}


class Classifier(keras.Model):
    """A subclassed model of two layers."""

    def __init__(self, last: str | None) -> None:
        super().__init__()
        self.hidden = layers.Dense(64, activation="relu", name="hidden")
        self.scores = layers.Dense(10, activation=last, name="scores")

    def call(self, x):
        return self.scores(self.hidden(x))


@program(
    "subclassed_logits",
    "own",
    "a subclassed model gives logits to SparseCategoricalCrossentropy()",
    _MISMATCH,
    "scores",
    wrong={"from_logits": False},
    right={"from_logits": True},
)
def _(from_logits: bool) -> Prepared:
    x, y = _data.flat_digits()
    model = Classifier(None)
    model.compile(
        keras.optimizers.Adam(0.003),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


# Outputs that cannot reach the targets.


@program(
    "sigmoid_targets_to_103",
    "48221692",
    "a sigmoid for targets from 3 to 103",
    _MISMATCH,
    "output",
    wrong={"last": "sigmoid"},
    right={"last": None},
)
def _(last: str | None) -> Prepared:
    x = np.arange(-10, 5, 0.1, dtype="float32")[:, None]
    x = np.tile(x, (20, 1))  # 20 of the original's epochs are one
    y = (x[:, 0] ** 2 + 3).astype("float32")
    model = _nets.dense(1, [5], 1, last, activation="sigmoid")
    model.compile(keras.optimizers.SGD(0.01), "mean_squared_error")
    return model, x, y, {"batch_size": 150}


@program(
    "relu_for_keypoints",
    "facial2",
    "ReLU on the output for coordinates in [-1, 1]",
    _MISMATCH,
    "output",
    wrong={"last": "relu"},
    right={"last": None},
)
def _(last: str | None) -> Prepared:
    # Images of 16 pixels instead of 96, and nonlinear layers.
    x, labels = _data.digits(16)
    places = np.random.RandomState(0).uniform(-0.8, 0.8, size=(10, 30))
    model = _nets.convolutional((16, 16, 1), [8, 16], [64], 30, last)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mean_squared_error")
    return model, x, places[labels].astype("float32"), {"batch_size": 32}


@program(
    "tanh_targets_to_3",
    "own",
    "tanh on the output for standardized targets, which reach 3",
    _MISMATCH,
    "output",
    wrong={"last": "tanh"},
    right={"last": "linear"},
)
def _(last: str) -> Prepared:
    x, y = _data.regression(1000, 6)
    y = y * np.float32(1.3)
    model = _nets.dense(6, [32, 32], 1, last, activation="tanh")
    model.compile(keras.optimizers.Adam(0.003), keras.losses.MeanSquaredError())
    return model, x, y, {"batch_size": 32}


@program(
    "sigmoid_autoencoder_of_centered_pixels",
    "own",
    "an autoencoder ends in a sigmoid, but its pixels lie in [-1, 1]",
    _MISMATCH,
    "output",
    wrong={"last": "sigmoid"},
    right={"last": "tanh"},
)
def _(last: str) -> Prepared:
    x = _data.flat_digits()[0] * 2 - 1
    model = _nets.dense(64, [48, 24, 48], 64, last)
    model.compile(keras.optimizers.Adam(0.003), "mse")
    return model, x, x, {"batch_size": 64}


@program(
    "relu_for_log_returns",
    "own",
    "ReLU on the output of a recurrent net for targets of both signs",
    _MISMATCH,
    "output",
    wrong={"last": "relu"},
    right={"last": None},
)
def _(last: str | None) -> Prepared:
    series, _ = _data.waves(640, 25)
    x, y = series[:, :24], series[:, 24]
    model = keras.Sequential(
        [
            keras.Input((24, 1)),
            layers.LSTM(16, name="lstm"),
            layers.Dense(1, activation=last, name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mae")
    return model, x, y, {"batch_size": 64}


@program(
    "softmax_for_shares_of_a_budget",
    "own",
    "softmax, whose units sum to 1, for amounts that do not",
    _MISMATCH,
    "output",
    wrong={"last": "softmax"},
    right={"last": "softplus"},
)
def _(last: str) -> Prepared:
    x, _ = _data.regression(800, 6)
    y = np.exp(0.5 * x[:, :3]) * np.array([1.0, 2.0, 3.0])
    model = _nets.dense(6, [32, 32], 3, last)
    model.compile(keras.optimizers.Adam(0.005), "mae")
    return model, x, y.astype("float32"), {"batch_size": 40}


@program(
    "linear_into_poisson",
    "own",
    "a linear output, which becomes negative, into the Poisson loss",
    _MISMATCH,
    "output",
    wrong={"last": None},
    right={"last": "exponential"},
)
def _(last: str | None) -> Prepared:
    random = np.random.RandomState(0)
    x = random.normal(size=(800, 5)).astype("float32")
    y = random.poisson(np.exp(x @ [0.8, -0.6, 0.4, 0.3, 0.0])).astype("float32")
    model = _nets.dense(5, [16], 1, last)
    model.compile(keras.optimizers.Adam(0.01), "poisson")
    return model, x, y[:, None], {"batch_size": 32}


# Shapes that broadcast.


@program(
    "no_flatten",
    "NeuraLint 45120429",
    "no Flatten: 28 times 32 outputs, against which the labels are repeated",
    _MISMATCH,
    wrong={"is_flat": False},
    right={"is_flat": True},
)
def _(is_flat: bool) -> Prepared:
    x, labels = _data.waves(1000, 32)
    net = [keras.Input((32, 1))]
    for i in range(1, 5):
        net.append(layers.Conv1D(16, 2, name=f"conv{i}"))
        net.append(layers.Activation("relu", name=f"relu{i}"))
    if is_flat:
        net.append(layers.Flatten(name="flatten"))
    net.append(layers.Dense(32, name="dense"))
    net.append(layers.Activation("sigmoid", name="sigmoid"))
    y = labels.astype("float32")
    if is_flat:
        net.append(layers.Dense(1, activation="sigmoid", name="output"))
    else:
        y = np.broadcast_to(y[:, None, None], (1000, 28, 32)).copy()
    model = keras.Sequential(net)
    model.compile(
        keras.optimizers.RMSprop(0.001), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x, y, {"batch_size": 32}


@program(
    "one_unit_for_three_targets",
    "own",
    "one output for three targets, against all of which it is compared",
    _MISMATCH,
    wrong={"outputs": 1},
    right={"outputs": 3},
)
def _(outputs: int) -> Prepared:
    x, _ = _data.regression(800, 6)
    y = np.tanh(x[:, :3]) - x[:, 3:]
    model = _nets.dense(6, [32, 32], outputs)
    model.compile(keras.optimizers.Adam(0.005), "mse")
    return model, x, y, {"batch_size": 32}


@program(
    "sequences_against_one_target",
    "own",
    "return_sequences=True at the last LSTM: each time step against one target",
    _MISMATCH,
    wrong={"return_sequences": True},
    right={"return_sequences": False},
)
def _(return_sequences: bool) -> Prepared:
    x = np.random.RandomState(0).uniform(size=(800, 12, 1)).astype("float32")
    y = (x.sum(axis=1) - 6).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((12, 1)),
            layers.LSTM(16, return_sequences=return_sequences, name="lstm"),
            layers.Dense(1, name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model, x, y, {"batch_size": 32}


@program(
    "row_minus_column",
    "own",
    "a loss written by hand subtracts a column from a row: all pairs are compared",
    _MISMATCH,
    wrong={"is_column": False},
    right={"is_column": True},
)
def _(is_column: bool) -> Prepared:
    x, y = _data.regression(800, 6)

    class Squared(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return keras.ops.mean(keras.ops.square(y_true - y_pred))

    model = _nets.dense(6, [32, 32], 1)
    model.compile(keras.optimizers.Adam(0.005), Squared())
    return model, x, y if is_column else y[:, 0], {"batch_size": 32}


# Several outputs, of which one does not fit.


def _two_heads(kind: str, score: str | None) -> Prepared:
    """Two outputs over common layers: which digit it is, and a yes or no."""
    x, labels = _data.flat_digits()
    inputs = keras.Input((64,), name="pixels")
    common = layers.Dense(64, activation="relu", name="common")(inputs)
    digit = layers.Dense(10, activation=kind, name="digit")(common)
    even = layers.Dense(1, activation=score, name="even")(common)
    model = keras.Model(inputs, {"digit": digit, "even": even})
    model.compile(
        keras.optimizers.Adam(0.003),
        {
            "digit": "sparse_categorical_crossentropy",
            "even": "binary_crossentropy",
        },
        metrics={"digit": ["accuracy"], "even": ["accuracy"]},
    )
    y = {"digit": labels, "even": (labels % 2).astype("float32")[:, None]}
    return model, x, y, {"batch_size": 32}


_HEADS = {"kind": "softmax", "score": "sigmoid"}
program(
    "second_head_softmax_of_one",
    "own",
    "of two outputs, the second is a softmax over one unit",
    _MISMATCH,
    "even",
    wrong={**_HEADS, "score": "softmax"},
    right=_HEADS,
)(_two_heads)
program(
    "first_head_without_softmax",
    "own",
    "of two outputs, the first gives logits to a loss that expects probabilities",
    _MISMATCH,
    "digit",
    wrong={**_HEADS, "kind": None},
    right=_HEADS,
)(_two_heads)
