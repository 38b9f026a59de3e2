"""Gradient descent at a cliff, with and without clipping.

    python examples/cliff.py --output cliff.png

A recurrent network of one unit, x_t = w * sigmoid(x_(t-1)) + b, is to end with
sigmoid(x_50) = 0.7. Where a fixed point of the recursion appears or vanishes, the loss
has a cliff in the plane of w and b; the gradient at its edge throws descent far away
(Pascanu et al., 2013, https://arxiv.org/abs/1211.5063, figure 6). `ClipByGlobalNorm`
keeps the direction of the step and bounds its length.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

import tfdeep

START = (4.5, -2.5)  # w and b, on the plateau above the cliff
RATE, CLIP_NORM, STEPS = 0.2, 1.0, 40


def loss_of(w, b):
    x = tf.zeros_like(w) + 0.5
    for _ in range(50):
        x = w * tf.sigmoid(x) + b
    return (tf.sigmoid(x) - 0.7) ** 2


def descend(clip):
    """The places (w, b) that gradient descent visits, and the losses there."""
    w, b = keras.Variable(START[0], name="w"), keras.Variable(START[1], name="b")
    optimizer = keras.optimizers.SGD(RATE)
    if clip:
        optimizer = tfdeep.optimizers.ClipByGlobalNorm(optimizer, CLIP_NORM)
    optimizer.build([w, b])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_of(w.value, b.value)
        optimizer.apply(tape.gradient(loss, [w.value, b.value]), [w, b])
        return loss

    places, losses = [], []
    for _ in range(STEPS):
        places.append((float(w.numpy()), float(b.numpy())))
        losses.append(float(step()))
    return np.array(places), np.array(losses)


def longest_step(places):
    return float(np.max(np.linalg.norm(np.diff(places, axis=0), axis=1)))


def draw(paths, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    windows = {"the whole way": (3, 10, -3.5, 6), "at the edge": (4.1, 4.9, -2.7, -1.9)}
    for axes, (title, (left, right, low, high)) in zip(
        panels, windows.items(), strict=True
    ):
        w, b = np.meshgrid(np.linspace(left, right, 301), np.linspace(low, high, 301))
        loss = loss_of(tf.constant(w, tf.float32), tf.constant(b, tf.float32)).numpy()
        mesh = axes.pcolormesh(w, b, loss, cmap="Greys", vmin=0, vmax=0.4)
        for (label, places), color in zip(
            paths.items(), ("tab:red", "tab:blue"), strict=True
        ):
            text = f"{label}: longest step {longest_step(places):.2g}"
            axes.plot(*places.T, "o-", color=color, markersize=3, label=text)
        axes.plot(*START, "k*", markersize=12, label="start")
        axes.set(xlabel="w", ylabel="b", xlim=(left, right), ylim=(low, high))
        axes.set_title(f"Gradient descent at a cliff: {title}")
    panels[0].legend(loc="upper left")
    figure.colorbar(mesh, ax=panels, label="loss")
    figure.savefig(output, dpi=120)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    output = parser.parse_args(arguments).output
    unclipped, unclipped_losses = descend(clip=False)
    clipped, clipped_losses = descend(clip=True)
    ratio = longest_step(unclipped) / longest_step(clipped)
    print(f"longest step unclipped {longest_step(unclipped):.3f}, ", end="")
    print(f"clipped {longest_step(clipped):.3f}: {ratio:.1f} times as far")
    print("smallest loss of the last ten steps:", end="")
    print(f" unclipped {unclipped_losses[-10:].min():.4f}", end="")
    print(f", clipped {clipped_losses[-10:].min():.4f}")
    if output:
        draw({"unclipped": unclipped, "clipped": clipped}, output)
        print(f"figure in {output}")
    return ratio, unclipped_losses, clipped_losses


if __name__ == "__main__":
    main()
