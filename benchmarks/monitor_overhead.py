"""What `GradientMonitor` costs: time of `fit` with it over time of `fit` without.

    python benchmarks/monitor_overhead.py
    python benchmarks/monitor_overhead.py --net mobilenet --way monitor --rounds 9

One model of each network is trained over and over, so that every way of training has
the same weights at the same places in memory. A round takes the ways in a random order,
and each is paired with a plain `fit` right beside it, now before and now after:
`again`, which is plain too (what it differs from 1 is the noise of the measurement);
with the monitor; with the monitor and `activations=True`; `norms`, the least that any
monitor must do: the norm of each gradient is kept in a variable, and never read; and
with the usual recipe for gradient logging, a callback that runs a second
`tf.GradientTape` on the batch after each step. The first epoch of each fit, in which
TensorFlow traces the step, is not counted; the printed ratio is the median over the
pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from clock import Clock

import tfdeep

OUTPUTS = 10
WAYS = ("monitor", "activations", "norms", "second tape")


def dense(depth, units):
    return tfdeep.models.dnn((64,), [units] * depth, OUTPUTS, activation="relu")


def mobilenet():
    return keras.applications.MobileNetV2((64, 64, 3), weights=None, classes=OUTPUTS)


@dataclasses.dataclass(frozen=True)
class Net:
    """A network, and the most that the ratios may be."""

    name: str
    build: Callable[[], keras.Model]
    shape: tuple[int, ...]
    batch_size: int
    steps: int  # in an epoch
    limit: float
    limit_of_activations: float | None = None
    from_logits: bool = True
    epochs: int = 3  # of each fit; the first is not counted


NETS = (
    Net("5x100", lambda: dense(5, 100), (64,), 32, 150, 1.10),
    Net("20x100", lambda: dense(20, 100), (64,), 64, 100, 1.05),
    Net("5x1024", lambda: dense(5, 1024), (64,), 128, 60, 1.02, 1.15),
    # It takes half a minute to trace: fewer, longer fits.
    Net("mobilenet", mobilenet, (64, 64, 3), 32, 10, 1.02, 1.15, False, epochs=9),
)


class Norms(keras.callbacks.Callback):
    """Keeps the norm of each gradient in a variable, inside the compiled step."""

    rows = 256

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        columns = len(self.model.trainable_variables)
        ring = tf.Variable(tf.zeros([self.rows, columns]), trainable=False)
        row = tf.Variable(0, trainable=False)
        own = optimizer.apply

        def apply(gradients, trainable_variables=None):
            norms = tf.sqrt(2 * tf.stack([tf.nn.l2_loss(g) for g in gradients]))
            place = (row % self.rows)[tf.newaxis]
            ring.scatter_update(tf.IndexedSlices(norms[tf.newaxis], place))
            row.assign_add(1)
            return own(gradients, trainable_variables)

        vars(optimizer)["apply"] = apply
        self.model.make_train_function(force=True)

    def on_train_end(self, logs=None):
        del vars(self.model.optimizer)["apply"]
        self.model.train_function = None


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


def measure(net, rounds, chosen):
    """Seconds an epoch of plain training, and of each way the ratios to it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(net.batch_size * net.steps, *net.shape)).astype("float32")
    y = rng.integers(0, OUTPUTS, len(x))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(net.batch_size).cache()
    batches = list(dataset)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=net.from_logits)
    monitor = tfdeep.callbacks.GradientMonitor
    ways = {
        "again": lambda: [],
        "monitor": lambda: [monitor(on_finding=None)],
        "activations": lambda: [monitor(on_finding=None, activations=True)],
        "norms": lambda: [Norms()],
        "second tape": lambda: [SecondTape(batches, loss)],
    }
    ways = {way: ways[way] for way in ("again", *chosen)}
    model = net.build()
    model.compile(keras.optimizers.Adam(1e-4), loss)

    def seconds(callbacks):
        clock = Clock()
        callbacks = [*callbacks, clock]
        model.fit(dataset, epochs=net.epochs, verbose=0, callbacks=callbacks)
        return clock.seconds() / (net.epochs - 1)

    plain, ratios = [], {way: [] for way in ways}
    for i in range(rounds + 1):
        for way in random.sample(list(ways), len(ways)):
            if i % 2:
                watched, bare = seconds(ways[way]()), seconds([])
            else:
                bare, watched = seconds([]), seconds(ways[way]())
            if i > 0:  # the first round warms up
                plain.append(bare)
                ratios[way].append(watched / bare)
    return statistics.median(plain), ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--net", choices=[net.name for net in NETS], action="append")
    parser.add_argument("--way", choices=WAYS, action="append", help="default: all")
    options = parser.parse_args()
    print(f"tensorflow {tf.__version__}, keras {keras.__version__}, ", end="")
    print(f"{os.cpu_count()} cores, {options.rounds} rounds; time over plain fit\n")
    print(f"{'net':>9} {'batch':>5} {'ms/step':>8} {'again':>6} {'monitor':>8}", end="")
    print(f" {'at most':>8} {'activations':>12} {'at most':>8}", end="")
    print(f" {'norms':>6} {'second tape':>12}")
    for net in NETS:
        if options.net and net.name not in options.net:
            continue
        seconds, ratios = measure(net, options.rounds, options.way or WAYS)
        unknown = dict.fromkeys(WAYS, float("nan"))
        ratio = unknown | {way: statistics.median(ratios[way]) for way in ratios}
        step = seconds / net.steps * 1000
        limit = net.limit_of_activations
        print(f"{net.name:>9} {net.batch_size:>5} {step:>8.2f}", end="")
        print(f" {ratio['again']:>6.3f} {ratio['monitor']:>8.3f}", end="")
        print(f" {net.limit:>8.2f} {ratio['activations']:>12.3f}", end="")
        print(f" {'-' if limit is None else f'{limit:.2f}':>8}", end="")
        print(f" {ratio['norms']:>6.3f}", end="")
        print(f" {ratio['second tape']:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
