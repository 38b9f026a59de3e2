"""Two worker processes with one cache."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeep
from tests.transfer import worker
from tfdeep.transfer._features import Table, features_of
from tfdeep.transfer._passes import _common_seed

ROOT = pathlib.Path(worker.__file__).parents[2]


def environments():
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            ports.append(free.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    tasks = [{"type": "worker", "index": i} for i in range(2)]
    return [
        {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks
    ]


def run(cache_dir, arguments):
    """Runs two workers with these arguments; returns how each ended."""
    processes = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(cache_dir), *map(str, own)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for own, environment in zip(arguments, environments(), strict=True)
    ]
    try:
        outputs = [p.communicate(timeout=300)[0].decode() for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out) for p, out in zip(processes, outputs, strict=True)]


def test_two_workers_build_one_cache_and_train_from_it(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    names = [tmp_path / f"{name}.npz" for name in ("first", "second")]
    for code, output in run(both, [[name, "trains", 0] for name in names]):
        assert code == 0, output[-3000:]
    expected = worker.work(alone)
    workers = [dict(np.load(name)) for name in names]
    assert expected.pop("ran") == expected.pop("examples") == worker.COUNT
    # Each began with its own half; none was computed twice.
    assert all(found["ran"] > 0 for found in workers)
    assert sum(found["ran"] for found in workers) == worker.COUNT
    for found in workers:
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6)
    # One entry serves one machine or several.
    assert [p.name for p in alone.iterdir()] == [p.name for p in both.iterdir()]


def test_a_worker_that_dies_loses_nothing(tmp_path):
    survivor, dead, cache_dir = (tmp_path / n for n in ("a.npz", "b.npz", "cache"))
    arguments = [[survivor, "builds", 0], [dead, "builds", 6]]
    (code, output), (killed, last_words) = run(cache_dir, arguments)
    assert killed == -9, last_words[-3000:]
    assert code == 0, output[-3000:]
    assert np.load(survivor)["examples"] == worker.COUNT
    (entry,) = tfdeep.transfer.verify_cache(cache_dir).entries
    assert (entry.state, entry.rows) == ("complete", worker.COUNT)


def place(worker, count):
    """A model as it is in one of several workers, as far as its place goes."""
    cluster = tf.train.ClusterSpec({"worker": [f"localhost:{i}" for i in range(count)]})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type="worker", task_id=worker
    )
    strategy = types.SimpleNamespace(cluster_resolver=resolver)
    return types.SimpleNamespace(distribute_strategy=strategy)


@pytest.mark.parametrize("key", ["3f9a0c1d5e", None], ids=["on disk", "in memory"])
def test_workers_shuffle_alike_whatever_they_drew_before(key):
    table = Table([[np.zeros((96, 2), "float32")], [np.arange(96)]])
    orders = []
    for worker_number in range(2):
        keras.utils.set_random_seed(worker_number)
        seed = _common_seed(place(worker_number, 2), key)
        features = features_of([table], [16] * 6, True, seed)
        orders.append([row for _, rows in features for row in rows.numpy().tolist()])
    assert orders[0] == orders[1]
    assert orders[0] != list(range(96))
    assert sorted(orders[0]) == list(range(96))
    assert _common_seed(place(0, 1), key) is None
