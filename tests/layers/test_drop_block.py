import math

import numpy as np
import pytest

from tfdeep.errors import InvalidArgumentError
from tfdeep.layers import DropBlock2D


def dropped_by(layer, *shape):
    return layer(np.ones(shape, "float32"), training=True).numpy() == 0


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_what_is_dropped_is_made_of_squares(block):
    """Each dropped place lies in a square of dropped places that fits into the map."""
    dropped = dropped_by(DropBlock2D(0.2, block, seed=0), 8, 10, 7, 3)
    covered = np.zeros_like(dropped)
    for row in range(10 - block + 1):
        for column in range(7 - block + 1):
            area = (slice(None), slice(row, row + block), slice(column, column + block))
            whole = dropped[area].all(axis=(1, 2), keepdims=True)
            covered[area] |= whole
    assert dropped.any()
    np.testing.assert_array_equal(dropped, covered)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (16, 6)])
def test_as_much_is_dropped_as_the_rate_says(height, width):
    """Of the number of squares that algorithm 1 draws: gamma for each center."""
    rate, block, maps = 0.1, 3, 4000
    dropped = dropped_by(DropBlock2D(rate, block, seed=0), maps, height, width, 1)
    gamma = rate / block**2 * height * width
    gamma /= (height - block + 1) * (width - block + 1)
    # A place is kept if no square that holds it was drawn.
    kept = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            rows = min(i, height - block) - max(i - block + 1, 0) + 1
            columns = min(j, width - block) - max(j - block + 1, 0) + 1
            kept[i, j] = (1 - gamma) ** (rows * columns)
    found = 1 - dropped.mean(axis=(0, 3))
    np.testing.assert_allclose(found, kept, atol=4 * math.sqrt(0.25 / maps))
    assert abs((1 - found).mean() - rate) < 0.01


def test_what_is_kept_is_scaled_up():
    x = np.random.default_rng(0).uniform(1, 2, (6, 8, 8, 2)).astype("float32")
    y = DropBlock2D(0.3, 3, seed=0)(x, training=True).numpy()
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] * kept.size / kept.sum(), rtol=1e-5)


def test_channels_drop_by_themselves():
    dropped = dropped_by(DropBlock2D(0.3, 3, seed=0), 1000, 8, 8, 2)
    # At one place: all channels drop less at the border.
    correlation = np.corrcoef(dropped[:, 4, 4], rowvar=False)[0, 1]
    assert abs(correlation) < 0.1


def test_the_channels_may_come_first():
    x = np.random.default_rng(0).uniform(1, 2, (6, 8, 7, 2)).astype("float32")
    last = DropBlock2D(0.3, 3, seed=0)(x, training=True)
    first = DropBlock2D(0.3, 3, seed=0, data_format="channels_first")
    y = first(np.moveaxis(x, -1, 1), training=True)
    np.testing.assert_array_equal(np.moveaxis(y.numpy(), 1, -1), last)


def test_at_inference_and_at_rate_0_nothing_happens():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(DropBlock2D(0.5)(x), x)
    np.testing.assert_array_equal(DropBlock2D(0.0)(x, training=True), x)


def test_a_map_smaller_than_the_square_drops_whole_columns():
    dropped = dropped_by(DropBlock2D(0.5, block_size=7, seed=0), 200, 3, 5, 1)
    assert 0.3 < dropped.mean() < 0.6
    assert (dropped.all(axis=1) | ~dropped.any(axis=1)).all()  # the whole height


def test_dropping_everything_gives_zeros():
    layer = DropBlock2D(0.99, 4, seed=0)
    for _ in range(20):
        y = layer(np.ones((1, 4, 4, 1), "float32"), training=True).numpy()
        assert np.isfinite(y).all()


def test_what_cannot_work_is_refused():
    for arguments in ({"rate": 1.0}, {"rate": -0.1}, {"rate": 0.1, "block_size": 0}):
        with pytest.raises(InvalidArgumentError, match=list(arguments)[-1]):
            DropBlock2D(**arguments)
