"""What it costs to train a head on a frozen MobileNetV2, done in several ways.

    python benchmarks/finetune.py
    python benchmarks/finetune.py --rounds 1 --images 256 --epochs 3 6

Each way trains the same head on the same images, batch for batch:

    plain fit      `trainable = False`, and `fit` of the whole model
    predict        the frozen part by `predict` to NumPy, then `fit` of the head
    map().cache()  the frozen part within tf.data, `Dataset.map(frozen).cache()`
    ideal          one pass of the frozen part, then `fit` of the head on tensors
    in memory      `tfdeep.cache_frozen(model, dataset)`
    on disk        `tfdeep.cache_frozen(model, dataset, cache_dir)`, not there before
    on disk again  the same, when it is there

All run in one process, each from a fresh model, in each round in another order; the
times hold everything from the first call on, tracing as well. Printed are medians over
the rounds, of the times and of their ratios to "ideal" in the same round. The last
column is the largest difference of the head's weights from those of "ideal". No
pretrained weights are needed: what they are does not matter to the time.
"""

from __future__ import annotations

import argparse
import gc
import os
import pathlib
import random
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

import tfdeep

SIZE, CLASSES, BATCH = 96, 10, 32
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(images):
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2(
        (SIZE, SIZE, 3), include_top=False, weights=None, pooling="avg"
    )
    for layer in base.layers:  # else the features of random weights are next to zero
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    base(images[:BATCH], training=True)
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = keras.layers.Dense(CLASSES, name="outputs")(base(inputs))
    model = keras.Model(inputs, outputs)
    base.trainable = False
    return model, base


def head_of(model):
    features = keras.Input((1280,))
    return keras.Model(features, model.get_layer("outputs")(features))


class Marks(keras.callbacks.Callback):
    """The time from the start to the end of given epochs, in seconds."""

    def __init__(self, epochs):
        super().__init__()
        self.wanted, self.seconds = epochs, {}
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 in self.wanted:
            self.seconds[epoch + 1] = time.perf_counter() - self.started


def fit(model, data, marks):
    model.compile(keras.optimizers.Adam(1e-3), LOSS)
    model.fit(data, epochs=max(marks.wanted), verbose=0, callbacks=[marks])


def plain_fit(data, marks, directory, model, base):
    fit(model, data, marks)


def predict(data, marks, directory, model, base):
    features = base.predict(data, verbose=0)
    labels = np.concatenate([y for _, y in data])
    fit(
        head_of(model),
        tf.data.Dataset.from_tensor_slices((features, labels)).batch(BATCH),
        marks,
    )


def map_and_cache(data, marks, directory, model, base):
    fit(
        head_of(model),
        data.map(lambda x, y: (base(x, training=False), y)).cache(),
        marks,
    )


def ideal(data, marks, directory, model, base):
    run = tf.function(lambda x: base(x, training=False), reduce_retracing=True)
    features, labels = [], []
    for x, y in data:
        features.append(run(x))
        labels.append(y)
    table = tf.concat(features, 0), tf.concat(labels, 0)
    fit(head_of(model), tf.data.Dataset.from_tensor_slices(table).batch(BATCH), marks)


def cached(data, marks, directory, model, base):
    head, features, _ = tfdeep.cache_frozen(model, data, directory)
    fit(head, features, marks)


def in_memory(data, marks, directory, model, base):
    cached(data, marks, None, model, base)


WAYS = {
    "plain fit": (plain_fit, None),
    "predict": (predict, None),
    "map().cache()": (map_and_cache, None),
    "ideal": (ideal, None),
    "in memory": (in_memory, "1.05"),
    "on disk": (cached, "1.15"),
    "on disk again": (cached, None),
}


def in_some_order():
    """The ways in a random order, but "on disk again" at the end."""
    *ways, last = WAYS
    return [*random.sample(ways, len(ways)), last]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--plain-rounds", type=int, default=1, help="rounds of plain fit, the long one"
    )
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.images, SIZE, SIZE, 3)).astype("float32")
    labels = rng.integers(0, CLASSES, options.images)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    times = {way: {epochs: [] for epochs in options.epochs} for way in WAYS}
    weights = {}
    for way in ("ideal", "in memory"):  # what the first run of all has to warm up
        WAYS[way][0](data.take(2), Marks([1]), None, *build(images))
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as directory:
            for way in in_some_order():
                if way == "plain fit" and number >= options.plain_rounds:
                    continue
                model, base = build(images)
                gc.collect()  # what the run before has left
                marks = Marks(options.epochs)
                WAYS[way][0](data, marks, pathlib.Path(directory), model, base)
                weights[way] = model.get_layer("outputs").get_weights()
                for epochs, seconds in marks.seconds.items():
                    times[way][epochs].append(seconds)
    print(f"MobileNetV2 at {SIZE} x {SIZE}, {options.images} images, ", end="")
    print(f"batches of {BATCH}, {options.rounds} rounds")
    for epochs in options.epochs:
        print(
            f"\n{epochs:>3} epochs        {'s':>7} {'/ ideal':>8} {'limit':>6}", end=""
        )
        print(f" {'plain fit /':>12} {'weights differ':>15}")
        medians = {way: statistics.median(times[way][epochs]) for way in WAYS}
        for way, (_, limit) in WAYS.items():
            pairs = zip(times[way][epochs], times["ideal"][epochs], strict=False)
            ratio = statistics.median(seconds / ideal for seconds, ideal in pairs)
            difference = max(
                np.abs(a - b).max()
                for a, b in zip(weights[way], weights["ideal"], strict=True)
            )
            print(f"{way:>15} {medians[way]:>10.2f}", end="")
            print(f" {ratio:>8.3f} {limit or '':>6}", end="")
            print(f" {medians['plain fit'] / medians[way]:>12.2f}", end="")
            print(f" {difference:>15.1e}", flush=True)


if __name__ == "__main__":
    main()
