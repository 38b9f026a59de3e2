"""The parts of `python -m benchmarks.programs`; the command runs the programs."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.programs import PROGRAMS, __main__
from benchmarks.programs._judge import Said, judge
from benchmarks.programs._program import Program
from benchmarks.programs._train import data, train
from tfdeep.diagnostics._finding import KINDS

SHORT = (
    "softmax_of_one_digits",
    "one_class_only",
    "adam_of_one",
    "frozen_after_compile",
)


@pytest.fixture(autouse=True)
def _clear():
    yield
    keras.backend.clear_session()


def make_program(layers=()):
    return Program("name", "own", "fault", ("dead_units",), layers, dict, {}, {})


def said(*places):
    findings = tuple(
        types.SimpleNamespace(kind=kind, layer=layer) for kind, layer in places
    )
    return Said(findings, findings[:1])


def test_names_are_unique():
    names = [program.name for program in PROGRAMS]
    assert len(set(names)) == len(names) >= 66


def test_kinds_are_those_of_tfdeep():
    unknown = {
        program.name: set(program.kinds) - set(KINDS)
        for program in PROGRAMS
        if not program.kinds or set(program.kinds) - set(KINDS)
    }
    assert not unknown


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, marks=() if program.name in SHORT else pytest.mark.slow)
        for program in PROGRAMS
    ],
    ids=lambda program: program.name,
)
def test_both_forms_are_ready_to_fit_and_differ(program):
    assert program.wrong != program.right
    for prepare in (program.faulty, program.repaired):
        prepared = prepare()
        model, _, _, arguments = prepared
        assert model.compiled
        assert set(program.layers) & {layer.name for layer in model.layers} or (
            not program.layers
        )
        assert set(arguments) <= {
            "batch_size",
            "shuffle",
            "validation_data",
            "sample_weight",
        }
        x, y = data(prepared)
        parts = [] if y is None else [*tf.nest.flatten(x), *tf.nest.flatten(y)]
        rows = {len(part) for part in parts} or {0}
        assert len(rows) == 1


def test_a_program_is_the_same_each_time():
    program = next(p for p in PROGRAMS if p.name == "one_class_only")
    one, other = (program.faulty() for _ in range(2))
    np.testing.assert_array_equal(one[1], other[1])
    for a, b in zip(one[0].get_weights(), other[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fit_ends_after_its_steps_in_the_middle_of_an_epoch():
    program = next(p for p in PROGRAMS if p.name == "one_class_only")
    outcome = train(program.repaired(), steps=7)
    assert outcome.steps == 7
    assert not outcome.error


@pytest.mark.parametrize(
    ("layers", "places", "verdict"),
    [
        ((), [("dead_units", "hidden1")], "first"),
        (("hidden1",), [("dead_units", "block/hidden1")], "first"),
        (("hidden1",), [("dead_units", "hidden2")], "missed"),
        (("hidden1",), [("stalled", ""), ("dead_units", "hidden1")], "named"),
        ((), [("stalled", "")], "missed"),
        ((), [], "missed"),
    ],
)
def test_verdicts(layers, places, verdict):
    assert judge(make_program(layers), said(*places)) == verdict


def test_scores_are_printed_by_kind(capsys):
    programs = [make_program()]
    verdicts = {"name": {"monitor": "first", "diagnose": "named", "either": "first"}}
    __main__.print_scores(programs, verdicts)
    printed = capsys.readouterr().out
    assert "dead_units                      1        1 / 1        0 / 1" in printed
    assert "monitor 1.00 / 1.00, diagnose 0.00 / 1.00" in printed
