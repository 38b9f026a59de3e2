"""The short form of the gym; `python -m benchmarks.gym` judges all of it."""

import keras
import pytest

from benchmarks.gym import __main__ as gym
from benchmarks.gym.healthy import HEALTHY
from benchmarks.gym.sick import SICK

# A few of the nets, and whether their activations are recorded.
SHORT_SICK = {
    "sigmoid_depth_20": False,
    "relu_normal_weights": True,
    "relu_bias_minus_10": False,
    "tanh_bias_10": False,
    "sgd_rate_100_times_too_high": True,
    "stopped_gradient": False,
    "recurrent_forgets": False,
    "frozen_during_fit": False,
    "root_of_zero": True,
    "corrupt_batch": False,
}
SHORT_HEALTHY = {
    "relu": False,
    "batch_normalization_after_bias": True,
    "late_in_training": False,
    "warm_up_from_1e-7": False,
    "rezero": False,
    "attention": True,
}
SLOW = {
    "rezero",
    "attention",
    "recurrent_forgets",
    "corrupt_batch",
    "relu_normal_weights",
}


@pytest.fixture(autouse=True)
def _clear():
    yield
    keras.backend.clear_session()


def chosen(cases, short):
    return [
        pytest.param(
            case,
            short[case.name],
            id=case.name,
            marks=pytest.mark.slow if case.name in SLOW else (),
        )
        for case in cases
        if case.name in short
    ]


@pytest.mark.parametrize(("case", "activations"), chosen(SICK, SHORT_SICK))
def test_a_sick_net_is_found(case, activations):
    findings, names = gym.find(case, activations)
    assert any(gym.right(case, f.kind, f.layer, names) for f in findings), findings


@pytest.mark.parametrize(("case", "activations"), chosen(HEALTHY, SHORT_HEALTHY))
def test_a_healthy_net_is_left_alone(case, activations):
    findings, _ = gym.find(case, activations)
    assert findings == ()
