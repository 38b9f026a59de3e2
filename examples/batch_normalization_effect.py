"""Twenty sigmoid layers with and without batch normalization.

    python examples/batch_normalization_effect.py --output effect.png

The same net of 20 layers of 100 sigmoid units learns the digits with plain gradient
descent: with Glorot's initialization, with weights from N(0, 1), and with Glorot's
initialization and `BatchNormalization` before each sigmoid (Ioffe and Szegedy, 2015,
https://arxiv.org/abs/1502.03167).
"""

from __future__ import annotations

import argparse
import importlib.resources
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

import tfdeep

SEED, UNITS, DEPTH, RATE, BATCH = 42, 100, 20, 0.01, 50
# Label: initialization, batch normalization.
NETS = {
    "Glorot": ("glorot_uniform", False),
    "N(0, 1)": ("N(0, 1)", False),
    "Glorot, BN": ("glorot_uniform", True),
}


def digits():
    """Training and test data: 1197 and 300 images, with their labels."""
    file = importlib.resources.files("tfdeep") / "_demo" / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        images = arrays["images"].reshape(-1, 64).astype("float32") / 16
        order = np.random.RandomState(SEED).permutation(len(images))
        train, test = order[:1197], order[1497:]
        labels = arrays["labels"]
        return (images[train], labels[train]), (images[test], labels[test])


def gradient_ratio(model, loss, x, y):
    """The gradient norm of the first hidden kernel over that of the last."""
    kernels = [w for w in model.trainable_variables if w.name == "kernel"]
    first, last = kernels[0], kernels[-2]
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=True))
    gradients = tape.gradient(value, [first.value, last.value])
    norms = [np.linalg.norm(g.numpy().astype("float64")) for g in gradients]
    return norms[0] / norms[1]


def train(initializer, batch_norm, epochs):
    """Loss by epoch, gradient ratio before training, and test accuracy."""
    keras.utils.set_random_seed(SEED)
    if initializer == "N(0, 1)":
        initializer = keras.initializers.RandomNormal(stddev=1.0)
    (x, y), test = digits()
    model = tfdeep.models.dnn(
        (64,), [UNITS] * DEPTH, 10, "sigmoid", initializer, batch_norm
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss, metrics=["accuracy"])
    ratio = gradient_ratio(model, loss, x, y)
    losses = model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    accuracy = float(model.evaluate(*test, verbose=0)[1])
    return np.array(losses.history["loss"]), ratio, accuracy


def draw(runs, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (label, (losses, ratio, accuracy)), marker in zip(
        runs.items(), "o^s", strict=True
    ):
        text = f"{label}: gradient ratio {ratio:.2g}, test accuracy {accuracy:.3f}"
        axes.plot(np.arange(1, len(losses) + 1), losses, marker=marker, label=text)
    axes.axhline(np.log(10), color="grey", linestyle=":", label="guessing, ln 10")
    axes.set(
        xlabel="epoch",
        ylabel="training loss",
        ylim=(0, None),
        title="20 layers of 100 sigmoid units on the digits",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", fontsize=9)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    print("| net | gradient ratio before training | loss, first epoch | ", end="")
    print(f"loss, epoch {options.epochs} | test accuracy |")
    print("|---|---|---|---|---|")
    runs = {}
    for label, (initializer, batch_norm) in NETS.items():
        runs[label] = train(initializer, batch_norm, options.epochs)
        losses, ratio, accuracy = runs[label]
        print(f"| {label} | {ratio:.2g} | {losses[0]:.3f} ", end="")
        print(f"| {losses[-1]:.3f} | {accuracy:.3f} |")
    if options.output:
        draw(runs, options.output)
        print(f"figure in {options.output}")
    return runs


if __name__ == "__main__":
    main()
