"""Inputs that are not scaled, hold what is no number, or have their axes mixed up."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.programs import _data, _nets
from benchmarks.programs._program import Prepared, program

_SCALE = "input_scale"
_BAD = "bad_input"


# The scale.


@program(
    "pixels_to_255_sigmoid",
    "55328966",
    "pixels up to 255; sigmoid units with categorical crossentropy",
    (_SCALE, "output_mismatch"),
    wrong={"brightest": 255, "last": "sigmoid", "optimizer": "sgd", "rate": 1e-4},
    right={"brightest": 1, "last": "softmax", "optimizer": "adam", "rate": 1e-3},
)
def _(brightest: float, last: str, optimizer: str, rate: float) -> Prepared:
    x, labels = _data.flat_digits(brightest)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, name="hidden1"),
            layers.Dense(50, activation="relu", name="hidden2"),
            layers.Dense(10, activation=last, name="output"),
        ]
    )
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.learning_rate = rate
    return model, x, _data.one_hot(labels, 10), {"batch_size": 32}


@program(
    "census_in_dollars",
    "47724077",
    "features up to 1.5 million beside others of 0 and 1",
    _SCALE,
    wrong={"is_standardized": False},
    right={"is_standardized": True},
)
def _(is_standardized: bool) -> Prepared:
    x, labels = _data.table(3200, 14)
    if not is_standardized:
        x = np.abs(x) * np.array([4e5, 2e3, 90, *[40, 10, 1] * 3, 1, 1])
        x = x.astype("float32")
    model = keras.Sequential(
        [
            keras.Input((14,)),
            layers.Dense(21, name="hidden1"),
            layers.Activation("relu", name="relu1"),
            layers.Dense(2, name="output"),
            layers.Activation("softmax", name="probabilities"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.005), "categorical_crossentropy", metrics=["accuracy"]
    )
    return model, x, _data.one_hot(labels, 2), {"batch_size": 100}


@program(
    "photos_to_255_he",
    "48594888",
    "pixels up to 255 into convolutions with HeNormal",
    _SCALE,
    wrong={"brightest": 255},
    right={"brightest": 1},
)
def _(brightest: float) -> Prepared:
    x, labels = _data.photos(10, brightest=brightest)
    model = _nets.convolutional(
        (16, 16, 3), [8, 16], [64], 10, "softmax", kernel="he_normal", dropout=0.3
    )
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model, x, _data.one_hot(labels, 10), {"batch_size": 50}


@program(
    "photos_to_255_batch_of_one",
    "41600519",
    "pixels up to 255, RMSprop, one image a step",
    _SCALE,
    wrong={"brightest": 255, "batch_size": 1},
    right={"brightest": 1, "batch_size": 64},
)
def _(brightest: float, batch_size: int) -> Prepared:
    x, labels = _data.photos(2, brightest=brightest)
    model = _nets.convolutional((16, 16, 3), [8, 16], [32], 1, "sigmoid")
    model.compile("rmsprop", "binary_crossentropy", metrics=["accuracy"])
    return model, x, labels.astype("float32"), {"batch_size": batch_size}


@program(
    "pixels_to_255_dataset",
    "first hour",
    "a dataset of pixels up to 255 into a dense net with SGD(.01)",
    _SCALE,
    wrong={"brightest": 255},
    right={"brightest": 1},
)
def _(brightest: float) -> Prepared:
    x, y = _data.digits(brightest=brightest)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(name="flatten"),
            layers.Dense(128, activation="relu", name="hidden1"),
            layers.Dense(64, activation="relu", name="hidden2"),
            layers.Dense(10, name="output"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(1797).batch(32)
    return model, dataset, None, {}


@program(
    "network_traffic",
    "ddos",
    "byte counts up to 95,000 under dropout of .4",
    _SCALE,
    wrong={"is_standardized": False},
    right={"is_standardized": True},
)
def _(is_standardized: bool) -> Prepared:
    # The repair of the source, narrower layers, leaves the inputs as they are.
    x, labels = _data.blobs(3000, 5, 27)
    if not is_standardized:
        gain = np.geomspace(0.01, 2e4, 27)
        x = (np.exp(0.5 * x) * gain).astype("float32")
    model = _nets.dense(27, [22, 64, 64], 5, "softmax", dropout=0.4)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model, x, _data.one_hot(labels, 5), {"batch_size": 32}


@program(
    "line_without_scaling",
    "46642627",
    "inputs up to 1000 and targets up to 3000 with SGD(.01): NaN",
    (_SCALE, "target_scale"),
    wrong={"is_scaled": False},
    right={"is_scaled": True},
)
def _(is_scaled: bool) -> Prepared:
    random = np.random.RandomState(0)
    x = random.uniform(0, 1000, size=(1000, 1))
    y = 3 * x + 5 * random.normal(size=(1000, 1))
    if is_scaled:
        x, y = x / 1000 - 1, y / 3000 - 1
    model = _nets.dense(1, [10], 1)
    optimizer = (
        keras.optimizers.Adam(0.003) if is_scaled else keras.optimizers.SGD(0.01)
    )
    model.compile(optimizer, "mse")
    return model, x.astype("float32"), y.astype("float32"), {"batch_size": 32}


@program(
    "time_stamps",
    "own",
    "one column of seconds since 1970 among standardized features",
    _SCALE,
    wrong={"has_seconds": True},
    right={"has_seconds": False},
)
def _(has_seconds: bool) -> Prepared:
    x, y = _data.table(1000, 8)
    if has_seconds:
        x[:, 3] = 1.6e9 + 3e7 * x[:, 3]
    model = _nets.dense(8, [32, 32], 1, "sigmoid")
    model.compile(
        keras.optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x, y.astype("float32"), {"batch_size": 32}


@program(
    "stock_prices_into_lstm",
    "StackOverflow",
    "an LSTM reads prices of 1000 to 3000: its gates saturate",
    _SCALE,
    wrong={"is_standardized": False},
    right={"is_standardized": True},
)
def _(is_standardized: bool) -> Prepared:
    x, _ = _data.waves(640, 16)
    y = _data.standardized(x[:, -8:].mean(axis=1))
    if not is_standardized:
        x = 2000 + 400 * x
    model = keras.Sequential(
        [
            keras.Input((16, 1)),
            layers.LSTM(24, name="lstm"),
            layers.Dense(1, name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "mse")
    return model, x, y, {"batch_size": 32}


@program(
    "divided_by_255_twice",
    "StackOverflow",
    "pixels divided by 255 in the data and in a Rescaling layer",
    _SCALE,
    wrong={"brightest": 1},
    right={"brightest": 255},
)
def _(brightest: float) -> Prepared:
    x, y = _data.digits(brightest=brightest)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255, name="rescaling"),
            layers.Conv2D(16, 3, activation="relu", name="conv1"),
            layers.Flatten(name="flatten"),
            layers.Dense(32, activation="relu", name="hidden1"),
            layers.Dense(10, activation="softmax", name="output"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


@program(
    "years_with_random_biases",
    "own",
    "years, of mean 2000, with biases drawn at random",
    _SCALE,
    wrong={"origin": 2000},
    right={"origin": 0},
)
def _(origin: float) -> Prepared:
    x, y = _data.table(1000, 4)
    x = (x * (8 if origin else 1) + origin).astype("float32")
    model = _nets.dense(
        4, [32, 32], 1, "sigmoid", activation="tanh", bias="random_normal"
    )
    model.compile(
        keras.optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x, y.astype("float32"), {"batch_size": 50}


# The order of the axes.


@program(
    "channels_first_photos",
    "NeuraLint gh8",
    "images (3, 16, 16) into convolutions that expect channels last",
    "axis_order",
    wrong={"is_channels_first": True},
    right={"is_channels_first": False},
)
def _(is_channels_first: bool) -> Prepared:
    x, labels = _data.photos(5)
    if is_channels_first:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.GaussianNoise(0.05, name="noise"),
            layers.Conv2D(8, 3, activation="relu", name="conv1"),
            layers.Dropout(0.2, name="dropout1"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.2, name="dropout2"),
            layers.Dense(64, activation="relu", name="hidden1"),
            layers.Dense(64, activation="relu", name="hidden2"),
            layers.Dense(5, activation="softmax", name="output"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, _data.one_hot(labels, 5), {"batch_size": 32}


@program(
    "channels_first_gray",
    "StackOverflow",
    "gray images (1, 16, 16) into convolutions that expect channels last",
    "axis_order",
    wrong={"is_channels_first": True},
    right={"is_channels_first": False},
)
def _(is_channels_first: bool) -> Prepared:
    x, y = _data.digits(16)
    if is_channels_first:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2"),
            layers.Flatten(name="flatten"),
            layers.Dense(32, activation="relu", name="hidden1"),
            layers.Dense(10, name="output"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.003),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 64}


# What is no number.


@program(
    "nan_in_one_row",
    "first hour",
    "one row of 640 holds NaN",
    _BAD,
    wrong={"is_clean": False},
    right={"is_clean": True},
)
def _(is_clean: bool) -> Prepared:
    x, y = _data.flat_digits()
    if not is_clean:
        x[300, 20] = np.nan
    model = _nets.dense(64, [64, 32], 10, "softmax")
    model.compile(
        keras.optimizers.Adam(0.003),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x[:640], y[:640], {"batch_size": 32, "shuffle": False}


@program(
    "missing_values",
    "StackOverflow",
    "a column of a table with missing values",
    _BAD,
    wrong={"is_filled": False},
    right={"is_filled": True},
)
def _(is_filled: bool) -> Prepared:
    x, y = _data.table(1000, 10)
    missing = np.random.RandomState(0).uniform(size=1000) < 0.2
    x[missing, 4] = 0 if is_filled else np.nan
    model = _nets.dense(10, [32, 32], 1, "sigmoid")
    model.compile(
        keras.optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x, y.astype("float32"), {"batch_size": 10}


@program(
    "ratio_of_zero",
    "own",
    "a feature is a ratio whose denominator is sometimes 0: infinite",
    _BAD,
    wrong={"smallest": 0.0},
    right={"smallest": 1.0},
)
def _(smallest: float) -> Prepared:
    x, y = _data.regression(1000, 6)
    visits = np.random.RandomState(0).poisson(4, size=1000)
    with np.errstate(divide="ignore"):
        x[:, 5] = 3 / np.maximum(visits, smallest)
    model = _nets.dense(6, [32, 32], 1)
    model.compile(keras.optimizers.Adam(0.005), "mse")
    return model, x, y, {"batch_size": 32}


@program(
    "standardized_constant",
    "own",
    "a constant pixel, standardized, is 0 / 0 in all rows",
    _BAD,
    wrong={"epsilon": 0.0},
    right={"epsilon": 1e-6},
)
def _(epsilon: float) -> Prepared:
    x, y = _data.flat_digits()
    with np.errstate(invalid="ignore"):
        x = (x - x.mean(axis=0)) / (x.std(axis=0) + np.float32(epsilon))
    model = _nets.dense(64, [64], 10, "softmax")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, x, y, {"batch_size": 32}
