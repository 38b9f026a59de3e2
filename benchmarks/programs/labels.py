"""Labels and targets that no output can meet, or not in reasonable time."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.programs import _data, _nets
from benchmarks.programs._program import Prepared, program

_LABELS = "bad_labels"
_SCALE = "target_scale"


# Labels outside of what the loss is made for.


@program(
    "three_classes_one_sigmoid",
    "StackOverflow",
    "classes 0, 1 and 2 for one sigmoid with binary crossentropy",
    _LABELS,
    wrong={"is_binary": True},
    right={"is_binary": False},
)
def _(is_binary: bool) -> Prepared:
    x, labels = _data.blobs(600, 3, 4)
    model = _nets.dense(4, [16, 16], *((1, "sigmoid") if is_binary else (3, "softmax")))
    loss = "binary_crossentropy" if is_binary else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])
    return model, x, labels.astype("float32")[:, None], {"batch_size": 16}


@program(
    "labels_minus_one_and_one",
    "StackOverflow",
    "labels -1 and 1 for a sigmoid with binary crossentropy",
    _LABELS,
    wrong={"lowest": -1.0},
    right={"lowest": 0.0},
)
def _(lowest: float) -> Prepared:
    x, labels = _data.table(1000, 10)
    y = np.where(labels == 1, 1.0, lowest).astype("float32")
    model = _nets.dense(10, [32, 16], 1, "sigmoid")
    model.compile(
        keras.optimizers.Adam(0.005),
        keras.losses.BinaryCrossentropy(),
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


@program(
    "labels_divided_by_255",
    "StackOverflow",
    "labels divided by 255 with the pixels: all become class 0",
    _LABELS,
    wrong={"divisor": 255},
    right={"divisor": 1},
)
def _(divisor: int) -> Prepared:
    x, y = _data.flat_digits()
    model = _nets.dense(64, [64], 10, "softmax")
    model.compile(
        keras.optimizers.Adam(0.003),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, (y / divisor).astype("float32"), {"batch_size": 32}


@program(
    "mask_of_0_and_255",
    "StackOverflow",
    "a mask of 0 and 255, as read from a PNG file, with binary crossentropy",
    _LABELS,
    wrong={"highest": 255.0},
    right={"highest": 1.0},
)
def _(highest: float) -> Prepared:
    x, _ = _data.digits(16)
    mask = (x > 0.5) * np.float32(highest)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2"),
            layers.Conv2D(1, 1, activation="sigmoid", name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "binary_crossentropy")
    return model, x, mask, {"batch_size": 16}


@program(
    "one_class_only",
    "41372874",
    "all labels are 1: there is nothing to tell apart",
    _LABELS,
    wrong={"is_only": True},
    right={"is_only": False},
)
def _(is_only: bool) -> Prepared:
    x, labels = _data.blobs(240, 2, 2)
    y = np.ones(240) if is_only else labels
    model = _nets.dense(2, [8, 8], 1, "sigmoid")
    model.compile(
        keras.optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x, y.astype("float32"), {"batch_size": 2}


@program(
    "missing_labels",
    "own",
    "some targets are NaN, as missing values in a CSV file",
    _LABELS,
    wrong={"is_complete": False},
    right={"is_complete": True},
)
def _(is_complete: bool) -> Prepared:
    x, y = _data.regression(1000, 8)
    missing = np.random.RandomState(0).uniform(size=1000) < 0.03
    if is_complete:
        x, y = x[~missing], y[~missing]
    else:
        y[missing] = np.nan
    model = _nets.dense(8, [32, 32], 1)
    model.compile(keras.optimizers.Adam(0.003), "mse")
    return model, x, y, {"batch_size": 32}


@program(
    "several_classes_a_row",
    "own",
    "rows with up to four 1s for a softmax with categorical crossentropy",
    (_LABELS, "output_mismatch"),
    wrong={"last": "softmax", "loss": "categorical_crossentropy"},
    right={"last": "sigmoid", "loss": "binary_crossentropy"},
)
def _(last: str, loss: str) -> Prepared:
    x, _ = _data.table(1000, 12)
    y = (x[:, :6] + x[:, 6:] > -0.3).astype("float32")
    model = _nets.dense(12, [32, 32], 6, last)
    model.compile(keras.optimizers.Adam(0.003), loss, metrics=["binary_accuracy"])
    return model, x, y, {"batch_size": 32}


@program(
    "classes_from_one",
    "StackOverflow",
    "classes 1 to 3 for three units: class 3 does not exist, unit 0 is never right",
    _LABELS,
    wrong={"first": 1},
    right={"first": 0},
)
def _(first: int) -> Prepared:
    x, labels = _data.blobs(600, 3, 6)
    model = _nets.dense(6, [16], 3, "softmax")
    model.compile(
        keras.optimizers.Adam(0.005),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, labels + first, {"batch_size": 20}


@program(
    "one_hot_with_zeros_as_minus_one",
    "own",
    "one-hot rows of -1 and 1, scaled with the inputs, for categorical crossentropy",
    _LABELS,
    wrong={"lowest": -1.0},
    right={"lowest": 0.0},
)
def _(lowest: float) -> Prepared:
    x, labels = _data.blobs(800, 5, 10)
    y = np.where(_data.one_hot(labels, 5) > 0, 1.0, lowest).astype("float32")
    model = _nets.dense(10, [32], 5, "softmax")
    model.compile(
        keras.optimizers.Adam(0.005), "categorical_crossentropy", metrics=["accuracy"]
    )
    return model, x, y, {"batch_size": 32}


# Targets of a regression whose scale or offset is out of reach.


@program(
    "house_prices",
    "melbourne",
    "house prices of 35,000 to 755,000 as targets, batch 1",
    _SCALE,
    wrong={"is_standardized": False, "batch_size": 1},
    right={"is_standardized": True, "batch_size": 16},
)
def _(is_standardized: bool, batch_size: int) -> Prepared:
    # The repair of the source, a larger net, does not help; this one does.
    x, _ = _data.regression(1460, 36)
    y = _data.standardized(x[:, :6].sum(axis=1, keepdims=True))
    prices = np.clip(181_000 + 79_000 * y, 34_900, 755_000)
    if is_standardized:
        prices = _data.standardized(prices)
    model = _nets.dense(36, [20, 20], 1, activation="tanh", kernel="glorot_normal")
    model.compile("adam", "mean_absolute_error")
    return model, x, prices[:, 0].astype("float32"), {"batch_size": batch_size}


@program(
    "line_with_slow_rmsprop",
    "51181393",
    "RMSprop(.001) for a line that rises to 228",
    ("slow_learning", _SCALE, "input_scale"),
    wrong={"rate": 0.001},
    right={"rate": 0.1},
)
def _(rate: float) -> Prepared:
    x = np.arange(100, dtype="float32")[:, None]
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, name="output")])
    model.compile(keras.optimizers.RMSprop(rate), "mean_squared_error")
    return model, x, 2 * x + 30, {"batch_size": 10}


@program(
    "lstm_targets_of_hundreds",
    "first hour",
    "an LSTM for targets of deviation 140",
    _SCALE,
    wrong={"is_standardized": False},
    right={"is_standardized": True},
)
def _(is_standardized: bool) -> Prepared:
    x = np.random.RandomState(0).normal(size=(640, 10, 1)).astype("float32")
    y = _data.standardized(x.sum(axis=1))
    if not is_standardized:
        y = 140 * y + 100
    model = keras.Sequential(
        [
            keras.Input((10, 1)),
            layers.LSTM(16, name="lstm"),
            layers.Dense(1, name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "mse")
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(640).batch(32)
    return model, dataset, None, {}


@program(
    "salaries_with_sgd",
    "StackOverflow",
    "salaries of about 100,000 as targets of SGD: NaN",
    _SCALE,
    wrong={"is_standardized": False},
    right={"is_standardized": True},
)
def _(is_standardized: bool) -> Prepared:
    x, y = _data.regression(1000, 12)
    if not is_standardized:
        y = 100_000 + 30_000 * y
    model = _nets.dense(12, [32, 16], 1)
    model.compile(keras.optimizers.SGD(0.01), "mean_squared_error")
    return model, x, y, {"batch_size": 32}


@program(
    "kelvins",
    "own",
    "temperatures of 290 +- 5 kelvins as targets: the net learns only the offset",
    _SCALE,
    wrong={"is_standardized": False},
    right={"is_standardized": True},
)
def _(is_standardized: bool) -> Prepared:
    x, y = _data.regression(1000, 8)
    if not is_standardized:
        y = 290 + 5 * y
    model = _nets.dense(8, [32, 32], 1)
    model.compile("adam", "mse", metrics=["mae"])
    return model, x, y, {"batch_size": 32}


@program(
    "targets_in_farads",
    "own",
    "targets of deviation 1e-6: the loss is 1e-12 and says nothing",
    _SCALE,
    wrong={"unit": 1e-6},
    right={"unit": 1.0},
)
def _(unit: float) -> Prepared:
    x, y = _data.regression(1000, 8)
    model = _nets.dense(8, [32, 32], 1)
    model.compile(keras.optimizers.Adam(0.003), "mse")
    return model, x, (y * unit).astype("float32"), {"batch_size": 32}


@program(
    "second_head_in_millions",
    "own",
    "of two outputs, the second has targets of millions",
    _SCALE,
    "revenue",
    wrong={"unit": 1e6},
    right={"unit": 1.0},
)
def _(unit: float) -> Prepared:
    x, first = _data.regression(1000, 8)
    _, second = _data.regression(1000, 8, seed=3)
    inputs = keras.Input((8,), name="features")
    common = layers.Dense(32, activation="relu", name="common1")(inputs)
    common = layers.Dense(32, activation="relu", name="common2")(common)
    heads = [layers.Dense(1, name=name)(common) for name in ("rating", "revenue")]
    model = keras.Model(inputs, heads)
    model.compile(keras.optimizers.Adam(0.003), ["mse", "mae"])
    y = [first, ((second + 2) * unit).astype("float32")]
    return model, x, y, {"batch_size": 32}
