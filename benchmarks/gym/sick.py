"""Nets that do not train as they should, each for one known reason."""

from __future__ import annotations

import keras
import numpy as np

from benchmarks.gym._case import Case, make_case
from benchmarks.gym._data import recall

# Batch 30 of 32 rows.
_STEP_30 = (960, 992)


def _hidden(*numbers: int) -> tuple[str, ...]:
    return tuple(f"hidden{i}" for i in numbers)


def _fit_then_freeze(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    model.fit(x[:640], y[:640], shuffle=False, verbose=0)
    model.get_layer("hidden2").trainable = False


class _FreezeAtStep20(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 20:
            self.model.get_layer("hidden3").trainable = False


_POOR_START: tuple[Case, ...] = (
    make_case(
        "sigmoid_depth_20",
        "dense",
        ("vanishing_gradient", "poor_initialization"),
        _hidden(*range(1, 11)),
        depth=20,
        activation="sigmoid",
        remedy={"activation": "relu", "normalization": "batch"},
    ),
    make_case(
        "tanh_small_weights_depth_10",
        "dense",
        ("poor_initialization", "vanishing_gradient"),
        depth=10,
        activation="tanh",
        initializer=0.01,
        remedy={"initializer": "glorot_uniform"},
    ),
    make_case(
        "relu_small_weights_depth_10",
        "dense",
        ("poor_initialization", "vanishing_gradient"),
        depth=10,
        initializer=0.01,
        remedy={"initializer": "he_normal"},
    ),
    make_case(
        "relu_normal_weights",
        "dense",
        ("poor_initialization", "exploding_gradient", "nonfinite"),
        depth=8,
        initializer=1.0,
        remedy={"initializer": "he_normal"},
    ),
    make_case(
        "tanh_normal_weights",
        "dense",
        ("saturated_units", "poor_initialization", "exploding_gradient"),
        depth=8,
        activation="tanh",
        initializer=1.0,
        remedy={"initializer": "glorot_uniform"},
    ),
    make_case(
        "sigmoid_normal_weights",
        "dense",
        ("saturated_units", "poor_initialization", "vanishing_gradient"),
        depth=10,
        activation="sigmoid",
        initializer=1.0,
        remedy={"initializer": "he_normal", "activation": "relu"},
    ),
    make_case(
        "zero_weights",
        "dense",
        ("poor_initialization", "rank_collapse", "no_gradient", "dead_units"),
        initializer="zeros",
        remedy={"initializer": "he_normal"},
    ),
    make_case(
        "equal_weights",
        "dense",
        ("equal_units", "rank_collapse"),
        _hidden(2, 3),
        activation="tanh",
        initializer=keras.initializers.Constant(0.02),
        only=_hidden(2, 3),
        remedy={"initializer": "glorot_uniform"},
    ),
    make_case(
        "convolution_small_weights",
        "convolutional",
        ("poor_initialization", "vanishing_gradient"),
        depth=8,
        optimizer="sgd",
        learning_rate=0.1,
        initializer=0.001,
        remedy={"initializer": "he_normal"},
    ),
    make_case(
        "residual_doubling_variance",
        "residual",
        ("exploding_gradient", "poor_initialization", "nonfinite"),
        depth=20,
        optimizer="sgd",
        learning_rate=0.1,
        remedy={"normalization": "batch"},
    ),
    make_case(
        "residual_without_skips",
        "residual",
        ("vanishing_gradient", "poor_initialization"),
        depth=15,
        activation="sigmoid",
        optimizer="sgd",
        learning_rate=0.1,
        residual=False,
        remedy={"residual": True, "normalization": "batch"},
    ),
)

_DEAD_OR_SATURATED: tuple[Case, ...] = (
    make_case(
        "relu_bias_minus_10",
        "dense",
        ("dead_units",),
        _hidden(3),
        bias=-10.0,
        only=_hidden(3),
        remedy={"bias": 0.0},
    ),
    make_case(
        "convolution_dead_filters",
        "convolutional",
        ("dead_units",),
        ("conv2",),
        bias=-20.0,
        only=("conv2",),
        remedy={"bias": 0.0},
    ),
    make_case(
        "residual_dead_branch",
        "residual",
        ("dead_units",),
        ("in3",),
        depth=4,
        normalization="batch",
        bias=-20.0,
        only=("in3",),
        learns=True,
        remedy={"bias": 0.0},
    ),
    make_case(
        "tanh_bias_10",
        "dense",
        ("saturated_units",),
        _hidden(3),
        activation="tanh",
        bias=10.0,
        only=_hidden(3),
        remedy={"bias": 0.0},
    ),
    make_case(
        "tanh_large_weights_in_one_layer",
        "dense",
        ("saturated_units", "poor_initialization"),
        _hidden(2),
        activation="tanh",
        initializer=50.0,
        only=_hidden(2),
        learns=True,
        remedy={"initializer": "glorot_uniform"},
    ),
    make_case(
        "recurrent_saturated",
        "recurrent",
        ("saturated_units", "poor_initialization"),
        ("recurrent",),
        initializer=20.0,
        recurrent_initializer=5.0,
        remedy={
            "initializer": "glorot_uniform",
            "recurrent_initializer": "orthogonal",
        },
    ),
    make_case(
        "attention_huge_queries",
        "attention",
        ("saturated_units", "poor_initialization", "exploding_gradient"),
        ("attention1",),
        query_gain=1000.0,
        only=("attention1",),
        learns=True,
        remedy={"query_gain": 1.0},
    ),
    make_case(
        "attention_without_skips",
        "attention",
        ("rank_collapse", "vanishing_gradient"),
        depth=8,
        residual=False,
        feed_forward=False,
        normalization=None,
        remedy={"residual": True, "normalization": "layer"},
    ),
)

_RATE: tuple[Case, ...] = (
    make_case(
        "relu_rate_kills_units",
        "dense",
        ("dead_units", "update_too_large"),
        learning_rate=1.0,
        remedy={"learning_rate": 0.1},
    ),
    make_case(
        "sgd_rate_100_times_too_high",
        "dense",
        ("update_too_large", "saturated_units", "loss_spike"),
        activation="tanh",
        learning_rate=20.0,
        remedy={"learning_rate": 0.2},
    ),
    make_case(
        "adam_rate_100_times_too_high",
        "dense",
        ("learning_rate", "update_too_large", "dead_units", "loss_spike"),
        optimizer="adam",
        learning_rate=0.5,
        remedy={"learning_rate": 0.005},
    ),
    make_case(
        "convolution_rate_too_high",
        "convolutional",
        ("update_too_large", "dead_units", "loss_spike"),
        learning_rate=1.0,
        remedy={"learning_rate": 0.003},
    ),
    make_case(
        "attention_rate_too_high",
        "attention",
        ("update_too_large", "loss_spike"),
        learning_rate=0.5,
        remedy={"learning_rate": 0.003},
    ),
    make_case(
        "sgd_rate_100000_times_too_low",
        "dense",
        ("update_too_small", "stalled"),
        learning_rate=1e-6,
        remedy={"learning_rate": 0.1},
    ),
    make_case(
        "adam_rate_100000_times_too_low",
        "recurrent",
        ("slow_learning", "update_too_small", "stalled"),
        learning_rate=1e-7,
        remedy={"learning_rate": 0.01},
    ),
)

_SIGNAL: tuple[Case, ...] = (
    make_case(
        "inputs_of_thousands",
        "dense",
        ("input_scale", "exploding_gradient", "nonfinite"),
        gain=2550.0,
        remedy={"scale_inputs": True},
    ),
    make_case(
        "inputs_off_centre",
        "dense",
        ("input_scale", "saturated_units"),
        activation="tanh",
        offset=100.0,
        remedy={"scale_inputs": True},
    ),
    make_case(
        "convolution_inputs_of_thousands",
        "convolutional",
        ("input_scale", "exploding_gradient", "nonfinite"),
        optimizer="sgd",
        learning_rate=0.05,
        gain=2550.0,
        remedy={"scale_inputs": True},
    ),
    make_case(
        "rescaled_to_nothing",
        "dense",
        ("vanishing_gradient",),
        ("rescaling", *_hidden(1, 2)),
        scale=1e-8,
        remedy={"scale": 1.0},
    ),
    make_case(
        "stopped_gradient",
        "dense",
        ("no_gradient",),
        ("stop", *_hidden(1, 2, 3)),
        depth=6,
        stop_gradient=True,
        learns=True,
        remedy={"stop_gradient": False},
    ),
    make_case(
        "float16_underflow",
        "dense",
        ("no_gradient", "vanishing_gradient", "update_too_small"),
        _hidden(1, 2, 3, 4),
        dtype="mixed_float16",
        loss_scale=False,
        loss_weight=1e-7,
        optimizer="adam",
        learning_rate=0.003,
        optimizer_epsilon=1e-15,
        remedy={"loss_scale": True},
    ),
    make_case(
        "recurrent_explodes",
        "recurrent",
        ("exploding_gradient", "nonfinite", "poor_initialization"),
        ("recurrent",),
        data=recall,
        target="topic",
        activation="linear",
        recurrent_initializer=0.4,
        optimizer="sgd",
        learning_rate=0.01,
        remedy={"recurrent_initializer": "orthogonal"},
    ),
    make_case(
        "recurrent_forgets",
        "recurrent",
        ("vanishing_gradient", "poor_initialization"),
        ("recurrent",),
        data=recall,
        target="topic",
        recurrent_initializer=0.01,
        learning_rate=0.003,
        remedy={"recurrent_initializer": "orthogonal"},
    ),
)

_EVENT: tuple[Case, ...] = (
    make_case(
        "frozen_by_mistake",
        "dense",
        ("no_gradient", "update_too_small"),
        _hidden(2),
        trainable=False,
        only=_hidden(2),
        learns=True,
        remedy={"trainable": True},
    ),
    make_case(
        "frozen_after_compile",
        "dense",
        ("frozen_but_trained",),
        _hidden(2),
        before=_fit_then_freeze,
        learns=True,
    ),
    make_case(
        "frozen_during_fit",
        "dense",
        ("frozen_but_trained",),
        _hidden(3),
        callbacks=lambda model: [_FreezeAtStep20()],
        learns=True,
    ),
    make_case(
        "log_of_zero",
        "dense",
        ("nonfinite",),
        ("log",),
        offset=0.5,
        bad_rows=_STEP_30,
        bad_gain=0.0,
        log_inputs=True,
        epsilon=0.0,
        remedy={"epsilon": 0.1},
    ),
    make_case(
        "root_of_zero",
        "dense",
        ("nonfinite",),
        # The forward pass is finite; below the root every gradient is not.
        ("length", *_hidden(1, 2)),
        bias=None,
        only=_hidden(1, 2),
        bad_rows=_STEP_30,
        bad_gain=0.0,
        length=True,
        epsilon=0.0,
        remedy={"epsilon": 1e-6},
    ),
    make_case(
        "corrupt_batch",
        "dense",
        ("loss_spike", "input_scale", "exploding_gradient"),
        bad_rows=_STEP_30,
        bad_gain=1000.0,
        optimizer="adam",
        learning_rate=0.003,
        learns=True,
        remedy={"bad_gain": 1.0},
    ),
)

SICK = _POOR_START + _DEAD_OR_SATURATED + _RATE + _SIGNAL + _EVENT
