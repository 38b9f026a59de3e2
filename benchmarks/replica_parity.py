"""Whether training on several replicas gives the weights of training on one.

    python benchmarks/replica_parity.py

Trains one small network (with an embedding, whose gradient is sparse) with each of
tfdeep's wrappers and with each of Keras' own clipping arguments: on one device, on two
and four replicas (`MirroredStrategy` on logical CPU devices), and on two worker
processes. Prints the largest difference of any weight from the one device's, after one
step and after three epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfdeep

STEPS_AN_EPOCH, BATCH, EPOCHS = 6, 16, 3
IDS, LENGTH, CLASSES = 7, 5, 3

INNER = {
    "SGD": lambda **more: keras.optimizers.SGD(0.5, **more),
    "Adam": lambda **more: keras.optimizers.Adam(0.02, **more),
    "AdamW": lambda **more: keras.optimizers.AdamW(0.02, weight_decay=0.1, **more),
}
o = tfdeep.optimizers
WRAPPERS = {
    "ClipByValue": lambda inner: o.ClipByValue(inner, clip_value=0.01),
    "ClipByNorm": lambda inner: o.ClipByNorm(inner, clip_norm=0.05),
    "ClipByGlobalNorm": lambda inner: o.ClipByGlobalNorm(inner, clip_norm=0.1),
    "AdaptiveClip": lambda inner: o.AdaptiveClip(inner, 0.02, exclude=".*outputs"),
    "PercentileClip": lambda inner: o.PercentileClip(inner, 30.0, window=8),
    "ZScoreClip": lambda inner: o.ZScoreClip(inner, z_threshold=0.3, warmup_steps=3),
    "SkipNonFinite": lambda inner: o.SkipNonFinite(inner),
    "Accumulate": lambda inner: o.Accumulate(inner, steps=2),
    "Accumulate(ClipByGlobalNorm)": lambda inner: o.Accumulate(
        o.ClipByGlobalNorm(inner, clip_norm=0.1), steps=2
    ),
}
KERAS = {
    "clipvalue": {"clipvalue": 0.01},
    "clipnorm": {"clipnorm": 0.05},
    "global_clipnorm": {"global_clipnorm": 0.1},
}


def cases():
    """What to train with, by name: functions that make an optimizer."""
    found = {}
    for wrapper, wrap in WRAPPERS.items():
        for name, inner in INNER.items():
            found[f"{wrapper}, {name}"] = lambda w=wrap, i=inner: w(i())
    for more in ({"use_ema": True, "ema_momentum": 0.5}, {"loss_scale_factor": 128.0}):
        for wrapper in WRAPPERS:
            found[f"{wrapper}, SGD, {next(iter(more))}"] = (
                lambda w=WRAPPERS[wrapper], m=more: w(INNER["SGD"](**m))
            )
    return found


def keras_cases():
    """The same with Keras' own arguments."""
    return {
        f"Keras {argument}, {name}": lambda i=inner, c=clip: i(**c)
        for argument, clip in KERAS.items()
        for name, inner in INNER.items()
    }


def examples(steps):
    rng = np.random.default_rng(0)
    x = rng.integers(0, IDS, (steps * BATCH, LENGTH)).astype("int32")
    return x, (x.sum(axis=1) % CLASSES).astype("int32")


def build():
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(IDS, 6, name="table")(inputs)
    x = layers.Flatten()(x)
    x = layers.Dense(8, activation="relu", name="hidden1")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="outputs")(x))


def train(make_optimizer, strategy):
    """The weights after one step and after so many epochs more, by their number."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(make_optimizer(), loss)
        model.optimizer.build(model.trainable_variables)  # the step is traced once
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    data = tf.data.Dataset.from_tensor_slices(examples(STEPS_AN_EPOCH))
    data = data.batch(BATCH).with_options(options)
    # A single step of Accumulate is one of all its micro-batches.
    micro = getattr(model.optimizer, "steps", 1)
    found = {}
    for epochs, part in ((0, data.take(micro)), (EPOCHS, data)):
        model.fit(part, epochs=epochs or 1, verbose=0)
        found[epochs] = [np.asarray(weight) for weight in model.get_weights()]
    return found


def difference(weights, others):
    return max(
        float(np.max(np.abs(a - b))) for a, b in zip(weights, others, strict=True)
    )


# Each way to distribute has processes of its own: TensorFlow's collectives cannot
# serve groups of two sizes in one process.


def work(names, replicas, path):
    """Trains the named cases in this process, and saves the weights."""
    if replicas:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * replicas,
        )
        devices = [f"CPU:{i}" for i in range(replicas)]
        strategy = tf.distribute.MirroredStrategy(devices)
    else:
        strategy = tfdeep.distribute.MultiWorkerMirroredStrategy()
    every = {**cases(), **keras_cases()}
    found = {}
    for name in names:
        for epochs, weights in train(every[name], strategy).items():
            for i, weight in enumerate(weights):
                found[f"{name}|{epochs}|{i}"] = weight
    np.savez(path, **found)


def train_on_replicas(names, replicas):
    """The weights from one process with so many devices, by case and epochs."""
    return _run(names, replicas, [{}])[0]


def train_on_workers(names, workers=2):
    """The weights of each of so many worker processes, by case and epochs."""
    ports = []
    for _ in range(workers):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            ports.append(free.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    tasks = [
        {"cluster": cluster, "task": {"type": "worker", "index": i}}
        for i in range(workers)
    ]
    return _run(names, 0, [{"TF_CONFIG": json.dumps(task)} for task in tasks])


def _run(names, replicas, environments):
    """Has processes of this program train the cases, one for each environment."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, os.path.abspath(__file__)]
        command += ["--names", json.dumps(names), "--replicas", str(replicas)]
        paths = [os.path.join(directory, f"{i}.npz") for i in range(len(environments))]
        processes = [
            subprocess.Popen(
                [*command, "--work", path],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for path, environment in zip(paths, environments, strict=True)
        ]
        try:
            outputs = [p.communicate(timeout=1800)[0].decode() for p in processes]
        finally:
            for process in processes:
                process.kill()
        for process, output in zip(processes, outputs, strict=True):
            if process.returncode:
                raise RuntimeError(output[-5000:])
        return [_by_case(np.load(path)) for path in paths]


def _by_case(arrays):
    found = {}
    for key in arrays:
        name, epochs, _ = key.split("|")
        found.setdefault((name, int(epochs)), []).append(arrays[key])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--work", "--names", "--replicas"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--case", default=".*", help="pattern of the rows to print")
    arguments = parser.parse_args()
    if arguments.work:
        work(json.loads(arguments.names), int(arguments.replicas), arguments.work)
        return
    every = {
        name: make
        for name, make in {**keras_cases(), **cases()}.items()
        if re.fullmatch(arguments.case, name)
    }
    columns = {
        "2 replicas": train_on_replicas(list(every), 2),
        "4 replicas": train_on_replicas(list(every), 4),
        "2 workers": train_on_workers(list(every))[0],
    }
    print(f"tensorflow {tf.__version__}, keras {keras.__version__}")
    print("largest difference of any weight from one device: after 1 step / 3 epochs\n")
    print(f"| optimizer | {' | '.join(columns)} |")
    print("|---|---|---|---|")
    for name, make in every.items():
        cells = {column: [] for column in columns}
        alone_by_epochs = train(make, tf.distribute.get_strategy())
        for epochs, alone in alone_by_epochs.items():
            for column, weights in columns.items():
                cells[column].append(difference(weights[name, epochs], alone))
        shown = (" / ".join(f"{d:.0e}" for d in cell) for cell in cells.values())
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
