"""Builds cache entries in processes of its own: to be killed, or many at once.

It does without TensorFlow, which takes seconds to start: the packages that would
import it are replaced by empty ones.

    python tests/transfer/builder.py forks <cache_dir>
    python tests/transfer/builder.py race <cache_dir> <key> <builders> <readers>
"""

import os
import pathlib
import random
import signal
import sys
import time
import types

ROOT = pathlib.Path(__file__).parents[2]

if __name__ == "__main__":
    for name in ("tfdeep", "tfdeep.transfer"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(ROOT / name.replace(".", "/"))]

import numpy as np  # noqa: E402

from tfdeep._core import _files  # noqa: E402
from tfdeep.transfer._shards import Builder, Column, Entry  # noqa: E402

ROWS, SHARD_BYTES = 70, 1500
COLUMNS = [
    Column("features", "float32", (3, 5)),
    Column("labels", "int64", ()),
    Column("mask", "bool", (7,)),
]


def content(rows):
    """What the rows of these numbers hold."""
    numbers = np.asarray(rows, "int64")
    return [
        (numbers[:, None, None] + np.linspace(0, 1, 15).reshape(3, 5)).astype("f4"),
        numbers * 7 - 3,
        (numbers[:, None] >> np.arange(7)) % 2 == 1,
    ]


def builder(cache_dir, key, **arguments):
    return Builder(
        cache_dir, key, COLUMNS, ROWS, **{"shard_bytes": SHARD_BYTES, **arguments}
    )


def blocks(rows):
    for start in range(rows.start, rows.stop, 10):
        yield content(range(start, min(start + 10, rows.stop)))


def build(cache_dir, key, said=lambda *words: None, order=None):
    """Builds what is missing of an entry."""
    entry = builder(cache_dir, key)
    while not entry.is_complete():
        done = entry.finished()
        if len(done) == len(entry.shards):
            break
        for number in order or range(len(entry.shards)):
            if number in done:
                continue
            with entry.claim(number) as is_wanted:
                if not is_wanted:
                    time.sleep(0.001)
                    continue
                said("begun", number)
                entry.write(number, blocks(entry.shards[number]), {"shard": number})
            said("done", number)
    entry.finish({"by": "a test"})
    said("complete")


def wrong_rows(table):
    """How many rows of a table are not what they should be."""
    wrong = np.zeros(ROWS, bool)
    for arrays, right in zip(table.arrays, content(range(ROWS)), strict=True):
        found = np.concatenate(arrays).reshape(ROWS, -1)
        wrong |= (found != right.reshape(ROWS, -1)).any(1)
    return int(wrong.sum())


def forks(cache_dir):
    """For each key on standard input, builds it in a child and says how it gets on."""

    def said(*words):
        os.write(1, (" ".join(map(str, words)) + "\n").encode())

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            said("child", os.getpid())
            build(cache_dir, line.strip(), said)
            signal.pause()  # it is killed in any case
        os.waitpid(child, 0)
        said("dead")


def race(cache_dir, key, builders, readers):
    """Builders and readers of one entry at once, each lock granted to everyone."""
    _files._take_lock = lambda descriptor: True
    children = []
    for i in range(builders + readers):
        child = os.fork()
        if child == 0:
            try:
                if i < builders:
                    numbers = list(range(len(builder(cache_dir, key).shards)))
                    random.Random(i).shuffle(numbers)
                    build(cache_dir, key, order=numbers)
                while (table := Entry(cache_dir, key).open()) is None:
                    time.sleep(0.001)
                os._exit(wrong_rows(table) > 0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                os._exit(1)
        children.append(child)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    print(f"failed {failed}")


if __name__ == "__main__":
    if sys.argv[1] == "forks":
        forks(sys.argv[2])
    else:
        race(*sys.argv[2:4], *map(int, sys.argv[4:]))
