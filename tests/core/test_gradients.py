import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfdeep._core import _gradients

# Subnormal numbers are flushed to zero by TensorFlow.
finite = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
    elements=finite,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(arrays, min_size=1, max_size=6))
def test_norms_and_largest_entries_of_any_shapes(gradients):
    tensors = [tf.constant(g) for g in gradients]
    wide = [g.astype("float64") for g in gradients]
    np.testing.assert_allclose(
        _gradients.l2_norms(tensors),
        [np.linalg.norm(g) for g in wide],
        rtol=1e-5,
        atol=1.1e-19,  # the root of the smallest float32: squares below it are zero
    )
    np.testing.assert_array_equal(
        _gradients.largest_entries(tensors), [np.abs(g).max() for g in gradients]
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_large_and_small_tensors_keep_their_order(jit_compile):
    rng = np.random.default_rng(0)
    shapes = [(5,), (70, 30), (5,), (2, 3), (3, 2), (), (70, 30), (5,)]
    gradients = [rng.normal(size=shape).astype("float32") for shape in shapes]
    norms = tf.function(_gradients.l2_norms, jit_compile=jit_compile)
    np.testing.assert_allclose(
        norms([tf.constant(g) for g in gradients]),
        [np.linalg.norm(g) for g in gradients],
        rtol=1e-6,
    )


def test_half_precision_does_not_overflow():
    gradient = tf.fill([1000], tf.constant(600, tf.float16))
    norm = _gradients.l2_norms([gradient])
    np.testing.assert_allclose(norm, [600 * np.sqrt(1000)], rtol=1e-6)


def test_double_precision_is_kept():
    gradient = tf.constant([1e200, 1e-200], tf.float64) * 1e-60
    np.testing.assert_allclose(_gradients.l2_norms([gradient]), [1e140], rtol=1e-15)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("ids", [[2, 0, 2, 2, 1], [0], [3, 3], [1, 0]])
def test_a_sparse_gradient_is_measured_as_if_it_were_dense(ids, jit_compile):
    values = np.random.default_rng(0).normal(size=(len(ids), 3)).astype("float32")
    dense = np.zeros((5, 3))
    np.add.at(dense, ids, values)

    @tf.function(jit_compile=jit_compile)
    def measure(values, ids):
        slices = tf.IndexedSlices(values, ids, [5, 3])
        return _gradients.l2_norms([slices]), _gradients.largest_entries([slices])

    norm, largest = measure(tf.constant(values), tf.constant(ids))
    np.testing.assert_allclose(norm, [np.linalg.norm(dense)], rtol=1e-6)
    np.testing.assert_allclose(largest, [np.abs(dense).max()], rtol=1e-6)


def test_scaling_keeps_a_sparse_gradient_sparse():
    slices = tf.IndexedSlices(tf.constant([[2.0]]), tf.constant([1]), [3, 1])
    scaled = _gradients.scale(slices, 0.5)
    assert isinstance(scaled, tf.IndexedSlices)
    np.testing.assert_array_equal(scaled.values, [[1.0]])


@pytest.mark.parametrize("shape", [(7,), (300, 400)])
def test_entries_of_small_and_of_large_gradients(shape):
    rng = np.random.default_rng(0)
    gradient = rng.normal(1.0, 1.0, shape).astype("float32")
    gradient[rng.random(shape) < 0.25] = 0
    broken = gradient.copy()
    broken.flat[[1, -1]] = np.nan, np.inf
    tensors = [tf.constant(g) for g in (gradient, broken)]
    mean, zeros, nonfinite = _gradients.entry_statistics(tensors, [gradient.size] * 2)
    np.testing.assert_allclose(mean[0], gradient.mean(), rtol=1e-4)
    np.testing.assert_allclose(zeros[0], np.mean(gradient == 0), rtol=1e-6)
    np.testing.assert_array_equal(nonfinite, [0, 2])
