"""How fast the cache on disk is written and read, beside TensorFlow's own ways.

    python benchmarks/cache_io.py
    python benchmarks/cache_io.py --rows 20000 --only-store

One table of float32 rows. The store is written as `cache_frozen` writes it, in shards,
with checksums and fsync; against it stands the plain writing of the same blocks to one
file with one fsync. It is read in a full shuffle over all examples; against it stands
copying as many bytes to fresh memory. These alternate; the ratios are medians over the
rounds. The file is in the page cache.

Beside them, once each: `Dataset.cache(file)` of examples and of batches, `save` and
`load`, and TFRecord files. Those of batches keep their batches: they are read in
order. Those of examples are shuffled with a buffer of all examples, in memory.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf

from tfdeep.transfer._features import Table, features_of
from tfdeep.transfer._shards import Builder, Column, Entry

WIDTH = 1280
WRITE_AT_LEAST, READ_AT_LEAST = 0.6, 0.5


def write_plain(rows, path, batch):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for start in range(0, len(rows), batch):
        os.write(descriptor, rows[start : start + batch].data)
    os.fsync(descriptor)
    os.close(descriptor)


def write_store(rows, path, batch, shard_bytes):
    column = Column("features", "float32", (rows.shape[1],))
    builder = Builder(path, "bench", [column], len(rows), shard_bytes)
    for number, shard in enumerate(builder.shards):
        starts = range(shard.start, shard.stop, batch)
        blocks = ([rows[start : min(start + batch, shard.stop)]] for start in starts)
        with builder.claim(number):
            builder.write(number, blocks, {})
    builder.finish({})


def copy(rows):
    np.copyto(np.empty_like(rows), rows)


def run_through(dataset):
    for _ in dataset:
        pass


def timed(action, *arguments):
    begin = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - begin


def rounds_of(actions, rounds, before=lambda: None):
    """Seconds of each action in each round; the first round warms up."""
    seconds = {name: [] for name in actions}
    for i in range(rounds + 1):
        for name, action in actions.items():
            before()
            taken = timed(*action)
            if i > 0:
                seconds[name].append(taken)
    return seconds


def compare_store(rows, directory, options):
    batch, size = options.batch, rows.nbytes
    plain, store = directory / "plain.bin", directory / "store"

    def remove():
        shutil.rmtree(store, ignore_errors=True)
        plain.unlink(missing_ok=True)

    seconds = rounds_of(
        {
            "plain": (write_plain, rows, plain, batch),
            "store": (write_store, rows, store, batch, options.shard_bytes),
        },
        options.rounds,
        before=remove,
    )
    report("plain write, one fsync", seconds["plain"], size)
    report("store, write", seconds["store"], size, seconds["plain"], WRITE_AT_LEAST)

    begin = time.perf_counter()
    stored = Entry(store, "bench").open()
    verify = [time.perf_counter() - begin]
    sizes = [batch] * (len(rows) // batch)
    sizes += [len(rows) % batch] * (len(rows) % batch > 0)
    on_disk, in_memory = Table(stored.arrays), Table([[rows]])
    seconds = rounds_of(
        {
            "copy": (copy, rows),
            "store": (run_through, features_of([on_disk], sizes, shuffle=True)),
            "order": (run_through, features_of([on_disk], sizes)),
            "memory": (run_through, features_of([in_memory], sizes, shuffle=True)),
        },
        options.rounds,
    )
    copied = seconds["copy"]
    report("copy to fresh memory", copied, size)
    report("store, shuffled", seconds["store"], size, copied, READ_AT_LEAST)
    report("store, in order", seconds["order"], size, copied)
    report("table in memory, shuffled", seconds["memory"], size, copied)
    report(f"store, verify {len(stored.shards)} shards", verify, size)
    shutil.rmtree(store)


def compare_tensorflow(rows, directory, options):
    examples = tf.data.Dataset.from_tensor_slices(rows)
    batches = examples.batch(options.batch)
    for name, dataset in (("examples", examples), ("batches", batches)):
        path = str(directory / f"cache-{name}")
        cached = dataset.cache(path)
        once(f"Dataset.cache, {name}, write", rows, run_through, cached)
        read_back(name, "Dataset.cache", rows, cached, options)

        path = str(directory / f"save-{name}")
        once(f"Dataset.save, {name}, write", rows, dataset.save, path)
        saved = tf.data.Dataset.load(path)
        read_back(name, "Dataset.load", rows, saved, options)

        path = str(directory / f"record-{name}")
        records = dataset.map(tf.io.serialize_tensor)
        once(f"TFRecord, {name}, write", rows, write_records, path, records)
        read = tf.data.TFRecordDataset(path).map(
            lambda record: tf.io.parse_tensor(record, tf.float32)
        )
        read_back(name, "TFRecord", rows, read, options)


def write_records(path, records):
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record.numpy())


def read_back(kind, name, rows, dataset, options):
    if kind == "examples":
        dataset = dataset.shuffle(len(rows)).batch(options.batch)
    how = "shuffled" if kind == "examples" else "in order"
    once(f"{name}, {kind}, {how}", rows, run_through, dataset.prefetch(2))


def once(name, rows, action, *arguments):
    report(name, [timed(action, *arguments)], rows.nbytes)


def report(name, seconds, size, base=None, limit=None):
    median = statistics.median(seconds)
    line = f"{name:<34} {median:>8.2f} {size / median / 1e9:>8.2f}"
    if base:
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        line += f" {ratio:>8.2f}"
    print(line + (f" {limit:>9.2f}" if limit else ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--shard-bytes", type=int, default=128_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-store", action="store_true")
    parser.add_argument("--directory", help="where to write; a temporary one if not")
    options = parser.parse_args()
    block = np.random.default_rng(0).random((1000, WIDTH), "float32")
    rows = np.resize(block, (options.rows, WIDTH))
    print(f"{options.rows:,} x {WIDTH:,} float32, {rows.nbytes / 1e9:.2f} GB; ", end="")
    print(f"batches of {options.batch}, shards of {options.shard_bytes:,} bytes; ")
    print(f"tensorflow {tf.__version__}, {os.cpu_count()} cores, ", end="")
    print(f"{options.rounds} rounds\n")
    print(f"{'':<34} {'seconds':>8} {'GB/s':>8} {'ratio':>8} {'at least':>9}")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        compare_store(rows, pathlib.Path(directory), options)
        if not options.only_store:
            compare_tensorflow(rows, pathlib.Path(directory), options)


if __name__ == "__main__":
    main()
