"""Batches of two: normalizations that need a batch, and that do not.

    python examples/batch_size_two.py --output batch_size_two.png

A dense and a convolutional net learn the digits with Adam, in batches of 2 and of 32,
with `BatchNormalization`, `GroupNormalization` (eight groups) or
`tfdeep.layers.WeightNormalization`, whose layers start from 128 images (`adapt`). The
mean of two numbers leaves no more than a sign of each: that is all that batch
normalization tells a dense layer. A convolution has more places than two, but here, as
is usual, fewer and fewer on the way up.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers

import tfdeep

SEED, LAYERS, RATE = 42, 4, 1e-3
NETS = ("dense", "convolutional")
BATCH_SIZES = (2, 32)
NORMALIZATIONS = ("BatchNorm", "GroupNorm", "WeightNorm")


def digits():
    """Training and test data: 1196 and 300 images, with their labels."""
    file = importlib.resources.files("tfdeep") / "_demo" / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        images = arrays["images"].reshape(-1, 8, 8, 1).astype("float32") / 16
        order = np.random.RandomState(SEED).permutation(len(images))
        train, test = order[:1196], order[1497:]  # no batch of one is left over
        labels = arrays["labels"]
        return (images[train], labels[train]), (images[test], labels[test])


def build(net, normalization):
    """Four hidden layers, each normalized before its ReLU."""
    model = keras.Sequential([keras.Input((8, 8, 1))])
    if net == "dense":
        model.add(layers.Flatten())
    for i in range(LAYERS):
        bias = normalization == "WeightNorm"  # the others subtract it, or add one
        options = {"use_bias": bias, "kernel_initializer": "he_normal"}
        if net == "dense":
            layer = layers.Dense(64, **options)
        else:
            strides = 2 if i else 1
            layer = layers.Conv2D(32, 3, strides, padding="same", **options)
        if normalization == "WeightNorm":
            model.add(tfdeep.layers.WeightNormalization(layer))
        else:
            model.add(layer)
            model.add(
                layers.BatchNormalization()
                if normalization == "BatchNorm"
                else layers.GroupNormalization(8)
            )
        model.add(layers.Activation("relu"))
    if net == "convolutional":
        model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    return model


def adapt(model, batch):
    """The start from data, layer by layer."""
    for layer in model.layers:
        if isinstance(layer, tfdeep.layers.WeightNormalization):
            layer.adapt(batch)
        batch = layer(batch)


def train(net, batch_size, normalization, epochs):
    """Training loss and test accuracy, by epoch."""
    keras.utils.set_random_seed(SEED)
    (x, y), test = digits()
    model = build(net, normalization)
    adapt(model, x[:128])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA would take longer to compile a net than the net to train.
    model.compile(
        keras.optimizers.Adam(RATE), loss, metrics=["accuracy"], jit_compile=False
    )
    history = model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=test,
        validation_batch_size=300,
        verbose=0,
    ).history
    return np.array(history["loss"]), np.array(history["val_accuracy"])


def draw(results, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    nets = list(dict.fromkeys(net for net, _, _ in results))
    figure, panels = plt.subplots(
        1, len(nets), figsize=(9, 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, net in zip(panels[0], nets, strict=True):
        for (shown, batch_size, normalization), (_, accuracy) in results.items():
            if shown != net:
                continue
            kind = NORMALIZATIONS.index(normalization)
            axes.plot(
                np.arange(1, len(accuracy) + 1),
                accuracy,
                color=f"C{kind}",
                marker="os^"[kind],
                linestyle="-" if batch_size == min(BATCH_SIZES) else ":",
                label=f"{normalization}, batches of {batch_size}",
            )
        axes.set(xlabel="epoch", title=f"{net} net", ylim=(0, 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0, 0].set(ylabel="test accuracy")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.savefig(output, dpi=90)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    options = parser.parse_args(arguments)
    print("| net | batch size | normalization | loss, first epoch ", end="")
    print(f"| loss, epoch {options.epochs} | test accuracy |")
    print("|---|---|---|---|---|---|")
    results = {}
    for net in options.nets:
        for batch_size in options.batch_sizes:
            for normalization in NORMALIZATIONS:
                found = train(net, batch_size, normalization, options.epochs)
                results[net, batch_size, normalization] = found
                loss, accuracy = found
                print(f"| {net} | {batch_size} | {normalization} ", end="")
                print(f"| {loss[0]:.3f} | {loss[-1]:.3f} ", end="")
                print(f"| {accuracy[-1]:.3f} |", flush=True)
    if options.output:
        draw(results, options.output)
        print(f"figure in {options.output}")
    return results


if __name__ == "__main__":
    main()
