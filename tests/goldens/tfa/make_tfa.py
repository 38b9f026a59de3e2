"""Records what the layers of tensorflow-addons 0.23 compute, for the tests of parity.

pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0 "numpy<2"
python tests/goldens/tfa/make_tfa.py
"""

import os
import pathlib

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa
from tensorflow import keras

HERE = pathlib.Path(__file__).parent
LAYERS = keras.layers


def normal(seed, *shape, mean=0.0, std=1.0):
    values = np.random.RandomState(seed).normal(mean, std, shape)
    return values.astype("float32")


def rrelu():
    x = normal(0, 4, 50)
    x[0, :3] = [0.0, -0.0, -1.0]
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        y = tfa.activations.rrelu(variable, training=False)
    drawn = tfa.activations.rrelu(-tf.ones(100_000), training=True, seed=1).numpy()
    return {
        "x": x,
        "y": y.numpy(),
        "gradient": tape.gradient(y, variable).numpy(),
        "y_other_bounds": tfa.activations.rrelu(x, 0.2, 0.6, training=False).numpy(),
        # Of the slopes drawn while training.
        "slopes": np.array([-drawn.max(), -drawn.min(), -drawn.mean(), drawn.std()]),
    }


def maxout():
    x = normal(0, 3, 4, 12)
    return {
        "x": x,
        "units_3": tfa.layers.Maxout(3)(x).numpy(),
        "units_12": tfa.layers.Maxout(12)(x).numpy(),
        "units_2_axis_1": tfa.layers.Maxout(2, axis=1)(x).numpy(),
    }


def stochastic_depth():
    shortcut, residual = normal(0, 5, 3, 2), normal(1, 5, 3, 2)
    layer = tfa.layers.StochasticDepth(0.7)
    tf.random.set_seed(0)
    trained = [layer([shortcut, residual], training=True).numpy() for _ in range(400)]
    survived = [np.allclose(y, shortcut + residual) for y in trained]
    dropped = [np.allclose(y, shortcut) for y in trained]
    assert all(a != b for a, b in zip(survived, dropped, strict=True))
    return {
        "shortcut": shortcut,
        "residual": residual,
        "inference": layer([shortcut, residual], training=False).numpy(),
        "share_survived": np.mean(survived),
    }


def weight_normalization():
    """Kernels, lengths and outputs, with and without the start from data."""
    arrays = {}
    kinds = {
        "dense": (lambda **k: LAYERS.Dense(5, **k), (16, 7)),
        "conv2d": (lambda **k: LAYERS.Conv2D(4, 3, **k), (2, 8, 8, 3)),
        "conv1d": (lambda **k: LAYERS.Conv1D(4, 3, padding="same", **k), (3, 9, 5)),
        "gru": (lambda **k: LAYERS.GRU(4, **k), (3, 6, 5)),
        "lstm": (lambda **k: LAYERS.LSTM(4, **k), (3, 6, 5)),
    }
    for name, (make, shape) in kinds.items():
        keras.utils.set_random_seed(3)
        x = normal(4, *shape, mean=0.5, std=2.0)
        layer = tfa.layers.WeightNormalization(
            make(bias_initializer="normal"), data_init=False
        )
        layer(x)
        layer.g.assign(np.random.RandomState(5).uniform(0.5, 2, layer.g.shape))
        cell = layer.layer.cell if layer.is_rnn else layer.layer
        v = tf.Variable(layer.v)
        with tf.GradientTape() as tape:
            layer.v = v
            y = layer(x)
            loss = tf.reduce_sum(y**2)
        gradients = tape.gradient(loss, [layer.g, v])
        arrays |= {
            f"{name}_x": x,
            f"{name}_v": v.numpy(),
            f"{name}_g": layer.g.numpy(),
            f"{name}_bias": cell.bias.numpy(),
            f"{name}_y": y.numpy(),
            f"{name}_gradient_g": gradients[0].numpy(),
            f"{name}_gradient_v": gradients[1].numpy(),
        }
        if layer.is_rnn:
            arrays[f"{name}_kernel"] = cell.kernel.numpy()
    x = normal(6, 256, 32)
    for start, initializer in {
        "glorot": keras.initializers.GlorotNormal(seed=7),
        "he": keras.initializers.HeNormal(seed=7),
        "normal": keras.initializers.RandomNormal(stddev=0.05, seed=7),
    }.items():
        inner = LAYERS.Dense(64, kernel_initializer=initializer)
        layer = tfa.layers.WeightNormalization(inner, data_init=True)
        first = layer(x).numpy()
        arrays |= {
            f"start_{start}_v": layer.v.numpy(),
            f"start_{start}_std": first.std(),
            f"start_{start}_largest_mean": np.abs(first.mean(0)).max(),
        }
    arrays["start_x"] = x
    return arrays


def main():
    for make in (rrelu, maxout, stochastic_depth, weight_normalization):
        np.savez_compressed(HERE / f"{make.__name__}.npz", **make())


if __name__ == "__main__":
    main()
