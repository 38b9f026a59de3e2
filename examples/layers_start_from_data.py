"""Weight normalization with and without its start from data.

    python examples/layers_start_from_data.py

A stack of ten dense layers of 100 tanh units sees 256 inputs of standard deviation 3.
Weight normalization alone leaves the size of the outputs to the first weights;
`adapt`, layer by layer, gives each unit mean 0 and standard deviation 1 before its
activation (Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868).
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

import tfdeep

DEPTH, UNITS = 10, 100


def stack(stddev):
    """The layers, with directions from N(0, stddev^2)."""
    return [
        tfdeep.layers.WeightNormalization(
            keras.layers.Dense(
                UNITS,
                activation="tanh",
                kernel_initializer=keras.initializers.RandomNormal(stddev=stddev),
            )
        )
        for _ in range(DEPTH)
    ]


def spread(layers, batch, adapt):
    """The standard deviation of each layer's outputs."""
    x, found = batch, []
    for layer in layers:
        if adapt:
            layer.adapt(x)
        x = layer(x)
        found.append(float(np.std(x)))
    return found


def main():
    keras.utils.set_random_seed(42)
    batch = np.random.default_rng(42).normal(0, 3, (256, UNITS)).astype("float32")
    results = {}
    print("standard deviation of the outputs      layer 1       layer 10")
    for stddev in (0.02, 0.1, 0.5):
        for adapt in (False, True):
            found = spread(stack(stddev), batch, adapt)
            label = f"N(0, {stddev}^2), {'adapted' if adapt else 'as drawn'}"
            results[stddev, adapt] = found
            print(f"{label:<34} {found[0]:>11.3g} {found[-1]:>14.3g}")
    return results


if __name__ == "__main__":
    main()
