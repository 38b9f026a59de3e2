"""Nets that train well, among them many that look sick to a rule that is careless."""

from __future__ import annotations

import keras
import numpy as np

from benchmarks.gym import _nets
from benchmarks.gym._case import Case, make_case
from benchmarks.gym._data import bags_of_words, recall, two_numbers, words


def _train_long(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    model.fit(x, y, epochs=4, shuffle=False, verbose=0)


def _pretrain(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    """Learns a related task: the same classes under other numbers."""
    model.fit(x[:3200], 9 - y[:3200], shuffle=False, verbose=0)


def _compile_again(model: keras.Model) -> None:
    optimizer = model.optimizer
    model.compile(type(optimizer).from_config(optimizer.get_config()), model.loss)


def _pretrain_and_freeze(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    _pretrain(model, x, y)
    for name in ("hidden1", "hidden2"):
        model.get_layer(name).trainable = False
    _compile_again(model)


def _pretrain_and_adapt(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    _pretrain(model, x, y)
    for name in ("hidden1", "hidden2", "hidden3", "hidden4"):
        model.get_layer(name).enable_lora(4)
    _compile_again(model)


_DENSE: tuple[Case, ...] = (
    make_case("relu"),
    make_case("relu_scaled_inputs", scale_inputs=True),
    make_case("tanh_depth_10", depth=10, activation="tanh"),
    make_case(
        "selu_alpha_dropout_depth_10",
        depth=10,
        activation="selu",
        alpha_dropout=0.05,
        scale_inputs=True,
        learning_rate=0.05,
    ),
    make_case("elu", depth=6, activation="elu", learning_rate=0.05),
    make_case("gelu", activation="gelu", optimizer="adam", learning_rate=0.003),
    make_case("silu", activation="silu", optimizer="adam", learning_rate=0.003),
    make_case(
        "leaky_relu_momentum",
        activation="leaky_relu",
        learning_rate=0.02,
        momentum=0.9,
    ),
    make_case("batch_normalization_after_bias", depth=6, normalization="batch"),
    make_case("dropout_one_half", depth=2, units=128, dropout=0.5),
    make_case(
        "sparse_by_l1",
        units=256,
        depth=2,
        activity_l1=1e-3,
        optimizer="adam",
        learning_rate=0.003,
    ),
    make_case(
        "bags_of_words",
        data=bags_of_words,
        target="topic",
        depth=2,
        optimizer="adam",
        learning_rate=0.003,
    ),
    make_case("embedding", build=_nets.embedded, data=words),
    make_case("adam_fast_on_small_net", depth=2, optimizer="adam", learning_rate=0.01),
    make_case(
        "regression", target="ink", scale_inputs=True, depth=3, learning_rate=0.03
    ),
    make_case("sigmoid_output", target="even", depth=3),
    make_case(
        "autoencoder_through_2_units",
        data=two_numbers,
        target="pixels",
        depth=3,
        activation="tanh",
        narrow=2,
        optimizer="adam",
        learning_rate=0.01,
    ),
    make_case("two_branches", build=_nets.two_branches),
    make_case("subclassed", build=_nets.subclassed),
)

_TRAINING: tuple[Case, ...] = (
    make_case("late_in_training", before=_train_long),
    make_case(
        "cosine_to_zero",
        learning_rate=keras.optimizers.schedules.CosineDecay(0.2, 50),
    ),
    make_case(
        "warm_up_from_1e-7",
        learning_rate=keras.optimizers.schedules.CosineDecay(
            1e-7, 1000, warmup_target=0.2, warmup_steps=100
        ),
    ),
    make_case("clipped_to_one_hundredth", clip_norm=0.01, learning_rate=5.0),
    make_case("batches_of_4", batch_size=4, learning_rate=0.02),
    make_case("wrong_labels", wrong_labels=0.2, optimizer="adam", learning_rate=0.003),
    make_case("rare_classes", rare=0.05, optimizer="adam", learning_rate=0.003),
    make_case("float16", dtype="mixed_float16", optimizer="adam", learning_rate=0.003),
    make_case("accumulated", accumulate=4, learning_rate=0.2),
    make_case("five_steps_per_execution", steps_per_execution=5),
    make_case("frozen_pretrained", before=_pretrain_and_freeze),
    make_case("lora", before=_pretrain_and_adapt, learning_rate=0.1),
    make_case("zero_head", head_initializer="zeros"),
)

_OTHER_FAMILIES: tuple[Case, ...] = (
    make_case("convolution", "convolutional", learning_rate=0.003),
    make_case(
        "depthwise_convolution",
        "convolutional",
        depthwise=True,
        normalization="batch",
        activation="relu6",
    ),
    make_case("simple_recurrent", "recurrent", learning_rate=0.003),
    make_case("lstm", "recurrent", cell="lstm"),
    make_case("gru", "recurrent", cell="gru"),
    make_case(
        "recurrent_remembers",
        "recurrent",
        data=recall,
        target="topic",
        learning_rate=0.003,
    ),
    make_case("residual_depth_30", "residual", depth=15, normalization="batch"),
    make_case("residual_zero_gamma", "residual", normalization="batch", gamma="zeros"),
    make_case("rezero", "residual", depth=12, gate=True),
    # The bias of the keys has no gradient, whatever the net learns.
    make_case("attention", "attention"),
    make_case("attention_zero_head", "attention", depth=4, head_initializer="zeros"),
)

HEALTHY = _DENSE + _TRAINING + _OTHER_FAMILIES
