"""Small networks and data that the tests share."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import layers

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


def weights_of(model):
    return {w.path: w.numpy() for w in model.weights}


def largest_difference(a, b):
    return max(
        float(np.max(np.abs(x - y)))
        for x, y in zip(a.get_weights(), b.get_weights(), strict=True)
    )
