"""Orthogonality, by products in float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import layers

from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers import DeltaOrthogonal, Orthogonal


def deviation(matrix, gain=1.0):
    """The largest entry of W^T W (or W W^T) - gain**2 I."""
    w = np.asarray(matrix, "float64")
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    return abs(product - gain**2 * np.eye(len(product))).max()


def kernel_of(layer, *shape):
    layer.build((None, *shape))
    return keras.ops.convert_to_numpy(layer.kernel).astype("float64")


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-13), ("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 8e-2)],
)
def test_every_dtype(shape, dtype, tolerance):
    w = keras.ops.convert_to_numpy(Orthogonal(gain=1.5, seed=1)(shape, dtype))
    assert str(w.dtype) == dtype
    assert deviation(w, 1.5) < tolerance


def test_uniform_among_the_orthogonal_matrices():
    """Plain QR is not: the diagonal of its Q leans to one side."""
    draw = Orthogonal(seed=1)
    diagonals = [np.diag(draw((3, 3)).numpy()) for _ in range(400)]
    assert abs(np.mean(diagonals)) < 0.06  # 3.6 standard errors: 1 / sqrt(3 * 1200)
    determinants = [np.linalg.det(draw((3, 3)).numpy()) > 0 for _ in range(100)]
    assert 30 < sum(determinants) < 70


class TestAsTheLayerUsesIt:
    draw = Orthogonal(gain=2.0, seed=3)

    def test_convolution(self):
        kernel = kernel_of(layers.Conv2D(5, 3, kernel_initializer=self.draw), 9, 9, 4)
        assert deviation(kernel.reshape(36, 5), 2) < 1e-4

    def test_transposed_convolution(self):
        kernel = kernel_of(
            layers.Conv2DTranspose(5, 3, kernel_initializer=self.draw), 9, 9, 4
        )
        assert deviation(kernel.transpose(0, 1, 3, 2).reshape(36, 5), 2) < 1e-4

    def test_each_group(self):
        kernel = kernel_of(
            layers.Conv1D(12, 3, groups=3, kernel_initializer=self.draw), 9, 6
        )
        for group in np.split(kernel, 3, axis=-1):
            assert deviation(group.reshape(6, 4), 2) < 1e-4
        assert deviation(kernel.reshape(6, 12), 2) > 0.1

    def test_each_channel(self):
        kernel = kernel_of(
            layers.DepthwiseConv2D(
                3, depth_multiplier=2, depthwise_initializer=self.draw
            ),
            9, 9, 5,
        )  # fmt: skip
        for channel in range(5):
            assert deviation(kernel[:, :, channel].reshape(9, 2), 2) < 1e-4
        assert not np.allclose(kernel[:, :, 0], kernel[:, :, 1])

    @pytest.mark.parametrize(
        ("equation", "shape", "rows"),
        [("abc,cde->abde", (None, 3, 4), 20), ("abc,dec->abde", (None, 3, 4), None)],
    )
    def test_einsum(self, equation, shape, rows):
        layer = layers.EinsumDense(equation, shape, kernel_initializer=self.draw)
        kernel = kernel_of(layer, 7, 20)
        if rows is None:
            kernel = kernel.transpose(2, 0, 1)
        assert deviation(kernel.reshape(20, 12), 2) < 1e-4

    def test_embedding(self):
        layer = layers.Embedding(9, 4, embeddings_initializer=self.draw)
        layer.build((None,))
        assert deviation(layer.embeddings, 2) < 1e-4

    def test_attention_keeps_lengths(self):
        """A query of 12 numbers into 3 heads of 4: a rotation."""
        layer = layers.MultiHeadAttention(3, 4, kernel_initializer=Orthogonal(seed=1))
        x = np.random.default_rng(0).normal(size=(2, 5, 12)).astype("float32")
        layer(x, x)
        kernels = [w for w in layer.weights if w.path.endswith("query/kernel")]
        query = np.einsum("btc,chd->bthd", x, kernels[0].numpy())
        np.testing.assert_allclose((query**2).sum((-1, -2)), (x**2).sum(-1), rtol=1e-4)


class TestDeltaOrthogonal:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (layers.Conv1D(6, 3, padding="same", use_bias=False), (9, 4)),
            (layers.Conv2D(6, (3, 5), padding="same", use_bias=False), (9, 9, 4)),
            (layers.Conv2D(4, 4, padding="same", use_bias=False), (9, 9, 4)),
            (layers.Conv2D(4, 1, padding="same", use_bias=False), (9, 9, 4)),
            (
                layers.Conv2D(5, 3, padding="same", use_bias=False, dilation_rate=2),
                (9, 9, 4),
            ),
            (layers.Conv3D(5, 3, padding="same", use_bias=False), (5, 5, 5, 4)),
        ],
    )
    def test_a_convolution_keeps_the_length_at_every_place(self, layer, shape):
        layer = type(layer).from_config(
            {**layer.get_config(), "kernel_initializer": DeltaOrthogonal(3.0, seed=2)}
        )
        x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
        y = layer(x).numpy()
        np.testing.assert_allclose(
            np.linalg.norm(y, axis=-1), 3 * np.linalg.norm(x, axis=-1), rtol=1e-4
        )

    def test_only_the_middle_is_not_zero(self):
        kernel = DeltaOrthogonal(seed=1)((3, 3, 4, 4), "bfloat16")
        kernel = keras.ops.convert_to_numpy(kernel).astype("float64")
        assert deviation(kernel[1, 1]) < 8e-2
        kernel[1, 1] = 0
        assert not kernel.any()

    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (layers.Conv2D(3, 3), (9, 9, 4)),  # fewer filters than channels
            (layers.Conv2D(8, 3, groups=2), (9, 9, 4)),
            (layers.Conv2DTranspose(4, 3), (9, 9, 4)),
            (layers.DepthwiseConv2D(3, depth_multiplier=9), (9, 9, 4)),
            (layers.Dense(4), (4,)),
            (layers.EinsumDense("abc,cde->abde", (None, 8, 8)), (5, 4)),
        ],
    )
    def test_refusals(self, layer, shape):
        name = "kernel_initializer"
        config = layer.get_config()
        if isinstance(layer, layers.DepthwiseConv2D):
            name = "depthwise_initializer"
        layer = type(layer).from_config({**config, name: DeltaOrthogonal()})
        with pytest.raises(
            InvalidArgumentError, match=r"tfdeep\.initializers\.Orthogonal"
        ):
            layer.build((None, *shape))

    def test_refused_by_the_shape_alone(self):
        for shape in ((4, 4), (3, 3, 3, 3, 3, 3), (3, 4, 2)):
            with pytest.raises(InvalidArgumentError, match="DeltaOrthogonal"):
                DeltaOrthogonal()(shape)


@pytest.mark.parametrize("kind", [Orthogonal, DeltaOrthogonal])
@pytest.mark.parametrize("gain", [float("nan"), float("inf"), "relu", None])
def test_bad_gains(kind, gain):
    with pytest.raises(InvalidArgumentError, match="cannot work with this `gain`"):
        kind(gain=gain)
