"""Shared by the tests and by the examples in the docstrings."""

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


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="run the long form of the long tests"
    )


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace, tmp_path):
    doctest_namespace.update(
        keras=keras, np=np, tf=tf, tfdeep=tfdeep, tmp_path=tmp_path
    )


@pytest.fixture(autouse=True)
def _fresh_session():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
