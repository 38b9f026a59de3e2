"""The two wrappers that learn their bound: PercentileClip and ZScoreClip."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeep.errors import InvalidArgumentError
from tfdeep.optimizers import PercentileClip, ZScoreClip

SGD = keras.optimizers.SGD


def clipped_norms(optimizer, norms, jit_compile=None):
    """The norms that pass, one step after the other."""
    weight = keras.Variable(np.zeros(2))
    optimizer.build([weight])

    def step(norm):
        optimizer.apply([norm * tf.constant([0.6, -0.8])], [weight])

    if jit_compile is not None:
        step = tf.function(step, jit_compile=jit_compile)
    passed = []
    for norm in norms:
        weight.assign(np.zeros(2))
        step(tf.constant(norm, tf.float32))
        passed.append(np.linalg.norm(weight.numpy().astype("float64")))
    return passed


def percentile_reference(norms, percentile, window):
    seen, passed = [], []
    for norm in norms:
        if np.isfinite(norm) and norm > 0:
            seen.append(norm)
        bound = np.percentile(seen[-window:], percentile) if seen else np.inf
        passed.append(min(norm, bound) if norm == norm else norm)
    return passed


def z_score_reference(norms, z_max, decay, warmup_steps):
    """ZClip as the paper gives it (algorithm 1, reciprocal clipping), in float64."""
    warming, mean, variance, passed = [], 0.0, 0.0, []
    for norm in norms:
        if not np.isfinite(norm):
            passed.append(norm)
            continue
        if len(warming) < warmup_steps:
            warming.append(norm)
            mean, variance = np.mean(warming), np.var(warming)
            passed.append(norm)
            continue
        deviation = np.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        clipped = mean + z_max**2 / z * deviation if z > z_max else norm
        mean = decay * mean + (1 - decay) * clipped
        variance = decay * variance + (1 - decay) * (clipped - mean) ** 2
        passed.append(clipped)
    return passed


def some_norms(count=60, seed=0):
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(0, 0.3, count)
    norms[rng.choice(count, 6, replace=False)] *= 30
    return norms


each_way = pytest.mark.parametrize("jit_compile", [None, False, True])


@each_way
@pytest.mark.parametrize(("percentile", "window"), [(10, 1000), (50, 7), (99.5, 16)])
def test_percentile(percentile, window, jit_compile):
    norms = some_norms()
    optimizer = PercentileClip(SGD(1.0), percentile, window)
    np.testing.assert_allclose(
        clipped_norms(optimizer, norms, jit_compile),
        percentile_reference(norms, percentile, window),
        rtol=1e-5,
    )


@each_way
@pytest.mark.parametrize(
    ("z_max", "decay", "warmup_steps"), [(2.5, 0.97, 25), (1, 0.5, 3)]
)
def test_z_score(z_max, decay, warmup_steps, jit_compile):
    norms = some_norms()
    optimizer = ZScoreClip(SGD(1.0), z_max, decay, warmup_steps)
    passed = clipped_norms(optimizer, norms, jit_compile)
    expected = z_score_reference(norms, z_max, decay, warmup_steps)
    np.testing.assert_allclose(passed, expected, rtol=2e-5)
    assert optimizer.telemetry.clipped_steps == sum(
        e < n for e, n in zip(expected, norms, strict=True)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("place", [0, 1, 30, 59])
def test_a_gradient_that_is_not_finite_is_not_remembered(bad, place):
    norms = some_norms()
    for make, reference in (
        (lambda: PercentileClip(SGD(1.0), 50, 7), percentile_reference),
        (lambda: ZScoreClip(SGD(1.0), 2.5, 0.97, 25), z_score_reference),
    ):
        optimizer = make()
        with_bad = np.insert(norms, place, bad)
        arguments = (50, 7) if reference is percentile_reference else (2.5, 0.97, 25)
        passed = clipped_norms(optimizer, with_bad, jit_compile=False)
        np.testing.assert_allclose(
            np.delete(passed, place), reference(norms, *arguments), rtol=2e-5
        )


def test_norms_that_never_vary_pass():
    norms = np.full(40, 3.0)
    np.testing.assert_allclose(clipped_norms(ZScoreClip(SGD(1.0)), norms), norms)
    np.testing.assert_allclose(clipped_norms(PercentileClip(SGD(1.0)), norms), norms)


def test_a_start_without_gradient_does_not_stop_the_training():
    passed = clipped_norms(PercentileClip(SGD(1.0)), [0.0, 0.0, 2.0])
    np.testing.assert_allclose(passed, [0, 0, 2])


@pytest.mark.parametrize(
    ("wrapper", "arguments", "expected"),
    [
        (PercentileClip, {"percentile": 0}, "> 0 and <= 100"),
        (PercentileClip, {"percentile": 101}, "> 0 and <= 100"),
        (PercentileClip, {"window": 0}, "whole number > 0"),
        (PercentileClip, {"window": 2.5}, "whole number > 0"),
        (ZScoreClip, {"z_threshold": 0}, "> 0"),
        (ZScoreClip, {"decay": 1.0}, "> 0 and < 1"),
        (ZScoreClip, {"decay": 0.0}, "> 0"),
        (ZScoreClip, {"warmup_steps": 1}, "whole number > 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused(wrapper, arguments, expected):
    with pytest.raises(InvalidArgumentError, match=expected):
        wrapper(SGD(1.0), **arguments)
