"""What clipping costs: time of `fit` with a wrapper over that with Keras' argument.

    python benchmarks/clip_cost.py
    python benchmarks/clip_cost.py --replicas 2

Each network is trained by equal models, one after the other within a round and in a
new random order each round: with `global_clipnorm=1.0` given to Keras' Adam; with that
again (what it differs from 1 is the noise of the measurement); and with each wrapper
around Adam. The first epoch of each fit, in which TensorFlow traces the step, is not
counted; the printed ratio is the median over the rounds.

With `--replicas`, under a `MirroredStrategy` on so many logical CPU devices; the
number of sums over the replicas in a step is printed as well.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from clock import Clock
from keras import layers

import tfdeep

OUTPUTS, EPOCHS = 10, 3
LIMIT = 1.02


def dense(depth, units):
    return lambda: tfdeep.models.dnn((64,), [units] * depth, OUTPUTS, activation="relu")


def convolutional():
    model = keras.Sequential([keras.Input((16, 16, 3))])
    for filters in (32, 64, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(OUTPUTS))
    return model


# name, how to build it, shape of an example, batch size, steps an epoch
NETS = [
    ("5x100", dense(5, 100), (64,), 32, 150),
    ("20x100", dense(20, 100), (64,), 64, 100),
    ("5x1024", dense(5, 1024), (64,), 128, 12),
    ("conv", convolutional, (16, 16, 3), 32, 40),
]


def adam(**arguments):
    return keras.optimizers.Adam(1e-4, **arguments)


o = tfdeep.optimizers
WAYS = {
    "Keras": lambda: adam(global_clipnorm=1.0),
    "Keras again": lambda: adam(global_clipnorm=1.0),
    "ClipByGlobalNorm": lambda: o.ClipByGlobalNorm(adam(), clip_norm=1.0),
    "ClipByNorm": lambda: o.ClipByNorm(adam(), clip_norm=1.0),
    "ClipByValue": lambda: o.ClipByValue(adam(), clip_value=0.1),
    "AdaptiveClip": lambda: o.AdaptiveClip(adam()),
    "PercentileClip": lambda: o.PercentileClip(adam()),
    "ZScoreClip": lambda: o.ZScoreClip(adam()),
    "SkipNonFinite": lambda: o.SkipNonFinite(adam()),
}


def compiled(build, optimizer, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss)
    return model


def data(shape, batch_size, steps):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size * steps, *shape)).astype("float32")
    y = rng.integers(0, OUTPUTS, len(x))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).cache()


def measure(models, dataset, rounds):
    """Seconds an epoch of each model, by round."""
    seconds = {way: [] for way in models}
    for i in range(rounds + 1):
        for way in random.sample(list(models), len(models)):
            clock = Clock()
            models[way].fit(dataset, epochs=EPOCHS, verbose=0, callbacks=[clock])
            if i > 0:  # the first round warms up
                seconds[way].append(clock.seconds() / (EPOCHS - 1))
    return seconds


def sums_in_a_step(model, dataset, replicas):
    """How often one train step sums over the replicas."""
    own, calls = tf.distribute.ReplicaContext.all_reduce, []

    def counted(self, *args, **kwargs):
        calls.append(self)
        return own(self, *args, **kwargs)

    tf.distribute.ReplicaContext.all_reduce = counted
    try:
        model.fit(dataset.take(1), verbose=0)
    finally:
        tf.distribute.ReplicaContext.all_reduce = own
    return len(calls) // replicas


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--net", choices=[net[0] for net in NETS])
    parser.add_argument("--way", choices=list(WAYS)[2:], action="append")
    arguments = parser.parse_args()
    strategy = tf.distribute.get_strategy()
    if arguments.replicas > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * arguments.replicas,
        )
        devices = [f"CPU:{i}" for i in range(arguments.replicas)]
        strategy = tf.distribute.MirroredStrategy(devices)
    ways = {
        way: make
        for way, make in WAYS.items()
        if way.startswith("Keras") or not arguments.way or way in arguments.way
    }
    print(f"tensorflow {tf.__version__}, keras {keras.__version__}, ", end="")
    print(f"{os.cpu_count()} cores, {arguments.rounds} rounds, ", end="")
    print(f"{arguments.replicas} replicas")
    print("time over that of Adam(global_clipnorm=1.0); ", end="")
    print(f"ClipByGlobalNorm on one device is to be at most {LIMIT}\n")
    for name, build, shape, batch_size, steps in NETS:
        if arguments.net not in (None, name):
            continue
        dataset = data(shape, batch_size, steps)
        models = {w: compiled(build, make, strategy) for w, make in ways.items()}
        sums = {}
        if arguments.replicas > 1:
            for way, model in models.items():
                sums[way] = sums_in_a_step(model, dataset, arguments.replicas)
        seconds = measure(models, dataset, arguments.rounds)
        step = statistics.median(seconds["Keras"]) / steps * 1000
        print(f"{name}, batch {batch_size}, {step:.2f} ms a step with Keras'")
        for way in list(ways)[1:]:
            ratio = statistics.median(
                t / keras_s
                for t, keras_s in zip(seconds[way], seconds["Keras"], strict=True)
            )
            note = f"  {sums[way]} all-reduce a step" if sums else ""
            print(f"  {way:<17} {ratio:.3f}{note}", flush=True)


if __name__ == "__main__":
    main()
