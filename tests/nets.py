"""Small networks and data that the tests share."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfdeep._keras._variables import model_variables

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
INPUTS, CLASSES = 8, 3


def examples(count=96, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, INPUTS)).astype("float32")
    return x, rng.integers(0, CLASSES, count)


def dataset(count=96, batch_size=16, weighted=False):
    parts = examples(count)
    if weighted:
        weights = np.random.default_rng(1).random(count).astype("float32")
        parts = (*parts, weights)
    return tf.data.Dataset.from_tensor_slices(parts).batch(batch_size)


def functional():
    inputs = keras.Input((INPUTS,))
    x = layers.Dense(6, activation="relu", name="hidden1")(inputs)
    x = layers.Dense(6, activation="relu", name="hidden2")(x)
    x = layers.Dense(6, activation="relu", name="hidden3")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="outputs")(x))


def small():
    inputs = keras.Input((INPUTS,))
    x = layers.Dense(6, activation="relu", name="hidden1")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES, name="outputs")(x))


def sequential():
    return keras.Sequential(
        [
            keras.Input((INPUTS,)),
            layers.Dense(6, activation="relu", name="hidden1"),
            layers.Dense(6, activation="relu", name="hidden2"),
            layers.Dense(6, activation="relu", name="hidden3"),
            layers.Dense(CLASSES, name="outputs"),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(6, activation="relu", name="hidden1")
        self.rest = [
            layers.Dense(6, activation="relu", name="hidden2"),
            layers.Dense(6, activation="relu", name="hidden3"),
        ]
        self.head = layers.Dense(CLASSES, name="outputs")

    def call(self, x):
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return self.head(x)


def subclassed():
    model = Subclassed()
    model(np.zeros((1, INPUTS), "float32"))
    return model


def regularized():
    """Batch normalization and dropout between, and after, the layers to freeze."""
    inputs = keras.Input((INPUTS,))
    x = layers.Dense(6, activation="relu", name="hidden1")(inputs)
    x = layers.BatchNormalization(name="norm1")(x)
    x = layers.Dropout(0.4, name="dropout1")(x)
    x = layers.Dense(6, activation="relu", name="hidden2")(x)
    x = layers.Dropout(0.3, name="dropout2")(x)
    x = layers.Dense(6, activation="relu", name="hidden3")(x)
    x = layers.BatchNormalization(name="norm3")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="outputs")(x))


def residual():
    """A boundary behind `hidden2` cuts the two skips as well."""
    inputs = keras.Input((INPUTS,))
    first = layers.Dense(6, activation="relu", name="hidden1")(inputs)
    x = layers.BatchNormalization(name="norm1")(first)
    second = layers.Dense(6, activation="relu", name="hidden2")(x)
    x = layers.Dense(6, activation="relu", name="hidden3")(second)
    x = layers.Add(name="skip")([x, first]) + second
    return keras.Model(inputs, layers.Dense(CLASSES, name="outputs")(x))


def nested():
    """A base model inside a model; freezing a part of the base cuts through it."""
    inputs = keras.Input((INPUTS,))
    x = layers.Dense(6, activation="relu", name="hidden1")(inputs)
    x = layers.Dropout(0.4, name="dropout1")(x)
    x = layers.Dense(6, activation="relu", name="hidden2")(x)
    base = keras.Model(
        inputs, layers.Dense(6, activation="relu", name="hidden3")(x), name="base"
    )
    outer = keras.Input((INPUTS,))
    return keras.Model(outer, layers.Dense(CLASSES, name="outputs")(base(outer)))


@functools.cache
def two_replicas():
    """The same one for all: collectives of two strategies meet in one process."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def compiled(model, optimizer, **arguments):
    model.compile(optimizer, LOSS, **arguments)
    return traced_once(model)


def traced_once(model):
    """Builds the optimizer, so that `fit` traces its step once, not twice.

    TensorFlow traces a step that makes variables a second time.
    """
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)
    return model


def apply_random_gradients(optimizer, variables, steps, seed=0):
    """Applies the same gradients for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        gradients = [rng.normal(size=v.shape).astype("float32") for v in variables]
        optimizer.apply([tf.constant(g) for g in gradients], variables)


def slow_unless(is_quick, *values):
    """All combinations as parameters; those that are not quick are slow."""
    return [
        pytest.param(*case, marks=() if is_quick(*case) else pytest.mark.slow)
        for case in itertools.product(*values)
    ]


def latin(rows, columns, chosen=(0, 1, 3)):
    """Of a table of all pairs, some in each row and column."""
    rows, columns = list(rows), list(columns)

    def is_chosen(row, column):
        return (rows.index(row) - columns.index(column)) % len(columns) in chosen

    return slow_unless(is_chosen, rows, columns)


def values(model):
    """The variables of a model by their relative paths, as tfdeep shows them."""
    return {v.path: v.variable.numpy() for v in model_variables(model)}


def weights_of(model):
    return {w.path: w.numpy() for w in model.weights}


def largest_difference(a, b):
    return max(
        float(np.max(np.abs(x - y)))
        for x, y in zip(a.get_weights(), b.get_weights(), strict=True)
    )
