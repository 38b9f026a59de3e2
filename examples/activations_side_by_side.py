"""How deep a net may be before it stops training, by its activation.

    python examples/activations_side_by_side.py --output activations_side_by_side.png

Nets of 100 units a layer learn the digits for ten epochs with Adam, from the start that
Keras gives (Glorot) and from `tfdeep.initializers.VarianceScaling(activation,
mode="fan_in")`. A net that gets fewer than half of the test images right has stopped
training; deeper ones are not tried then.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

import tfdeep

SEED, UNITS, BATCH, RATE = 42, 100, 50, 1e-3
ACTIVATIONS = ("sigmoid", "tanh", "relu", "elu", "selu", "gelu")
STARTS = ("Glorot", "VarianceScaling")
DEPTHS = (5, 10, 20, 30, 50)
STOPPED = 0.5  # test accuracy


def digits():
    """Training and test data: 1197 and 300 images, with their labels."""
    file = importlib.resources.files("tfdeep") / "_demo" / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        images = arrays["images"].reshape(-1, 64).astype("float32") / 16
        order = np.random.RandomState(SEED).permutation(len(images))
        train, test = order[:1197], order[1497:]
        labels = arrays["labels"]
        return (images[train], labels[train]), (images[test], labels[test])


def accuracy(activation, start, depth, epochs):
    """Of a net after training, on the test data."""
    keras.utils.set_random_seed(SEED)
    initializer = "glorot_uniform"
    if start == "VarianceScaling":
        initializer = tfdeep.initializers.VarianceScaling(
            activation, mode="fan_in", seed=SEED
        )
    (x, y), test = digits()
    model = tfdeep.models.dnn((64,), [UNITS] * depth, 10, activation, initializer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA would take longer to compile a net than the net to train.
    model.compile(
        keras.optimizers.Adam(RATE), loss, metrics=["accuracy"], jit_compile=False
    )
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return float(model.evaluate(*test, verbose=0)[1])


def until_it_stops(activation, start, depths, epochs):
    """Accuracy by depth, up to the first depth at which the net does not train."""
    found = {}
    for depth in depths:
        found[depth] = accuracy(activation, start, depth, epochs)
        if found[depth] < STOPPED:
            break
    return found


def stops_at(found):
    """The depth at which it stopped training; None if it did not."""
    depth = max(found)
    return depth if found[depth] < STOPPED else None


def draw(results, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(STARTS), figsize=(9, 4), sharey=True, squeeze=False, layout="constrained"
    )
    titles = {"Glorot": "Glorot (Keras' default)"}
    for axes, start in zip(panels[0], STARTS, strict=True):
        for activation, marker in zip(ACTIVATIONS, "o^sDv*", strict=False):
            found = results[activation, start]
            axes.plot(
                list(found), list(found.values()), marker=marker, label=activation
            )
        axes.axhline(STOPPED, color="grey", linestyle=":", label="stops training")
        axes.set(xlabel="hidden layers", title=titles.get(start, start), ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0, 0].set(ylabel="test accuracy")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(output, dpi=90)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)
    depths = sorted(options.depths)
    print("| activation | start |", *(f"{d} |" for d in depths), "stops at |")
    print("|---|---|" + "---|" * (len(depths) + 1))
    results = {}
    for activation in ACTIVATIONS:
        for start in STARTS:
            found = until_it_stops(activation, start, depths, options.epochs)
            results[activation, start] = found
            cells = [f"{found[d]:.3f}" if d in found else "" for d in depths]
            cells.append(str(stops_at(found) or f"over {depths[-1]}"))
            print(f"| {activation} | {start} |", " | ".join(cells), "|", flush=True)
    if options.output:
        draw(results, options.output)
        print(f"figure in {options.output}")
    return results


if __name__ == "__main__":
    main()
