"""What the initializers are for: signals and gradients through many layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfdeep import initializers
from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers import Fixup

WIDTH = 100


def test_selu_through_a_thousand_layers():
    """Rows that A. Geron recorded (NumPy, seed 42): mean and std, to two digits."""
    recorded = {
        0: (0.00, 1.00), 100: (0.02, 0.96), 200: (0.01, 0.90), 300: (-0.02, 0.92),
        400: (0.05, 0.89), 500: (0.01, 0.93), 600: (0.02, 0.92), 700: (-0.02, 0.90),
        800: (0.05, 0.83), 900: (0.02, 1.00),
    }  # fmt: skip
    alpha, scale = 1.6732632423543778, 1.0507009873554805
    std = initializers.gain("selu") / np.sqrt(WIDTH)
    np.random.seed(42)
    z = np.random.normal(size=(500, WIDTH))
    for layer in range(901):  # the last row that is recorded
        w = np.random.normal(size=(WIDTH, WIDTH), scale=std)
        z = z @ w
        z = scale * np.where(z < 0, alpha * (np.exp(z) - 1), z)
        if layer in recorded:
            found = z.mean(axis=0).mean(), z.std(axis=0).mean()
            # Row 800 is 0.82500: the last bit of a sum decides how it is rounded.
            assert found == pytest.approx(recorded[layer], abs=0.005 + 1e-4)


def gradient_ratio(activation, draw, depth=10):
    """Norm of the gradient of the first layer's units over that of the last's."""
    dense = [
        layers.Dense(WIDTH, kernel_initializer=draw, use_bias=False)
        for _ in range(depth)
    ]
    function = keras.activations.get(activation)
    x = tf.constant(np.random.default_rng(0).normal(size=(500, WIDTH)), tf.float32)
    units = []
    with tf.GradientTape() as tape:
        tape.watch(x)
        for layer in dense:
            units.append(layer(x))
            x = function(units[-1])
        loss = tf.reduce_sum(x * np.random.default_rng(1).normal(size=x.shape))
    first, last = tape.gradient(loss, [units[0], units[-1]])
    return float(tf.norm(first) / tf.norm(last))


def test_gradients_of_ten_relu_layers():
    for seed in range(3):
        table = initializers.VarianceScaling("relu", convention="table", seed=seed)
        assert 0.5 < gradient_ratio("relu", table) < 2
        unit = keras.initializers.RandomNormal(
            stddev=1.0, seed=keras.random.SeedGenerator(seed)
        )
        assert gradient_ratio("relu", unit) > 1e6


def test_the_factor_of_four_does_not_belong_to_tanh():
    """The erratum of the table, at width 100 and ten layers."""

    def ratio(activation, convention):
        draw = initializers.VarianceScaling(activation, convention=convention, seed=1)
        return gradient_ratio(activation, draw)

    assert ratio("tanh", "table") > 10  # explodes
    assert 0.05 < ratio("tanh", "lisa") < 1
    assert ratio("sigmoid", "table") < 1e-4  # vanishes
    assert 1e-3 < ratio("sigmoid", "lisa") < 0.1


@pytest.mark.parametrize(
    "activation", ["relu", "gelu", "silu", "mish", "elu", "selu", "tanh", "softplus"]
)
def test_a_layer_keeps_the_scale(activation):
    draw = initializers.VarianceScaling(activation, mode="fan_in", seed=2)
    z = np.random.default_rng(0).normal(size=(500, 800)).astype("float32")
    after = np.asarray(keras.activations.get(activation)(z)) @ draw((800, 800)).numpy()
    assert np.mean(after**2) == pytest.approx(1, rel=0.05)


class TestFixup:
    @pytest.mark.parametrize(("branches", "depth"), [(1, 2), (16, 2), (27, 3), (50, 4)])
    def test_the_scale_of_the_paper(self, branches, depth):
        draw = Fixup(branches, depth, seed=1)
        std = branches ** (-1 / (2 * depth - 2)) * np.sqrt(2 / 500)
        assert np.std(draw((500, 500))) == pytest.approx(std, rel=1e-2)

    def test_one_step_changes_a_deep_net_as_much_as_a_shallow_one(self):
        """The condition from which the paper derives it."""

        def change(branches, inner, last):
            x = keras.Input((50,))
            y = x
            for _ in range(branches):
                z = layers.Dense(50, "relu", kernel_initializer=inner)(y)
                y = y + layers.Dense(50, kernel_initializer=last)(z)
            net = keras.Model(x, y)
            data = np.random.default_rng(0).normal(size=(64, 50)).astype("float32")
            target = np.random.default_rng(1).normal(size=(64, 50)).astype("float32")
            before = net(data)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((net(data) - target) ** 2)
            weights = net.trainable_variables
            for w, g in zip(
                weights, tape.gradient(loss, [w.value for w in weights]), strict=True
            ):
                w.assign_sub(0.5 * g)
            return float(tf.reduce_mean((net(data) - before) ** 2) ** 0.5)

        fixup = [change(n, Fixup(n, seed=1), "zeros") for n in (2, 32)]
        assert 0.3 < fixup[1] / fixup[0] < 3
        he = initializers.HeNormal(1)
        plain = [change(n, he, he) for n in (2, 32)]
        assert not plain[1] / plain[0] < 1e3

    @pytest.mark.parametrize("arguments", [(0,), (2, 1), (1.5,), (True,), (4, "2")])
    def test_refusals(self, arguments):
        with pytest.raises(InvalidArgumentError, match="`Fixup` cannot work with this"):
            Fixup(*arguments)
