import numpy as np
import pytest
import tensorflow as tf

from tfdeep.errors import InvalidArgumentError
from tfdeep.layers import LocalResponseNormalization

X = np.random.default_rng(0).normal(0, 3, (2, 4, 3, 9))


def by_loops(a, k, n, alpha, beta):
    """The formula of section 3.3 of the paper, with its own names."""
    b = np.empty_like(a)
    channels = a.shape[-1]
    for i in range(channels):
        low, high = max(0, i - n // 2), min(channels - 1, i + n // 2)
        total = sum(a[..., j] ** 2 for j in range(low, high + 1))
        b[..., i] = a[..., i] / (k + alpha * total) ** beta
    return b


def test_the_defaults_are_those_of_the_paper():
    expected = by_loops(X, k=2, n=5, alpha=1e-4, beta=0.75)
    np.testing.assert_allclose(LocalResponseNormalization()(X), expected, atol=1e-6)


@pytest.mark.parametrize("radius", [0, 1, 3, 20])
def test_values_are_those_of_the_formula(radius):
    layer = LocalResponseNormalization(radius, bias=1.5, alpha=0.3, beta=0.6)
    expected = by_loops(X, k=1.5, n=2 * radius + 1, alpha=0.3, beta=0.6)
    np.testing.assert_allclose(layer(X), expected, atol=1e-6)


def test_alpha_may_be_divided_by_n():
    """As PyTorch does: its size is n, its alpha is n times as large."""
    layer = LocalResponseNormalization(2, alpha=0.5, alpha_over_n=True)
    expected = by_loops(X, k=2, n=5, alpha=0.1, beta=0.75)
    np.testing.assert_allclose(layer(X), expected, atol=1e-6)


def test_values_are_those_of_the_operation():
    layer = LocalResponseNormalization(5, bias=1.0, alpha=1.0, beta=0.5)
    x = X.astype("float32")
    expected = tf.nn.local_response_normalization(x)  # with its own defaults
    np.testing.assert_array_equal(layer(x), expected)


def test_other_ranks_and_the_channels_first():
    expected = by_loops(X, k=2, n=5, alpha=0.5, beta=0.75)
    layer = LocalResponseNormalization(alpha=0.5)
    np.testing.assert_allclose(layer(X.reshape(-1, 9)), expected.reshape(-1, 9), 1e-5)
    volume = layer(X[:, None])
    np.testing.assert_allclose(volume[:, 0], expected, 1e-5)
    first = LocalResponseNormalization(alpha=0.5, data_format="channels_first")
    y = np.moveaxis(first(np.moveaxis(X, -1, 1)).numpy(), 1, -1)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_the_squares_of_float16_do_not_overflow():
    x = np.full((1, 1, 1, 5), 1000.0)
    y = LocalResponseNormalization(alpha=1.0, beta=0.5, dtype="mixed_float16")(x)
    expected = by_loops(x, k=2, n=5, alpha=1.0, beta=0.5)
    np.testing.assert_allclose(y, expected, rtol=1e-3)


def test_what_cannot_work_is_refused():
    for arguments in (
        {"depth_radius": -1},
        {"depth_radius": 2.5},
        {"bias": 0},
        {"alpha": np.nan},
        {"beta": None},
        {"data_format": "NHWC"},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
            LocalResponseNormalization(**arguments)
