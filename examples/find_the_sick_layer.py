"""A deep net that does not train, what the monitor says of it, and the net mended.

    python examples/find_the_sick_layer.py
    python examples/find_the_sick_layer.py --output sick.png

Thirty layers of sigmoid units on the digits: the loss stays at that of guessing. The
monitor names the layers that get no gradient and says what helps; with either of the
first two remedies it names, the net trains.
"""

from __future__ import annotations

import argparse
import importlib.resources

import keras
import numpy as np

import tfdeep

DEPTH, UNITS = 30, 100


def digits():
    """The 8 x 8 images that come with tfdeep, in [0, 1], and their labels."""
    path = importlib.resources.files("tfdeep._demo") / "digits.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return images.reshape(-1, 64).astype("float32") / 16, labels.astype("int64")


def train(activation, normalization, epochs=4):
    """Trains a net with the monitor; returns the monitor and the loss by epoch."""
    keras.utils.set_random_seed(42)
    model = keras.Sequential([keras.Input((64,))])
    for i in range(1, DEPTH + 1):
        initializer = "he_normal" if activation == "relu" else "glorot_uniform"
        model.add(
            keras.layers.Dense(UNITS, name=f"hidden{i}", kernel_initializer=initializer)
        )
        if normalization:
            model.add(keras.layers.BatchNormalization(name=f"norm{i}"))
        model.add(keras.layers.Activation(activation, name=f"{activation}{i}"))
    model.add(keras.layers.Dense(10, name="outputs"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    monitor = tfdeep.callbacks.GradientMonitor(activations=True, on_finding=None)
    history = model.fit(*digits(), epochs=epochs, verbose=0, callbacks=[monitor])
    return monitor, history.history["loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure of the sick net")
    options = parser.parse_args()
    sick, losses = train("sigmoid", normalization=False)
    print(f"loss by epoch: {', '.join(f'{loss:.3f}' for loss in losses)}\n")
    print(str(sick.report()).split("Gradients over")[0])
    if options.output:
        sick.plot().savefig(options.output, dpi=80)
    for words, activation, normalization in (
        ("with batch normalization before each sigmoid", "sigmoid", True),
        ("with ReLU and He initialization", "relu", False),
    ):
        mended, losses = train(activation, normalization)
        print(words)
        print(f"loss by epoch: {', '.join(f'{loss:.3f}' for loss in losses)}")
        print(f"findings: {len(mended.findings)}\n")


if __name__ == "__main__":
    main()
