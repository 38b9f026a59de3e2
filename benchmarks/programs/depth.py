"""Signals and gradients that die out or blow up in the layers, and bad starts."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.programs import _data, _nets
from benchmarks.programs._program import Prepared, program

_VANISHING = ("vanishing_gradient", "poor_initialization")
_EXPLODING = ("exploding_gradient", "poor_initialization")
_EQUAL = ("equal_units", "poor_initialization")
_HIDDEN = tuple(f"hidden{i}" for i in range(1, 13))


def _digits_net(
    hidden: list[int], rate: float = 0.05, momentum: float = 0.9, **arguments: Any
) -> Prepared:
    """Dense layers for the digits, with SGD."""
    x, y = _data.flat_digits()
    model = _nets.dense(64, hidden, 10, "softmax", **arguments)
    model.compile(
        keras.optimizers.SGD(rate, momentum=momentum),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 64}


_DEEP = {"hidden": [32] * 10, "kernel": "he_normal", "rate": 0.01}

# Dying ReLUs.

program(
    "narrow_deep_relu",
    "AUTOTRAINER",
    "twelve ReLU layers of three units: a layer of dead units ends all signal",
    ("dead_units", "poor_initialization"),
    wrong={"hidden": [3] * 12, "activation": "relu"},
    right={"hidden": [48] * 6, "activation": "elu", "kernel": "he_normal"},
)(_digits_net)
program(
    "relu_biases_of_minus_five",
    "AUTOTRAINER",
    "biases of -5: no ReLU is ever active",
    ("dead_units", "poor_initialization"),
    _HIDDEN[:3],
    wrong={"hidden": [64] * 3, "bias": keras.initializers.Constant(-5)},
    right={"hidden": [64] * 3, "bias": "zeros"},
)(_digits_net)


@program(
    "relu_of_negative_sums",
    "own",
    "positive kernels on negative inputs: the first ReLU is always 0",
    ("dead_units", "poor_initialization"),
    ("hidden1", "relu1"),
    wrong={"low": 0.0},
    right={"low": -0.15},
)
def _(low: float) -> Prepared:
    x, y = _data.flat_digits()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(
                64,
                kernel_initializer=keras.initializers.RandomUniform(low, 0.15),
                name="hidden1",
            ),
            layers.Activation("relu", name="relu1"),
            layers.Dense(32, activation="relu", name="hidden2"),
            layers.Dense(10, activation="softmax", name="output"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.003),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x - 1, y, {"batch_size": 32}


@program(
    "relu_killed_by_first_steps",
    "StackOverflow",
    "SGD(1) on a deep ReLU net: its units die in the first steps",
    ("update_too_large", "learning_rate"),
    wrong={"rate": 1.0},
    right={"rate": 0.02},
)
def _(rate: float) -> Prepared:
    x, y = _data.digits()
    model = _nets.convolutional((8, 8, 1), [16], [64, 64], 10, "softmax")
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


# Vanishing gradients.

program(
    "ten_sigmoid_layers",
    "AUTOTRAINER",
    "ten sigmoid layers",
    _VANISHING,
    _HIDDEN[:7],
    wrong={**_DEEP, "kernel": "glorot_uniform", "activation": "sigmoid"},
    right=_DEEP,
)(_digits_net)
program(
    "penalty_over_sigmoids",
    "kind 1",
    "ten sigmoid layers with an L2 penalty, whose gradient stands in for the loss'",
    _VANISHING,
    _HIDDEN[:7],
    wrong={
        **_DEEP,
        "kernel": "glorot_uniform",
        "activation": "sigmoid",
        "penalty": 0.01,
    },
    right={**_DEEP, "penalty": 1e-4},
)(_digits_net)
program(
    "sigmoids_with_random_biases",
    "kind 2",
    "eight sigmoid layers with biases drawn at random",
    _VANISHING,
    _HIDDEN[:6],
    wrong={"hidden": [32] * 8, "activation": "sigmoid", "bias": "random_normal"},
    right={"hidden": [32] * 8, "kernel": "he_normal", "bias": "random_normal"},
)(_digits_net)
program(
    "tiny_normal_kernels",
    "AUTOTRAINER",
    "eight ReLU layers with kernels of deviation .01",
    _VANISHING,
    wrong={"hidden": [32] * 8, "kernel": _nets.normal(0.01)},
    right={"hidden": [32] * 8, "kernel": "he_normal"},
)(_digits_net)
program(
    "saturated_tanh",
    "AUTOTRAINER",
    "six tanh layers with kernels of deviation 1: all units are at -1 or 1",
    ("saturated_units", "poor_initialization"),
    wrong={
        "hidden": [64] * 6,
        "activation": "tanh",
        "kernel": _nets.normal(1),
    },
    right={"hidden": [64] * 6, "activation": "tanh"},
)(_digits_net)


@program(
    "sigmoid_convolutions",
    "NeuraLint",
    "six convolutions with sigmoid activations",
    _VANISHING,
    tuple(f"{kind}{i}" for kind in ("conv", "sigmoid") for i in range(1, 6)),
    wrong={"activation": "sigmoid"},
    right={"activation": "relu"},
)
def _(activation: str) -> Prepared:
    x, y = _data.digits()
    net = [keras.Input((8, 8, 1))]
    for i in range(1, 7):
        net.append(layers.Conv2D(8, 3, padding="same", name=f"conv{i}"))
        net.append(layers.Activation(activation, name=f"{activation}{i}"))
    net += [layers.Flatten(name="flatten"), *_nets.output(10, "softmax")]
    model = keras.Sequential(net)
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


# Exploding gradients.

program(
    "wide_normal_kernels",
    "AUTOTRAINER",
    "six ReLU layers with kernels of deviation 1",
    ("poor_initialization", "exploding_gradient"),
    wrong={
        "hidden": [64] * 6,
        "kernel": _nets.normal(1),
    },
    right={"hidden": [64] * 6, "kernel": "he_normal"},
)(_digits_net)


@program(
    "recurrence_that_grows",
    "first gym",
    "a ReLU recurrence whose kernel grows the state at each of 40 steps",
    _EXPLODING,
    "rnn",
    wrong={"gain": 1.5},
    right={"gain": 1.0},
)
def _(gain: float) -> Prepared:
    random = np.random.RandomState(0)
    x = random.normal(size=(640, 40, 2)).astype("float32") * np.float32(0.3)
    y = _data.standardized(x[:, :, :1].sum(axis=1))
    model = keras.Sequential(
        [
            keras.Input((40, 2)),
            layers.SimpleRNN(
                24,
                activation="relu",
                recurrent_initializer=keras.initializers.Identity(gain),
                name="rnn",
            ),
            layers.Dense(1, name="output"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.003), "mse")
    return model, x, y, {"batch_size": 32}


@program(
    "loss_summed_over_pixels",
    "own",
    "a loss that sums over pixels and images instead of taking the mean",
    ("update_too_large", "exploding_gradient", "learning_rate"),
    wrong={"reduce": "sum"},
    right={"reduce": "mean"},
)
def _(reduce: str) -> Prepared:
    x, _ = _data.flat_digits()

    def squared(y_true, y_pred):
        return getattr(keras.ops, reduce)(keras.ops.square(y_true - y_pred))

    model = _nets.dense(64, [32, 16, 32], 64)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), squared)
    return model, x, x, {"batch_size": 64}


# Starts from which nothing, or all units the same, is learned.


@program(
    "constant_kernels",
    "NeuraLint lenet-constant",
    "all kernels are .05 throughout: the units of a layer stay equal",
    _EQUAL,
    wrong={"kernel": keras.initializers.Constant(0.05)},
    right={"kernel": "glorot_uniform"},
)
def _(kernel: Any) -> Prepared:
    x, y = _data.digits()
    model = _nets.convolutional((8, 8, 1), [8, 16], [32], 10, "softmax", kernel=kernel)
    model.compile(
        keras.optimizers.Adam(0.003),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


program(
    "zero_kernels",
    "StackOverflow",
    "all hidden kernels are zero",
    (*_EQUAL, "no_gradient"),
    wrong={"hidden": [32, 32, 32], "kernel": "zeros"},
    right={"hidden": [32, 32, 32], "kernel": "glorot_uniform"},
)(_digits_net)
program(
    "kernels_of_ones",
    "StackOverflow",
    "all hidden kernels are one",
    _EQUAL,
    wrong={"hidden": [16, 16], "kernel": "ones", "activation": "tanh"},
    right={"hidden": [16, 16], "kernel": "glorot_uniform", "activation": "tanh"},
)(_digits_net)


def _one_odd_layer(kernel: Any) -> Prepared:
    """Ten dense layers, of which the fifth, middle, has a kernel of its own kind."""
    x, y = _data.flat_digits()
    net = [keras.Input((64,))]
    for i in range(1, 11):
        is_middle = i == 5
        net.append(
            layers.Dense(
                32,
                activation="relu",
                kernel_initializer=kernel if is_middle else "he_normal",
                name="middle" if is_middle else f"hidden{i}",
            )
        )
    model = keras.Sequential([*net, layers.Dense(10, name="output")])
    model.compile(
        keras.optimizers.SGD(0.03),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


_REPAIRED = {"kernel": "he_normal"}
program(
    "nearly_zero_in_the_middle",
    "first gym",
    "one of eleven layers has a kernel of deviation 1e-6",
    ("poor_initialization", "vanishing_gradient"),
    "middle",
    wrong={"kernel": _nets.normal(1e-6)},
    right=_REPAIRED,
)(_one_odd_layer)
program(
    "constant_in_the_middle",
    "first gym",
    "the units of one of eleven layers are all the same",
    (*_EQUAL, "rank_collapse"),
    "middle",
    wrong={"kernel": keras.initializers.Constant(0.1)},
    right=_REPAIRED,
)(_one_odd_layer)


# Operations without a gradient, or with one that is no number.


@program(
    "log_of_zero",
    "StackOverflow",
    "a layer takes the logarithm of pixels, of which many are 0",
    "nonfinite",
    "log",
    wrong={"offset": 0.0},
    right={"offset": 1.0},
)
def _(offset: float) -> Prepared:
    x, y = _data.flat_digits()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, activation="relu", name="hidden1"),
            layers.Lambda(lambda h: keras.ops.log(h + offset), name="log"),
            layers.Dense(32, activation="relu", name="hidden2"),
            layers.Dense(10, activation="softmax", name="output"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.003),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}


@program(
    "log_in_own_loss",
    "StackOverflow",
    "a crossentropy written by hand takes the logarithm of a sigmoid that reaches 0",
    "nonfinite",
    wrong={"epsilon": 0.0},
    right={"epsilon": 1e-6},
)
def _(epsilon: float) -> Prepared:
    x, labels = _data.blobs(1000, 2, 10)

    def crossentropy(y, p):
        return -keras.ops.mean(
            y * keras.ops.log(p + epsilon) + (1 - y) * keras.ops.log(1 - p + epsilon)
        )

    model = _nets.dense(10, [32, 32], 1, "sigmoid")
    model.compile(keras.optimizers.Adam(0.02), crossentropy, metrics=["accuracy"])
    return model, x, labels.astype("float32")[:, None], {"batch_size": 32}


@program(
    "distance_of_equal_pairs",
    "StackOverflow",
    "a Siamese net's distance is the root of 0 for equal pairs: its slope is infinite",
    "nonfinite",
    ("distance", "encoder"),
    wrong={"epsilon": 0.0},
    right={"epsilon": 1e-6},
)
def _(epsilon: float) -> Prepared:
    x, labels = _data.flat_digits()
    random = np.random.RandomState(0)
    other = random.permutation(len(x))
    other[::20] = np.arange(len(x))[::20]  # pairs of an image with itself
    y = (labels != labels[other]).astype("float32")[:, None]

    def distance(pair):
        squares = keras.ops.sum(keras.ops.square(pair[0] - pair[1]), axis=1)
        return keras.ops.sqrt(squares + epsilon)[:, None]

    encoder = layers.Dense(32, activation="tanh", name="encoder")
    inputs = [keras.Input((64,), name=name) for name in ("left", "right")]
    apart = layers.Lambda(distance, name="distance")([encoder(i) for i in inputs])
    model = keras.Model(inputs, layers.Dense(1, "sigmoid", name="output")(apart))
    model.compile(
        keras.optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"]
    )
    return model, [x, x[other]], y, {"batch_size": 32}


class _Hard(layers.Layer):
    """Rounds in the forward pass; straight through in the gradient, if asked."""

    def __init__(self, is_straight_through: bool, name: str) -> None:
        super().__init__(name=name)
        self.is_straight_through = is_straight_through

    def call(self, x):
        if self.is_straight_through:
            return x + keras.ops.stop_gradient(keras.ops.round(x) - x)
        return keras.ops.stop_gradient(keras.ops.round(x))


@program(
    "rounding_in_the_middle",
    "own",
    "a layer rounds, and no gradient passes it",
    "no_gradient",
    ("hidden1", "hidden2", "binary"),
    wrong={"is_straight_through": False},
    right={"is_straight_through": True},
)
def _(is_straight_through: bool) -> Prepared:
    x, y = _data.flat_digits()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, activation="relu", name="hidden1"),
            layers.Dense(8, activation="sigmoid", name="hidden2"),
            _Hard(is_straight_through, name="binary"),
            layers.Dense(10, activation="softmax", name="output"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, x, y, {"batch_size": 32}
