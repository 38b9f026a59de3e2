"""Shared by the tests and by the examples in the docstrings."""

import collections
import gc
import itertools
import os
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeep

# Two logical devices on one CPU, for the tests of replicas.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

collect_ignore_glob = ["tests/goldens/*"]  # programs for other environments


# Files whose tests show one thing of many subjects, seconds each. Of the cases of such
# a test the short form takes every fourth, beginning elsewhere in each test.
EVERY_FOURTH = (
    "callbacks/test_findings.py",
    "callbacks/test_gradient_monitor.py",
    "callbacks/test_layer_recording.py",
    "checkpoints/test_restore.py",
    "checkpoints/test_round_trips.py",
    "checkpoints/test_save_subset.py",
    "optimizers/test_accumulate.py",
    "optimizers/test_clipping.py",
    "optimizers/test_every_wrapper.py",
    "optimizers/test_layer_rates.py",
    "optimizers/test_norm_history.py",
    "optimizers/test_replicas.py",
    "optimizers/test_skip_non_finite.py",
    "surgery/test_fan_in_max_norm.py",
    "transfer/test_cache.py",
    "transfer/test_freeze.py",
    "workflow/test_gym.py",
)


def pytest_configure(config):
    config.addinivalue_line("markers", "long: run with --long only")


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="run the long form of the long tests"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    tests = collections.defaultdict(list)
    for item in items:
        if item.nodeid.partition("::")[0].endswith(EVERY_FOURTH):
            tests[item.nodeid.partition("[")[0]].append(item)
    left_out = {
        item
        for name, cases in tests.items()
        for i, item in enumerate(cases, start=zlib.crc32(name.encode()))
        if len(cases) >= 4 and i % 4
    }
    left_out |= {item for item in items if item.get_closest_marker("long")}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace, tmp_path):
    doctest_namespace.update(
        keras=keras, np=np, tf=tf, tfdeep=tfdeep, tmp_path=tmp_path
    )


_tests = itertools.count()


@pytest.fixture(autouse=True)
def _fresh_session():
    keras.utils.clear_session(free_memory=False)
    if next(_tests) % 20 == 0:
        gc.collect()  # models are cycles; gigabytes of them slow everything down
        gc.freeze()  # what is left stays, and is not looked through again
    keras.utils.set_random_seed(0)
