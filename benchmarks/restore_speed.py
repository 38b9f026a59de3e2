"""How fast `tfdeep.restore` reads a tenth of a large checkpoint, in what memory.

    python benchmarks/restore_speed.py
    python benchmarks/restore_speed.py --format safetensors --rounds 9

The model is a stack of dense layers of 16.8 MB each; the file is in the page cache.
Against the time of reading as many bytes from that file into memory (alternating with
it, medians) stands `restore` of every tenth layer; beside it, Keras' `load_weights` of
the whole file, where Keras reads the format. Memory is what the process took at its
most beyond what it had before. A format that is checksummed as a whole (`.keras`) has
to be read as a whole.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

UNITS = 2048
TENSOR = 4 * UNITS * UNITS  # bytes
FORMATS = (".weights.h5", ".safetensors", ".npz", ".ckpt", ".keras")


def build(layers):
    import keras

    inputs = x = keras.Input((UNITS,))
    for i in range(1, layers + 1):
        x = keras.layers.Dense(UNITS, use_bias=False, name=f"hidden{i}")(x)
    return keras.Model(inputs, x)


def write(directory, suffix, layers):
    import tfdeep

    model, path = build(layers), str(pathlib.Path(directory) / f"net{suffix}")
    if suffix == ".keras":
        model.save(path)
    else:
        tfdeep.save_subset(model, path)


def peak():
    """The most memory that this process has had, in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def measure(path, layers, rounds, results):
    import numpy as np

    import tfdeep

    model = build(layers)
    chosen = [f"hidden{i}" for i in range(1, layers + 1) if i % 10 == 1]
    data = pathlib.Path(path)
    if data.is_dir():
        (data,) = data.glob("*.data-*")

    def read():
        kept = []
        with open(data, "rb", buffering=0) as file:
            for i in range(len(chosen)):
                kept.append(np.empty(TENSOR, np.uint8))
                file.seek(10 * i * TENSOR)
                file.readinto(kept[-1].data)

    def restore():
        tfdeep.restore(model, path, include=chosen)

    for action in (read, restore):
        action()
    times = {read: [], restore: []}
    for _ in range(rounds):
        for action in (read, restore):
            begin = time.perf_counter()
            action()
            times[action].append(time.perf_counter() - begin)
    reset_peak()
    start = peak()
    restore()
    memory = peak() - start
    whole = None
    if path.endswith((".weights.h5", ".keras")):
        begin = time.perf_counter()
        model.load_weights(path)
        whole = time.perf_counter() - begin
    medians = [statistics.median(times[action]) for action in (read, restore)]
    results.put((*medians, memory, whole))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--format", choices=FORMATS, action="append")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    chosen = len(range(1, options.layers + 1, 10))
    print(f"{options.layers * TENSOR / 1e9:.2f} GB; {chosen} layers restored, ", end="")
    print(f"{chosen * TENSOR / 1e6:.0f} MB; {options.rounds} rounds\n")
    print(f"{'format':>13} {'read, s':>8} {'restore':>8} {'ratio':>6}", end="")
    print(f" {'at most':>8}", end="")
    print(f" {'memory, MB':>11} {'at most':>8} {'load_weights, s':>16}")
    context = multiprocessing.get_context("spawn")
    for suffix in options.format or FORMATS:
        with tempfile.TemporaryDirectory() as directory:
            writer = context.Process(
                target=write, args=(directory, suffix, options.layers)
            )
            writer.start()
            writer.join()
            path = str(pathlib.Path(directory) / f"net{suffix}")
            results = context.Queue()
            arguments = (path, options.layers, options.rounds, results)
            worker = context.Process(target=measure, args=arguments)
            worker.start()
            read, restore, memory, whole = results.get()
            worker.join()
        most = (2 * TENSOR + 200e6) / 1e6
        limit = "-" if suffix == ".keras" else "1.30"
        print(f"{suffix:>13} {read:>8.3f} {restore:>8.3f}", end="")
        print(f" {restore / read:>6.2f}", end="")
        print(f" {limit:>8} {memory / 1e6:>11.0f} {most:>8.0f}", end="")
        print(f" {'-' if whole is None else f'{whole:.2f}':>16}", flush=True)


if __name__ == "__main__":
    main()
