"""What `GradientMonitor` costs: time of `fit` with it over time of `fit` without.

    python benchmarks/monitor_overhead.py
    python benchmarks/monitor_overhead.py --net mobilenet --way monitor --rounds 9

One `fit` trains a model in all ways, by turns of a hundred steps each, in a random
order: as it is, with the monitor, with the monitor and `activations=True`, and so on.
All ways train the same weights at the same places in memory; each has its own list of
callbacks and its own traced step. Each turn stands between two plain ones, by whose
mean it is divided; the printed ratio is the median over the rounds. `again` is plain
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

        self.model.make_train_function(force=True)
        step = self.model.train_function

        def train_function(iterator):
            vars(optimizer)["apply"] = apply  # while the first call traces it
            try:
                return step(iterator)
            finally:
                del vars(optimizer)["apply"]

        self.model.train_function = train_function


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
        x, y = self.batches[batch % len(self.batches)]
        self.history.append(self.norms(x, y).numpy())


class Turns(keras.callbacks.CallbackList):
    """Trains one model in several ways by turns, an epoch each, and takes the times.

    Args:
        model: The model.
        ways: By name, the callbacks of each way.
        turns: The names, in the order of the epochs.
    """

    def __init__(self, model, ways, turns):
        super().__init__(add_history=True, model=model)
        self.seconds = []
        self._turns = turns
        lists = keras.callbacks.CallbackList
        self._lists = {way: lists(ways[way], model=model) for way in ways}
        self._train_functions = {}

    def on_train_begin(self, logs=None):
        own = self.model.train_function
        for way, callbacks in self._lists.items():
            self.model.train_function = own
            callbacks.on_train_begin(logs)
            self._train_functions[way] = self.model.train_function

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == len(self._lists):
            gc.collect()  # what tracing left behind
        way = self._turns[epoch]
        self.model.train_function = self._train_functions[way]
        self._callbacks = self._lists[way]
        self._begin = time.perf_counter()
        self._callbacks.on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._callbacks.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._callbacks.on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._callbacks.on_epoch_end(epoch, logs)
        self.seconds.append(time.perf_counter() - self._begin)

    def on_train_end(self, logs=None):
        for callbacks in self._lists.values():
            callbacks.on_train_end(logs)


def measure(net, rounds, chosen, jit_compile):
    """Seconds of the plain turns, and of each way the ratios to the plain ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(net.batch_size * BATCHES, *net.shape)).astype("float32")
    y = rng.integers(0, OUTPUTS, len(x))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(net.batch_size).cache()
    batches = list(dataset)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=net.from_logits)
    monitor = tfdeep.callbacks.GradientMonitor
    watching = {
        "again": [],
        "monitor": [monitor(on_finding=None)],
        "activations": [monitor(on_finding=None, activations=True)],
        "norms": [Norms()],
        "second tape": [SecondTape(batches, loss)],
    }
    ways = ["again", *chosen]
    model = net.build()
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=jit_compile)
    turns = ["plain", *ways, "plain"]
    for _ in range(rounds):
        for way in random.sample(ways, len(ways)):
            turns += [way, "plain"]
    callbacks = Turns(
        model, {"plain": []} | {way: watching[way] for way in ways}, turns
    )
    model.fit(
        dataset.repeat(),
        steps_per_epoch=STEPS,
        epochs=len(turns),
        verbose=0,
        callbacks=callbacks,
    )
    seconds = callbacks.seconds
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
    parser.add_argument("--jit-compile", action="store_true", help="compile with XLA")
    options = parser.parse_args()
    print(f"tensorflow {tf.__version__}, keras {keras.__version__}, ", end="")
    xla = ", XLA" if options.jit_compile else ""
    print(f"{os.cpu_count()} cores{xla}, {options.rounds} rounds; ", end="")
    print("time over plain fit\n")
    print(f"{'net':>9} {'batch':>5} {'ms/step':>8}  {'way':<12}", end="")
    print(f" {'first 1,000 steps':>17} {'later':>6} {'at most':>8}")
    for net in NETS:
        if options.net and net.name not in options.net:
            continue
        ways = options.way or WAYS
        seconds, ratios = measure(net, options.rounds, ways, options.jit_compile)
        step = seconds / STEPS * 1000
        start = f"{net.name:>9} {net.batch_size:>5} {step:>8.2f}"
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
