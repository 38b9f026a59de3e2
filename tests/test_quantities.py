"""The table of quantities: complete, and told apart."""

import re

import numpy as np
import pytest

import tfdeep
from tests import nets
from tfdeep._quantities import BY_NAME, EACH_STEP, QUANTITIES, Of, When, is_measured


def test_names_and_tags_are_unique():
    assert len(BY_NAME) == len(QUANTITIES)
    assert len({quantity.tag for quantity in QUANTITIES}) == len(QUANTITIES)


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.name)
def test_each_one_says_what_it_is(quantity):
    assert re.fullmatch("[a-z_]+", quantity.name)
    assert quantity.label and quantity.unit
    assert quantity.page in ("Gradients", "Updates", "Layers", "Optimizer", "")


def test_which_steps_count_as_measured():
    assert set(EACH_STEP) == {"norm", "clipped_norm", "loss", "data_loss"}
    assert not any(map(is_measured, (*EACH_STEP, "is_frozen")))
    assert is_measured("mean") and is_measured("a quantity of your own")


def test_the_table_lists_all_that_a_monitor_records():
    model = nets.functional()
    model.compile(tfdeep.optimizers.ClipByNorm("sgd", 1.0), nets.LOSS)
    monitor = tfdeep.callbacks.GradientMonitor(activations=True)
    model.fit(nets.dataset(), epochs=1, verbose=0, callbacks=[monitor])
    recording = monitor.recording
    known = {q.name for q in QUANTITIES if q.when not in (When.PROBE, When.DERIVED)}
    assert set(recording.quantities) == known
    for name in known:
        assert recording[name].shape[1] == recording.width(name)


def test_the_columns_of_a_quantity():
    recording = tfdeep.diagnostics.Recording(["a/kernel", "a/bias"])
    columns = {Of.NET: 1, Of.VARIABLE: 2, Of.LAYER: 0, Of.OUTPUT: 0}
    for quantity in QUANTITIES:
        is_derived = quantity.when is When.DERIVED
        expected = None if is_derived else columns[quantity.of]
        assert recording.width(quantity.name) == expected


def test_what_a_recorded_step_stands_for():
    probe = tfdeep.diagnostics.Recording(["a/kernel"], stands_for=20)
    run = tfdeep.diagnostics.Recording(["a/kernel"])
    for recording in (probe, run):
        recording.extend({"norm": np.ones((1, 1))})
    assert (probe.total_steps, probe.lasted) == (1, 20)
    assert (run.total_steps, run.lasted) == (1, 1)
