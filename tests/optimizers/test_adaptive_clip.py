import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep.errors import InvalidArgumentError, SelectionError
from tfdeep.optimizers import AdaptiveClip, ClipByNorm

SGD = keras.optimizers.SGD


def reference(weights, gradient, axes, clip_factor, epsilon=1e-3):
    """Equation 3 of the paper for the units of one weight, in float64."""
    weights, gradient = np.asarray(weights, "float64"), np.asarray(gradient, "float64")
    w_norm = np.sqrt((weights**2).sum(axis=axes, keepdims=True))
    g_norm = np.sqrt((gradient**2).sum(axis=axes, keepdims=True))
    bound = clip_factor * np.maximum(w_norm, epsilon)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(g_norm > bound, gradient * bound / g_norm, gradient)


LAYERS = {
    "dense": (lambda: layers.Dense(5), (3,), (0,)),
    "conv1d": (lambda: layers.Conv1D(4, 3), (6, 2), (0, 1)),
    "conv2d": (lambda: layers.Conv2D(4, 3), (5, 5, 2), (0, 1, 2)),
    "conv3d": (lambda: layers.Conv3D(3, 2), (3, 3, 3, 2), (0, 1, 2, 3)),
    "transposed": (lambda: layers.Conv2DTranspose(4, 3), (5, 5, 2), (0, 1, 3)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), (5, 5, 2), (0, 1)),
    "heads": (
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 5)),
        (4, 3),
        (0,),
    ),
    "recurrent": (lambda: layers.SimpleRNN(4), (6, 3), (0,)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("clip_factor", [1e-3, 0.5, 100.0])
def test_each_unit_is_clipped_by_its_own_weights(kind, clip_factor):
    make, shape, axes = LAYERS[kind]
    layer = make()
    layer(tf.zeros((1, *shape)))
    rng = np.random.default_rng(0)
    variables = layer.trainable_variables
    optimizer = AdaptiveClip(SGD(1.0), clip_factor=clip_factor)
    optimizer.bind(layer)
    gradients = [rng.normal(size=v.shape).astype("float32") for v in variables]
    # Half of the units are shortened, and some have weights near zero.
    gradients = [g * rng.choice([0.01, 1], size=g.shape[-1:]) for g in gradients]
    before = [v.numpy() for v in variables]
    optimizer.apply([tf.constant(g) for g in gradients], variables)
    for variable, old, gradient in zip(variables, before, gradients, strict=True):
        unit = axes if variable.name == "kernel" else (0,)
        expected = old - reference(old, gradient, unit, clip_factor)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_rows_of_an_embedding_are_clipped_by_themselves(jit_compile):
    table = keras.Variable(np.arange(12.0).reshape(4, 3), name="embeddings")
    old = table.numpy()
    values = np.float32([[3, 0, 0], [1, 1, 1], [4, 0, 0], [0, 9, 0]])
    ids = [2, 0, 2, 3]
    dense = np.zeros((4, 3))
    np.add.at(dense, ids, values)
    optimizer = AdaptiveClip(SGD(1.0), clip_factor=0.1)
    optimizer.build([table])

    @tf.function(jit_compile=jit_compile)
    def step():
        slices = tf.IndexedSlices(tf.constant(values), tf.constant(ids), (4, 3))
        optimizer.apply([slices], [table])

    step()
    clipped = reference(old, dense, (1,), 0.1)
    np.testing.assert_allclose(table.numpy(), old - clipped, rtol=1e-5)
    telemetry = optimizer.telemetry
    np.testing.assert_allclose(telemetry.norm, np.linalg.norm(dense), rtol=1e-6)
    np.testing.assert_allclose(
        telemetry.clipped_norm, np.linalg.norm(clipped), rtol=1e-6
    )


def test_weights_that_are_zero_can_start_to_learn():
    kernel = keras.Variable(np.zeros((2, 1)), name="kernel")
    AdaptiveClip(SGD(1.0), clip_factor=0.5, epsilon=0.02).apply(
        [tf.constant([[3.0], [4.0]])], [kernel]
    )
    np.testing.assert_allclose(kernel.numpy(), [[-0.006], [-0.008]], rtol=1e-6)


@pytest.mark.parametrize("make", [nets.functional, nets.sequential, nets.subclassed])
def test_the_head_is_excluded_by_its_path_in_the_model(make):
    model, plain = make(), make()
    plain.set_weights(model.get_weights())
    optimizer = AdaptiveClip(SGD(1.0), clip_factor=1e-6, exclude="outputs")
    model.compile(ClipByNorm(optimizer, clip_norm=1e6), nets.LOSS)
    plain.compile(SGD(1.0), nets.LOSS)
    before = model.get_weights()
    x, y = nets.examples(16)
    for m in (model, plain):
        m.fit(x, y, batch_size=16, verbose=0)
    after, reference = model.get_weights(), plain.get_weights()
    for i, old in enumerate(before):
        if i >= len(before) - 2:
            np.testing.assert_array_equal(after[i], reference[i])
        else:
            assert np.abs(after[i] - old).max() < 1e-5


def test_a_pattern_that_excludes_nothing_is_an_error():
    model = nets.functional()
    model.compile(AdaptiveClip(SGD(1.0), exclude="head"), nets.LOSS)
    before = model.get_weights()
    with pytest.raises(SelectionError, match="head"):
        model.fit(*nets.examples(16), verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_in_a_loop_of_ones_own_the_paths_are_those_of_the_variables():
    kernel = keras.Variable(np.zeros((2, 1)), name="kernel")
    AdaptiveClip(SGD(1.0), exclude="kernel").apply([tf.ones((2, 1))], [kernel])
    np.testing.assert_array_equal(kernel.numpy(), -np.ones((2, 1)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"clip_factor": 0},
        {"clip_factor": "a"},
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments):
    with pytest.raises(InvalidArgumentError, match="finite number > 0"):
        AdaptiveClip(SGD(1.0), **arguments)


def test_a_pattern_that_is_none_is_refused_at_once():
    with pytest.raises(SelectionError):
        AdaptiveClip(SGD(1.0), exclude="[")
