"""How a signal and its gradient come through a deep net, by its initialization.

    python examples/initialize_deep_nets.py --output initialize_deep_nets.png

Nets of 100 units a layer see the training digits once, before any training. Printed
are the variance before the activation in the last hidden layer, the share of it that
differs between examples (the signal), and the norm of the gradient at the units of the
first hidden layer over that at those of the last.
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

import tfdeep.initializers

SEED, DEPTHS = 42, (20, 50)
Scaled = tfdeep.initializers.VarianceScaling


def table(activation, seed):
    return Scaled(activation, convention="table", seed=seed)


def second_moment(activation, seed):
    return Scaled(activation, mode="fan_in", seed=seed)


def glorot(activation, seed):
    return tfdeep.initializers.XavierNormal(seed)


def unit_normal(activation, seed):
    generator = keras.random.SeedGenerator(seed)
    return keras.initializers.RandomNormal(stddev=1.0, seed=generator)


def orthogonal(activation, seed):
    return tfdeep.initializers.Orthogonal(tfdeep.initializers.gain(activation), seed)


STARTS = {
    "N(0, 1)": unit_normal,
    "Glorot": glorot,
    "table": table,
    "second moment": second_moment,
    "orthogonal": orthogonal,
    "LSUV": glorot,  # and scaled on the digits
}
ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu")


def training_digits():
    digits = importlib.resources.files("tfdeep") / "_demo" / "digits.npz"
    with digits.open("rb") as file, np.load(file) as arrays:
        order = np.random.RandomState(SEED).permutation(len(arrays["images"]))[:1197]
        images = arrays["images"][order].reshape(-1, 64).astype("float32") / 16
    return (images - images.mean(0)) / (images.std(0) + 1e-3)


def propagate(activation, start, depth, seed=SEED):
    """By layer: variance before the activation, its signal share, gradient norm."""
    images = training_digits()
    if activation == "gelu" and start == "table":
        return None  # the table has no row for it
    model = tfdeep.models.dnn(
        (64,), [100] * depth, 10, "linear", STARTS[start](activation, seed)
    )
    hidden = model.layers[1:-1]
    for layer in hidden:
        layer.activation = keras.activations.get(activation)
    if start == "LSUV":
        tfdeep.initializers.lsuv(model, images, seed=seed)
    x, units = tf.constant(images), []
    with tf.GradientTape() as tape:
        tape.watch(x)
        for layer in hidden:
            units.append(x @ layer.kernel.value + layer.bias.value)
            x = layer.activation(units[-1])
        direction = np.random.default_rng(seed).normal(size=x.shape)
        loss = tf.reduce_sum(x * tf.constant(direction, x.dtype))
    gradients = tape.gradient(loss, units)
    units = [np.asarray(z, "float64") for z in units]
    with np.errstate(all="ignore"):
        variance = np.array([z.var() for z in units])
        signal = np.array([z.var(axis=0).mean() for z in units]) / variance
        norms = np.array([np.linalg.norm(np.asarray(g, "float64")) for g in gradients])
    return variance, signal, norms


def draw(found, depths, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 4.5 * len(depths)), layout="constrained")
    parts = figure.subfigures(len(depths), squeeze=False)[:, 0]
    for part, depth in zip(parts, depths, strict=True):
        part.suptitle(f"{depth} layers", fontweight="bold")
        panels = part.subplots(2, len(ACTIVATIONS), sharex=True, sharey=True)
        for column, activation in zip(panels.T, ACTIVATIONS, strict=True):
            column[0].set(title=activation)
            column[1].set(xlabel="hidden layer")
            for color, start in enumerate(STARTS):
                result = found.get((activation, start, depth))
                if result is None:
                    continue
                variance, signal, norms = result
                steps = np.arange(1, depth + 1)
                line = {"color": f"C{color}", "label": start}
                # Broken, for the lines beneath them to be seen.
                line["linestyle"] = {"orthogonal": "--", "LSUV": ":"}.get(start, "-")
                with np.errstate(all="ignore"):
                    column[0].semilogy(steps, variance * signal, **line)
                    column[1].semilogy(steps, norms / norms[-1], **line)
            for axes in column:
                axes.set_ylim(1e-8, 1e8)
                axes.grid(alpha=0.3)
        panels[0, 0].set(ylabel="variance\nbetween examples")
        panels[1, 0].set(ylabel="gradient norm\nover the last")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    figure.savefig(output, dpi=68)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    options = parser.parse_args(arguments)
    found = {}
    print("| activation | start | layers | variance | signal | gradient ratio |")
    print("|---|---|---|---|---|---|")
    for activation in ACTIVATIONS:
        for start in STARTS:
            for depth in options.depths:
                result = propagate(activation, start, depth)
                if result is None:
                    continue
                found[activation, start, depth] = result
                variance, signal, norms = (values[[0, -1]] for values in result)
                if np.isfinite([variance, norms]).all():
                    cells = f"{variance[1]:.2g} | {signal[1]:.0%} "
                    cells += f"| {norms[0] / norms[1]:.2g}"
                else:
                    cells = "overflow | | "
                print(f"| {activation} | {start} | {depth} | {cells} |")
    if options.output:
        draw(found, options.depths, options.output)
        print(f"figure in {options.output}")
    return found


if __name__ == "__main__":
    main()
