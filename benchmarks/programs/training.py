"""Rates, regularization and architecture that keep a net from learning or applying."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.programs import _data, _nets
from benchmarks.programs._program import Prepared, program

_RATE = "learning_rate"
_TOO_LARGE = ("update_too_large", _RATE)
_SLOW = ("slow_learning", "update_too_small", _RATE)
_SPARSE = "sparse_categorical_crossentropy"

_OPTIMIZERS = {
    "sgd": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adadelta": keras.optimizers.Adadelta,
    "adagrad": keras.optimizers.Adagrad,
    "rmsprop": keras.optimizers.RMSprop,
}


# The learning rate.


def _digits_net(optimizer: str, rate: Any = None) -> Prepared:
    """A net for the digits, with an optimizer; without a rate, with its default."""
    x, y = _data.flat_digits()
    model = _nets.dense(64, [64, 32], 10, "softmax", kernel="he_normal")
    rates = {} if rate is None else {"learning_rate": rate}
    model.compile(_OPTIMIZERS[optimizer](**rates), _SPARSE, metrics=["accuracy"])
    return model, x, y, {"batch_size": 32}


_FADES = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.5)
_FADES_SLOWLY = keras.optimizers.schedules.ExponentialDecay(0.05, 100, 0.5)
for _name, _source, _fault, _kinds, _optimizer, _wrong, _right in (
    ("negative_rate", "own", "SGD(-.01)", _RATE, "sgd", -0.01, 0.05),
    ("zero_rate", "own", "Adam(0)", _RATE, "adam", 0.0, 0.003),
    ("adam_of_one", "first hour", "Adam(1)", _TOO_LARGE, "adam", 1.0, 0.003),
    ("sgd_of_ten", "first hour", "SGD(10)", _TOO_LARGE, "sgd", 10.0, 0.05),
    ("adam_1e-6", "first hour", "Adam(1e-6)", _SLOW, "adam", 1e-6, 0.003),
    ("sgd_1e-5", "AUTOTRAINER", "SGD(1e-5)", _SLOW, "sgd", 1e-5, 0.05),
    ("adagrad_default", "kind 9", "Adagrad(): .001", _SLOW, "adagrad", None, 0.05),
    (
        "rate_that_fades",
        "own",
        "a schedule that halves the rate at each step, not at each epoch",
        _SLOW,
        "sgd",
        _FADES,
        _FADES_SLOWLY,
    ),
):
    program(
        _name,
        _source,
        _fault,
        _kinds,
        wrong={"optimizer": _optimizer, "rate": _wrong},
        right={"optimizer": _optimizer, "rate": _right},
    )(_digits_net)


@program(
    "linear_with_rate_of_minus_1000",
    "UMLAUT b",
    "Adam(-1000), and no activation in any layer",
    (_RATE, "linear_net"),
    wrong={"activation": None, "rate": -1e3},
    right={"activation": "relu", "rate": 1e-3},
)
def _(activation: str | None, rate: float) -> Prepared:
    x, y = _data.photos(8, rows=1600)
    model = _nets.convolutional(
        (16, 16, 3), [8, 16], [64, 64], 10, activation=activation, dropout=0.2
    )
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 64, "validation_data": (x[:100], y[:100])}


@program(
    "adadelta_of_keras_3",
    "catsdogs-k3",
    "Adadelta(), whose rate was 1 and is .001 since Keras 3",
    _SLOW,
    wrong={"rate": 0.001},
    right={"rate": 1.0},
)
def _(rate: float) -> Prepared:
    x, labels = _data.photos(2)
    model = _nets.convolutional((16, 16, 3), [8, 16], [], 2, "softmax")
    model.compile(
        keras.optimizers.Adadelta(rate),
        keras.losses.categorical_crossentropy,
        metrics=["accuracy"],
    )
    return model, x, _data.one_hot(labels, 2), {"batch_size": 50}


@program(
    "two_units_too_slow",
    "50306988",
    "Adam(.001) for a net of two sigmoids",
    _SLOW,
    wrong={"rate": 0.001},
    right={"rate": 0.05},
    hidden="its loss falls by 2 % in 300 steps, as that of many slow but sound nets",
)
def _(rate: float) -> Prepared:
    random = np.random.RandomState(0)
    x = random.uniform(0.2, 0.7, size=(200, 2)).astype("float32")
    labels = (x.sum(axis=1) > 0.9).astype(int)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, name="hidden1"),
            layers.Activation("sigmoid", name="sigmoid1"),
            layers.Dense(2, name="output"),
            layers.Activation("softmax", name="probabilities"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["accuracy"]
    )
    return model, x, _data.one_hot(labels, 2), {"batch_size": 32}


@program(
    "loss_that_oscillates",
    "AUTOTRAINER",
    "a logistic regression with SGD(20): its loss jumps up and down",
    ("oscillating_loss", *_TOO_LARGE),
    wrong={"rate": 20.0},
    right={"rate": 0.1},
)
def _(rate: float) -> Prepared:
    random = np.random.RandomState(0)
    x = random.normal(size=(1500, 8)).astype("float32")
    scores = x[:, :3].sum(axis=1) + random.normal(size=1500)  # not separable
    model = _nets.dense(8, [], 1, "sigmoid")
    model.compile(
        keras.optimizers.SGD(rate), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x, (scores > 0).astype("float32"), {"batch_size": 50}


# A net that learns the examples, and not what is asked.


@program(
    "few_examples_many_units",
    "own",
    "100 noisy examples for 300,000 weights: the validation loss rises",
    "overfitting",
    wrong={"rows": 100},
    right={"rows": 1400},
)
def _(rows: int) -> Prepared:
    x, labels = _data.shuffled(*_data.flat_digits())
    random = np.random.RandomState(0)
    noisy = (x + 0.3 * random.normal(size=x.shape)).astype("float32")
    model = _nets.dense(64, [512, 512], 10, "softmax")
    model.compile("adam", _SPARSE, metrics=["accuracy"])
    return (
        model,
        noisy[:rows],
        labels[:rows],
        {"batch_size": 5, "validation_data": (noisy[1400:], labels[1400:])},
    )


@program(
    "noise_learned_by_heart",
    "own",
    "a wide net learns the noise of 150 targets by heart",
    "overfitting",
    wrong={"units": 256, "rows": 150},
    right={"units": 32, "rows": 3000},
)
def _(units: int, rows: int) -> Prepared:
    random = np.random.RandomState(0)
    x = random.normal(size=(3300, 20)).astype("float32")
    y = x[:, :1] + x[:, 1:2] + 1.0 * random.normal(size=(3300, 1))
    model = _nets.dense(20, [units, units], 1)
    model.compile(keras.optimizers.Adam(0.005), "mse")
    return (
        model,
        x[:rows],
        y[:rows],
        {"batch_size": 15, "validation_data": (x[3000:], y[3000:])},
    )


# Batch normalization that knows another net at inference.


def _normalized(momentum: float, batch_size: int, steps: int) -> Prepared:
    """Dense layers with batch normalization, and a validation set."""
    x, y = _data.shuffled(*_data.flat_digits())
    x = 4 * x + 1
    net = [keras.Input((64,))]
    for i in (1, 2):
        net += [
            layers.Dense(48, name=f"hidden{i}"),
            layers.BatchNormalization(momentum=momentum, name=f"norm{i}"),
            layers.Activation("relu", name=f"relu{i}"),
        ]
    model = keras.Sequential([*net, *_nets.output(10, "softmax")])
    model.compile(keras.optimizers.Adam(0.003), _SPARSE, metrics=["accuracy"])
    rows = steps * batch_size
    return (
        model,
        x[:rows],
        y[:rows],
        {"batch_size": batch_size, "validation_data": (x[1400:], y[1400:])},
    )


_NORMALIZED = {"momentum": 0.9, "batch_size": 32, "steps": 40}
program(
    "moving_averages_too_slow",
    "StackOverflow",
    "BatchNormalization(momentum=.9999): at inference it still has its first values",
    "inference_gap",
    wrong={**_NORMALIZED, "momentum": 0.9999},
    right=_NORMALIZED,
)(_normalized)
program(
    "batch_normalization_of_two",
    "StackOverflow",
    "batch normalization over batches of two: noise that inference does not have",
    "inference_gap",
    ("norm1", "norm2"),
    wrong={**_NORMALIZED, "batch_size": 2, "steps": 600},
    right=_NORMALIZED,
)(_normalized)


@program(
    "statistics_of_one_source",
    "own",
    "the batches of a dataset hold one class each: at inference all are mixed",
    "inference_gap",
    wrong={"is_shuffled": False},
    right={"is_shuffled": True},
)
def _(is_shuffled: bool) -> Prepared:
    x, y = _data.flat_digits()
    training, validation = (x[:1400], y[:1400]), (x[1400:], y[1400:])
    order = np.argsort(training[1], kind="stable")
    dataset = tf.data.Dataset.from_tensor_slices(
        (training[0][order], training[1][order])
    )
    if is_shuffled:
        dataset = dataset.shuffle(1400, seed=0)
    batches = dataset.batch(20).shuffle(70, seed=0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(48, name="hidden1"),
            layers.BatchNormalization(momentum=0.9, name="norm1"),
            layers.Activation("relu", name="relu1"),
            layers.Dense(10, activation="softmax", name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.003), _SPARSE, metrics=["accuracy"])
    return model, batches, None, {"validation_data": validation}


# Nets that are linear, drop nearly all, or are held fast.


@program(
    "dense_without_activations",
    "StackOverflow",
    "a deep net without activations for a problem that is not linear",
    "linear_net",
    wrong={"activation": None},
    right={"activation": "relu"},
)
def _(activation: str | None) -> Prepared:
    x = np.random.RandomState(0).normal(size=(1000, 2)).astype("float32")
    y = (np.square(x).sum(axis=1) < 1.4).astype("float32")
    order = np.argsort(x[:, 0])  # a sorted table
    model = _nets.dense(2, [32, 32, 16], 1, "sigmoid", activation=activation)
    model.compile(
        keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, x[order], y[order], {"batch_size": 25}


@program(
    "functional_without_activations",
    "UMLAUT",
    "dense layers with Activation('linear') between them, for a regression",
    "linear_net",
    wrong={"activation": "linear"},
    right={"activation": "tanh"},
)
def _(activation: str) -> Prepared:
    x = np.random.RandomState(0).uniform(-2, 2, size=(1000, 3)).astype("float32")
    y = _data.standardized(np.sin(2 * x[:, :1]) + np.square(x[:, 1:2]))
    inputs = keras.Input((3,))
    h = inputs
    for i in (1, 2, 3):
        h = layers.Dense(32, name=f"hidden{i}")(h)
        h = layers.Activation(activation, name=f"activation{i}")(h)
    model = keras.Model(inputs, layers.Dense(1, name="output")(h))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model, x, y, {"batch_size": 64}


@program(
    "dropout_as_keep_probability",
    "StackOverflow",
    "Dropout(.9), where .9 was to be kept",
    "heavy_dropout",
    ("dropout1", "dropout2", "dropout3"),
    wrong={"dropout": 0.9},
    right={"dropout": 0.1},
)
def _(dropout: float) -> Prepared:
    x, y = _data.flat_digits()
    model = _nets.dense(64, [64, 64, 64], 10, "softmax", dropout=dropout)
    model.compile("adam", _SPARSE, metrics=["accuracy"])
    return model, x, y, {"batch_size": 32}


@program(
    "dropout_before_the_output",
    "own",
    "Dropout(.85) in a regression, right before the output",
    "heavy_dropout",
    "dropout",
    wrong={"rate": 0.85},
    right={"rate": 0.1},
)
def _(rate: float) -> Prepared:
    x, y = _data.regression(800, 8)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(24, activation="relu", name="hidden1"),
            layers.Dense(24, activation="relu", name="hidden2"),
            layers.Dropout(rate, name="dropout"),
            layers.Dense(1, name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "mse")
    weights = np.linspace(0.5, 1.5, 800).astype("float32")
    return model, x, y, {"batch_size": 32, "sample_weight": weights}


@program(
    "frozen_after_compile",
    "StackOverflow",
    "trainable=False after a fit, without compiling again: the layer goes on training",
    "frozen_but_trained",
    "hidden1",
    wrong={"is_compiled_again": False},
    right={"is_compiled_again": True},
)
def _(is_compiled_again: bool) -> Prepared:
    x, y = _data.flat_digits()
    model = _nets.dense(64, [64, 32], 10, "softmax")
    model.compile(keras.optimizers.Adam(0.001), _SPARSE, metrics=["accuracy"])
    model.fit(x[:320], y[:320], verbose=0)
    model.get_layer("hidden1").trainable = False
    if is_compiled_again:
        model.compile(keras.optimizers.Adam(0.003), _SPARSE, metrics=["accuracy"])
    return model, x, y, {"batch_size": 32}
