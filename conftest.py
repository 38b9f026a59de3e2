"""Shared by the tests and by the examples in the docstrings."""

import gc
import itertools
import os

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

# A collection need not look through the half million objects of TensorFlow each time.
# Only what the imports made is frozen: objects of the tests stay visible and are freed.
gc.collect()
gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests, too")


SLOW = pytest.StashKey[int]()


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    config.stash[SLOW] = len(slow)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["slow"] = session.config.stash.get(SLOW, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    # Every process collects the same tests.
    node.config.stash[SLOW] = getattr(node, "workeroutput", {}).get("slow", 0)


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(SLOW, 0):
        terminalreporter.write_line(f"{count} slow tests were not run: pytest --slow")


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace, tmp_path):
    doctest_namespace.update(
        keras=keras, np=np, tf=tf, tfdeep=tfdeep, tmp_path=tmp_path
    )


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _fresh_session():
    keras.utils.clear_session(free_memory=False)
    if next(_tests) % 20 == 0:
        gc.collect()  # models are cycles; gigabytes of them slow everything down
    keras.utils.set_random_seed(0)
