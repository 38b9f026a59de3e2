"""Units that stopped passing a gradient: saturated sigmoids and dead ReLUs.

    python examples/saturated_and_dead.py --output saturated_and_dead.png

A sigmoid is saturated where its slope is below 0.01. A ReLU is dead if it gives 0 for
every training example: its weights get no gradient any more. The dead ones are counted
in nets of three layers of 100 units, after five epochs on the digits with plain
gradient descent at growing learning rates; units that give NaN are counted apart.
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

SEED, UNITS, DEPTH, EPOCHS = 42, 100, 10, 5
SCALES = {"N(0, 1)": 1.0, "Glorot": np.sqrt(2 / (UNITS + UNITS))}
RATES = (0.01, 0.1, 1.0, 2.0)


def saturated_fractions(scale):
    """The fraction of saturated sigmoids by layer, for standard normal inputs."""
    rng = np.random.RandomState(SEED)
    a, fractions = rng.normal(size=(500, UNITS)), []
    for _ in range(DEPTH):
        a = 1 / (1 + np.exp(-a @ (scale * rng.normal(size=(UNITS, UNITS)))))
        fractions.append(np.mean(a * (1 - a) < 0.01))
    return np.array(fractions)


def digits():
    """Training and test data: 1197 and 300 images, with their labels."""
    file = importlib.resources.files("tfdeep") / "_demo" / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        images = arrays["images"].reshape(-1, 64).astype("float32") / 16
        order = np.random.RandomState(SEED).permutation(len(images))
        train, test = order[:1197], order[1497:]
        labels = arrays["labels"]
        return (images[train], labels[train]), (images[test], labels[test])


def dead_fractions(rate, seed=SEED):
    """Fractions of dead and of NaN ReLUs by layer, and the accuracy, after training."""
    keras.utils.set_random_seed(seed)
    (x, y), test = digits()
    model = tfdeep.models.dnn((64,), [UNITS] * 3, 10, "relu", "he_normal")
    model.compile(
        keras.optimizers.SGD(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=50, epochs=EPOCHS, verbose=0)
    hidden = keras.Model(model.input, [layer.output for layer in model.layers[1:-1]])
    outputs = [np.asarray(a) for a in hidden(x)]
    dead = [float(np.all(a == 0, axis=0).mean()) for a in outputs]
    lost = [float(np.any(np.isnan(a), axis=0).mean()) for a in outputs]
    return dead, lost, float(model.evaluate(*test, verbose=0)[1])


def draw(saturated, dead, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.8), sharey=True, layout="constrained"
    )
    layer = np.arange(1, DEPTH + 1)
    for (name, fractions), marker in zip(saturated.items(), "o^", strict=True):
        left.plot(layer, fractions, marker=marker, label=name)
    left.set(
        title="saturated sigmoids, before training",
        xlabel="layer",
        ylabel="fraction of the units",
        xticks=layer,
        ylim=(-0.03, 1.05),
    )
    left.legend(loc="upper right")
    place = np.arange(len(dead))
    for i in range(3):
        heights = [fractions[i] for fractions, _, _ in dead.values()]
        right.bar(place + 0.27 * (i - 1), heights, 0.25, label=f"layer {i + 1}")
    for at, (_, lost, _) in zip(place, dead.values(), strict=True):
        if np.mean(lost) > 0:
            right.text(
                at, 0.03, f"NaN:\n{np.mean(lost):.0%} of\nthe units", ha="center"
            )
    right.set_xticks(place, [f"{rate:g}" for rate in dead])
    right.set(title="dead ReLUs, after five epochs", xlabel="learning rate")
    right.legend(loc="upper left")
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--seed", type=int, default=SEED, help="of the training")
    options = parser.parse_args(arguments)
    saturated = {name: saturated_fractions(scale) for name, scale in SCALES.items()}
    print(
        "| saturated sigmoids, layer |", " | ".join(map(str, range(1, DEPTH + 1))), "|"
    )
    print("|---" * (DEPTH + 1) + "|")
    for name, fractions in saturated.items():
        print(f"| {name} |", " | ".join(f"{f:.3f}" for f in fractions), "|")
    print()
    print("| learning rate | dead ReLUs, layers 1 / 2 / 3 | mean | NaN ", end="")
    print("| test accuracy |")
    print("|---|---|---|---|---|")
    dead = {}
    for rate in RATES:
        fractions, lost, accuracy = dead[rate] = dead_fractions(rate, options.seed)
        shown = " / ".join(f"{f:.2f}" for f in fractions)
        print(f"| {rate:g} | {shown} | {np.mean(fractions):.2f} ", end="")
        print(f"| {np.mean(lost):.2f} | {accuracy:.3f} |")
    if options.output:
        draw(saturated, dead, options.output)
        print(f"figure in {options.output}")
    return saturated, dead


if __name__ == "__main__":
    main()
