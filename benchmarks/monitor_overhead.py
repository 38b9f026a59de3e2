"""What `GradientMonitor` costs: time of `fit` with it over time of `fit` without.

    python benchmarks/monitor_overhead.py
    python benchmarks/monitor_overhead.py --net mobilenet --way monitor --rounds 9

One model is fitted in all ways, by turns of a hundred steps each, in a random order: as
it is, with the monitor, with the monitor and `activations=True`, and so on. All ways
train the same weights at the same places in memory; each keeps its own traced step. A
turn is timed from the beginning of its first step to the end of its last. Each stands
between two plain ones, by whose mean it is divided; the printed ratio is the median
over the rounds. `again` is plain
too: what it differs from 1 is the noise. The first turn of each way, in which
TensorFlow traces its step, is not counted. From its step 1,000 on the monitor measures
details more rarely, so the first 1,000 steps of each way stand apart from the later
ones; ten rounds and more have both.

`norms` is the least that any monitor must do: it keeps the norm of each gradient in a
variable inside the step, and never reads it. `second tape` is the usual recipe for
gradient logging: a callback that runs a second `tf.GradientTape` on the batch after
each step.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tfdeep

OUTPUTS = 10
STEPS = 100  # of a turn; the monitor reads its rings as often
EARLY = 1000  # steps in which the monitor measures most
BATCHES = 20  # of data, over and over
OPTIMIZERS = {"SGD": keras.optimizers.SGD, "Adam": keras.optimizers.Adam}
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
    limit: float
    limit_of_activations: float | None = None
    from_logits: bool = True


NETS = (
    Net("5x100", lambda: dense(5, 100), (64,), 32, 1.10),
    Net("20x100", lambda: dense(20, 100), (64,), 64, 1.05),
    Net("5x1024", lambda: dense(5, 1024), (64,), 128, 1.02, 1.15),
    Net("mobilenet", mobilenet, (64, 64, 3), 32, 1.02, 1.15, from_logits=False),
)


class Norms(keras.callbacks.Callback):
    """Keeps the norm of each gradient in a variable, inside the compiled step."""

    rows = 256

    def __init__(self):
        super().__init__()
        self.train_function = None

    def on_train_begin(self, logs=None):
        self.own = self.model.train_function
        if self.train_function is None:
            self.train_function = self.traced()
        self.model.train_function = self.train_function

    def on_train_end(self, logs=None):
        self.model.train_function = self.own

    def traced(self):
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

        type(self.model).make_train_function(self.model, force=True)
        step = self.model.train_function

        def train_function(iterator):
            vars(optimizer)["apply"] = apply  # while the first call traces it
            try:
                return step(iterator)
            finally:
                del vars(optimizer)["apply"]

        return train_function


class SecondTape(keras.callbacks.Callback):
    """The usual recipe: forward and backward once more, on the same batch."""

    def __init__(self, batches, loss):
        super().__init__()
        self.batches, self.loss = batches, loss
        self.norms = None

    def on_train_begin(self, logs=None):
        if self.norms is not None:
            return

        @tf.function
        def norms(x, y):
            with tf.GradientTape() as tape:
                loss = self.loss(y, self.model(x, training=True))
            gradients = tape.gradient(loss, self.model.trainable_variables)
            return tf.stack([tf.norm(gradient) for gradient in gradients])

        self.norms, self.history = norms, []

    def on_train_batch_end(self, batch, logs=None):
        x, y = self.batches[batch % len(self.batches)]
        self.history.append(self.norms(x, y).numpy())


class Turn(keras.callbacks.Callback):
    """Takes the time from the first step to the last. Stands last in the list."""

    def on_train_begin(self, logs=None):
        self.began = None

    def on_train_batch_begin(self, batch, logs=None):
        if self.began is None:
            self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds = time.perf_counter() - self.began


def measure(net, rounds, chosen, optimizer, jit_compile):
    """Seconds of the plain turns, and of each way the ratios to the plain ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(net.batch_size * BATCHES, *net.shape)).astype("float32")
    y = rng.integers(0, OUTPUTS, len(x))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(net.batch_size).cache()
    batches = list(dataset)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=net.from_logits)
    monitor = tfdeep.callbacks.GradientMonitor
    watching = {
        "plain": [],
        "again": [],
        "monitor": [monitor(on_finding=None)],
        "activations": [monitor(on_finding=None, activations=True)],
        "norms": [Norms()],
        "second tape": [SecondTape(batches, loss)],
    }
    ways = ["again", *chosen]
    model = net.build()
    model.compile(optimizer(1e-4), loss, jit_compile=jit_compile)
    turns = ["plain", *ways, "plain"]
    for _ in range(rounds):
        for way in random.sample(ways, len(ways)):
            turns += [way, "plain"]
    seconds, turn = [], Turn()
    for number, way in enumerate(turns):
        if number == len(ways) + 1:
            gc.collect()  # what tracing left behind
        model.fit(
            dataset.repeat(),
            steps_per_epoch=STEPS,
            verbose=0,
            callbacks=[*watching[way], turn],
        )
        seconds.append(turn.seconds)
    ratios = {way: [] for way in ways}
    for i in range(len(ways) + 2, len(turns), 2):
        beside = (seconds[i - 1] + seconds[i + 1]) / 2
        ratios[turns[i]].append(seconds[i] / beside)
    return statistics.median(seconds[len(ways) + 1 :: 2]), ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--net", choices=[net.name for net in NETS], action="append")
    parser.add_argument("--way", choices=WAYS, action="append", help="default: all")
    parser.add_argument(
        "--optimizer", choices=OPTIMIZERS, action="append", help="default: all"
    )
    parser.add_argument("--jit-compile", action="store_true", help="compile with XLA")
    options = parser.parse_args()
    print(f"tensorflow {tf.__version__}, keras {keras.__version__}, ", end="")
    xla = ", XLA" if options.jit_compile else ""
    print(f"{os.cpu_count()} cores{xla}, {options.rounds} rounds; ", end="")
    print("time over plain fit\n")
    print(f"{'net':>9} {'':>5} {'batch':>5} {'ms/step':>8}  {'way':<12}", end="")
    print(f" {'first 1,000 steps':>17} {'later':>6} {'at most':>8}")
    nets = [net for net in NETS if not options.net or net.name in options.net]
    names = options.optimizer or list(OPTIMIZERS)
    for net, name in itertools.product(nets, names):
        seconds, ratios = measure(
            net,
            options.rounds,
            options.way or WAYS,
            OPTIMIZERS[name],
            options.jit_compile,
        )
        step = seconds / STEPS * 1000
        start = f"{net.name:>9} {name:>5} {net.batch_size:>5} {step:>8.2f}"
        limits = {"monitor": net.limit, "activations": net.limit_of_activations}
        early = EARLY // STEPS - 1  # without the first turn
        for way, turns in ratios.items():
            cells = [median(turns[:early]), median(turns[early:]), limits.get(way)]
            first, later, limit = ["-" if x is None else f"{x:.3f}" for x in cells]
            print(f"{start}  {way:<12} {first:>17} {later:>6} {limit:>8}", flush=True)
            start = " " * len(start)


def median(ratios):
    return statistics.median(ratios) if ratios else None


if __name__ == "__main__":
    main()
