import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeep.errors import InvalidArgumentError, ModelError
from tfdeep.layers import StochasticDepth

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens/tfa/stochastic_depth.npz")
SHORTCUT, RESIDUAL = GOLDEN["shortcut"], GOLDEN["residual"]


def draws_of(layer, count=400):
    """For each call and example, whether its branch survived; nothing lies between."""
    call = tf.function(lambda: layer([SHORTCUT, RESIDUAL], training=True))
    y = np.stack([call().numpy() for _ in range(count)])
    added = np.isclose(y, SHORTCUT + RESIDUAL).all(axis=(2, 3))
    left_out = np.isclose(y, SHORTCUT).all(axis=(2, 3))
    assert (added != left_out).all()
    return added


def test_inference_is_that_of_tensorflow_addons():
    y = StochasticDepth(0.7)([SHORTCUT, RESIDUAL])
    np.testing.assert_allclose(y, GOLDEN["inference"], rtol=1e-6)


def test_a_batch_survives_as_one_as_often_as_in_tensorflow_addons():
    draws = draws_of(StochasticDepth(0.7, seed=0))
    assert (draws == draws[:, :1]).all()
    error = math.sqrt(0.7 * 0.3 / 400)
    assert abs(draws.mean() - 0.7) < 3 * error
    assert abs(float(GOLDEN["share_survived"]) - 0.7) < 3 * error


def test_each_example_may_draw_its_own():
    draws = draws_of(StochasticDepth(0.7, per="example", seed=0))
    assert abs(draws.mean() - 0.7) < 3 * math.sqrt(0.7 * 0.3 / 2000)
    both = np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]
    assert abs(both) < 0.2


@pytest.mark.parametrize("per", ["batch", "example"])
@pytest.mark.parametrize(("probability", "expected"), [(0, SHORTCUT), (1, None)])
def test_the_ends_of_the_range(per, probability, expected):
    expected = SHORTCUT + RESIDUAL if expected is None else expected
    layer = StochasticDepth(probability, per=per)
    for training in (False, True):
        y = layer([SHORTCUT, RESIDUAL], training=training)
        np.testing.assert_allclose(y, expected)


def test_what_cannot_work_is_refused():
    for value in (-0.1, 1.1, None, True):
        with pytest.raises(InvalidArgumentError, match="survival_probability"):
            StochasticDepth(value)
    with pytest.raises(InvalidArgumentError, match="'batch', 'example'"):
        StochasticDepth(per="sample")
    for inputs in (
        keras.Input((3,)),
        [keras.Input((3,)), keras.Input((4,))],
        [keras.Input((3,))] * 3,
    ):
        with pytest.raises(ModelError, match="two tensors of the same shape"):
            StochasticDepth()(inputs)
