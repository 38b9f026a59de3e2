"""What `GradientMonitor` costs: time of `fit` with it over time of `fit` without.

    python benchmarks/monitor_overhead.py

Each network is trained by four equal models, one after the other within a round and
in a new random order each round: plain `fit`; plain `fit` again (what it differs from
1 is the noise of the measurement); `fit` with the monitor; and `fit` with the usual
recipe for gradient logging, a callback that runs a second `tf.GradientTape` on the
batch after each step. The first epoch of each fit, in which TensorFlow traces the
step, is not counted; the printed ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from clock import Clock

import tfdeep

# hidden layers, units, batch size, steps an epoch, most that the ratio may be
NETS = [
    (5, 100, 32, 150, 1.10),
    (20, 100, 64, 100, 1.05),
    (5, 1024, 128, 12, 1.02),
]
INPUTS, OUTPUTS = 64, 10
EPOCHS = 3


class SecondTape(keras.callbacks.Callback):
    """The usual recipe: forward and backward once more, on the same batch."""

    def __init__(self, batches, loss):
        super().__init__()
        self.batches, self.loss = batches, loss

    def on_train_begin(self, logs=None):
        @tf.function
        def norms(x, y):
            with tf.GradientTape() as tape:
                loss = self.loss(y, self.model(x, training=True))
            gradients = tape.gradient(loss, self.model.trainable_variables)
            return tf.stack([tf.norm(gradient) for gradient in gradients])

        self.norms, self.history = norms, []

    def on_train_batch_end(self, batch, logs=None):
        self.history.append(self.norms(*self.batches[batch]).numpy())


def build(depth, units, loss):
    model = tfdeep.models.dnn((INPUTS,), [units] * depth, OUTPUTS, activation="relu")
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


def measure(depth, units, batch_size, steps, rounds):
    """Seconds an epoch of each way of training, by round."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size * steps, INPUTS)).astype("float32")
    y = rng.integers(0, OUTPUTS, len(x))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).cache()
    batches = list(dataset)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ways = {
        "plain": lambda: [],
        "plain again": lambda: [],
        "monitor": lambda: [tfdeep.callbacks.GradientMonitor()],
        "second tape": lambda: [SecondTape(batches, loss)],
    }
    models = {way: build(depth, units, loss) for way in ways}
    seconds = {way: [] for way in ways}
    for i in range(rounds + 1):
        for way in random.sample(list(ways), len(ways)):
            clock = Clock()
            callbacks = [*ways[way](), clock]
            models[way].fit(dataset, epochs=EPOCHS, verbose=0, callbacks=callbacks)
            if i > 0:  # the first round warms up
                seconds[way].append(clock.seconds() / (EPOCHS - 1))
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    print(f"tensorflow {tf.__version__}, keras {keras.__version__}, ", end="")
    print(f"{os.cpu_count()} cores, {rounds} rounds; time over that of plain fit\n")
    print(f"{'net':>8} {'batch':>5} {'ms/step':>8} {'plain again':>12}", end="")
    print(f" {'monitor':>8} {'at most':>8} {'second tape':>12}")
    for depth, units, batch_size, steps, limit in NETS:
        seconds = measure(depth, units, batch_size, steps, rounds)
        ratio = {
            way: statistics.median(
                t / plain for t, plain in zip(times, seconds["plain"], strict=True)
            )
            for way, times in seconds.items()
        }
        step = statistics.median(seconds["plain"]) / steps * 1000
        print(f"{f'{depth}x{units}':>8} {batch_size:>5} {step:>8.2f}", end="")
        print(f" {ratio['plain again']:>12.3f} {ratio['monitor']:>8.3f}", end="")
        print(f" {limit:>8.2f} {ratio['second tape']:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
