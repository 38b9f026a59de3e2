"""How much gradient reaches the first layer: ratios by activation and depth.

    python examples/gradient_ratio.py --output gradient_ratio.png

Nets of 100 units a layer see the training digits once, before any training. The norm
of the gradient of the first hidden kernel, divided by that of the last hidden kernel:
far below 1, the lower layers stand still while the upper ones learn. The ratio does not
tell how long the gradients are, so the norm of the last one is printed as well.
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

SEED, DEPTHS = 42, (2, 5, 10, 20, 40)
# Label: activation, initialization, batch normalization.
NETS = {
    "sigmoid, Glorot": ("sigmoid", "glorot_uniform", False),
    "sigmoid, N(0, 1)": ("sigmoid", "N(0, 1)", False),
    "sigmoid, Glorot, BN": ("sigmoid", "glorot_uniform", True),
    "tanh, Glorot": ("tanh", "glorot_uniform", False),
    "relu, Glorot": ("relu", "glorot_uniform", False),
    "relu, He": ("relu", "he_normal", False),
    "relu, N(0, 1)": ("relu", "N(0, 1)", False),
}


def training_digits():
    digits = importlib.resources.files("tfdeep") / "_demo" / "digits.npz"
    with digits.open("rb") as file, np.load(file) as arrays:
        order = np.random.RandomState(SEED).permutation(len(arrays["images"]))[:1197]
        images = arrays["images"][order].reshape(-1, 64).astype("float32") / 16
        return images, arrays["labels"][order]


def gradient_norms(activation, initializer, batch_norm, depth, seed=SEED):
    """The norms of the gradients of the hidden kernels, from the first to the last."""
    keras.utils.set_random_seed(seed)
    if initializer == "N(0, 1)":
        initializer = keras.initializers.RandomNormal(stddev=1.0)
    model = tfdeep.models.dnn(
        (64,), [100] * depth, 10, activation, initializer, batch_norm
    )
    images, labels = training_digits()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with tf.GradientTape() as tape:
        value = loss(labels, model(images, training=True))
    kernels = [w for w in model.trainable_variables if w.name == "kernel"][:-1]
    gradients = tape.gradient(value, [kernel.value for kernel in kernels])
    # In double precision: the squares of the smallest are below float32.
    return np.array([np.linalg.norm(g.numpy().astype("float64")) for g in gradients])


def draw(ratios, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for (label, by_depth), marker in zip(ratios.items(), "o^sDvPX", strict=True):
        depths, values = list(by_depth), list(by_depth.values())
        for axes in panels:
            axes.loglog(depths, values, marker=marker, label=label)
    for axes in panels:
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_xticks(depths, depths)
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.grid(alpha=0.3)
        axes.set(xlabel="hidden layers")
    panels[0].set(
        title="Gradient ratios before training",
        ylabel="gradient norm of the first layer\nover that of the last",
    )
    panels[1].set(title="the same, close to 1", ylim=(0.02, 5))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    print("| hidden layers |", " | ".join(map(str, options.depths)), end="")
    print(f" | norm of the last of {options.depths[-1]} |")
    print("|---" * (len(options.depths) + 2) + "|")
    ratios = {}
    for label, net in NETS.items():
        norms = {d: gradient_norms(*net, d, options.seed) for d in options.depths}
        ratios[label] = {depth: n[0] / n[-1] for depth, n in norms.items()}
        row = " | ".join(f"{ratio:.2g}" for ratio in ratios[label].values())
        print(f"| {label} | {row} | {norms[options.depths[-1]][-1]:.2g} |")
    if options.output:
        draw(ratios, options.output)
        print(f"figure in {options.output}")
    return ratios


if __name__ == "__main__":
    main()
