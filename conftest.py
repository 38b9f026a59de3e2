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


# Tests that show one thing of many subjects, a few seconds each: of their cases the
# short form takes every so many.
EVERY = {
    "test_chosen_layers_come_from_every_format_into_every_kind_of_model": 3,
    "test_every_optimizer_goes_on_as_if_it_had_not_been_touched": 3,
    "test_cached_training_equals_frozen_training": 3,
    "test_training_equals_keras_own_clipping_on_one_device": 5,
    "test_a_step_sums_over_the_replicas_once": 4,
    "test_an_overflow_on_one_replica_skips_the_step_on_all": 5,
    "test_each_variable_trains_as_with_an_optimizer_of_its_own": 3,
    "test_other_images_fit_as_well": 2,
}


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="run the long form of the long tests"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    counts = {name: itertools.count() for name in EVERY}
    left_out = []
    for item in items:
        name = getattr(item, "originalname", None)
        if name in EVERY and next(counts[name]) % EVERY[name]:
            left_out.append(item)
    if len(items) > len(left_out):  # else single cases were asked for
        config.hook.pytest_deselected(items=left_out)
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
    keras.utils.set_random_seed(0)
