import pathlib

import keras
import numpy as np
import pytest

from tfdeep.errors import InvalidArgumentError, ModelError
from tfdeep.layers import Maxout

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens/tfa/maxout.npz")


def test_values_are_those_of_tensorflow_addons():
    x = GOLDEN["x"]
    np.testing.assert_array_equal(Maxout(3)(x), GOLDEN["units_3"])
    np.testing.assert_array_equal(Maxout(12)(x), GOLDEN["units_12"])
    np.testing.assert_array_equal(Maxout(2, axis=1)(x), GOLDEN["units_2_axis_1"])


def test_values_are_the_largest_of_each_group():
    x = np.random.default_rng(0).normal(size=(5, 12))
    expected = [[max(row[i], row[i + 4], row[i + 8]) for i in range(4)] for row in x]
    np.testing.assert_allclose(Maxout(4)(x), expected, rtol=1e-6)


def test_the_features_may_be_on_another_axis():
    x = np.random.default_rng(0).normal(size=(5, 12, 3))
    moved = np.moveaxis(x, 1, 2)
    expected = np.moveaxis(Maxout(4)(moved).numpy(), 2, 1)
    for axis in (1, -2):
        np.testing.assert_array_equal(Maxout(4, axis=axis)(x), expected)


def test_what_cannot_work_is_refused():
    for units in (0, -1, 2.5, True):
        with pytest.raises(InvalidArgumentError, match="num_units"):
            Maxout(units)
    for units, axis in ((5, -1), (2, 0), (2, 2), (2, -2)):
        with pytest.raises(ModelError, match=f"axis={axis}, num_units={units}"):
            Maxout(units, axis=axis)(keras.Input((12,)))
