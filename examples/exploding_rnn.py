"""A recurrent network on long sequences, with and without clipping.

    python examples/exploding_rnn.py --output exploding_rnn.png

The network reads 100 numbers and is to give back the first one. Its gradient is a
product of 100 Jacobians, now and then a huge one: without clipping the first epoch
ends in NaN, with `ClipByGlobalNorm` the same network learns at the same learning rate.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers

import tfdeep

LENGTH, RATE, CLIP_NORM = 100, 0.01, 1.0


def examples(count=2048, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, LENGTH, 1)).astype("float32")
    x[:, 1:] *= 0.1  # all but the first number are noise
    return x, x[:, 0]


class LossByStep(keras.callbacks.Callback):
    """Keeps the loss of each batch."""

    def on_train_begin(self, logs=None):
        self.losses, self._before = [], (0, 0.0)

    def on_train_batch_end(self, batch, logs=None):
        # Keras reports the mean over the epoch so far.
        steps, total = self._before if batch else (0, 0.0)
        now = logs["loss"] * (steps + 1)
        self.losses.append(now - total)
        self._before = (steps + 1, now)


def train(clip, epochs):
    """The loss of each step, and the monitor that looked on."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((LENGTH, 1)),
            layers.SimpleRNN(
                32, activation="relu", recurrent_initializer="identity", name="hidden1"
            ),
            layers.Dense(1, name="outputs"),
        ]
    )
    optimizer = keras.optimizers.SGD(RATE)
    if clip:
        optimizer = tfdeep.optimizers.ClipByGlobalNorm(optimizer, CLIP_NORM)
    model.compile(optimizer, "mse")
    losses, monitor = LossByStep(), tfdeep.callbacks.GradientMonitor(rules=None)
    model.fit(
        *examples(),
        batch_size=64,
        epochs=epochs,
        verbose=0,
        callbacks=[losses, monitor],
    )
    return np.array(losses.losses), monitor


def draw(runs, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, layout="constrained"
    )
    for (label, (losses, monitor)), color in zip(
        runs.items(), ("tab:red", "tab:blue"), strict=True
    ):
        norm = _recurrent(monitor)
        above.semilogy(losses, color=color, label=label)
        below.semilogy(np.where(np.isfinite(norm), norm, np.nan), color=color)
        if not np.isfinite(losses).all():
            end = int(np.argmin(np.isfinite(losses)))
            above.axvline(end, color=color, linestyle=":", label=f"{label}: NaN")
    above.set(ylabel="loss", ylim=(0.02, 20), title="A SimpleRNN on sequences of 100")
    above.legend()
    below.set(
        ylim=(1, 1e6), xlabel="step", ylabel="gradient norm of\nthe recurrent kernel"
    )
    figure.savefig(output, dpi=120)
    plt.close(figure)


def _recurrent(monitor):
    [key] = [key for key in monitor.history if key.endswith("recurrent_kernel")]
    return monitor.history[key]["norm"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the figure")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args(arguments)
    runs = {
        "unclipped": train(clip=False, epochs=options.epochs),
        "clipped": train(clip=True, epochs=options.epochs),
    }
    for label, (losses, monitor) in runs.items():
        norm = _recurrent(monitor)
        finite = norm[np.isfinite(norm)]
        print(f"{label}: loss {losses[0]:.3f} at the first step, ", end="")
        print(f"{losses[-10:].mean():.3f} over the last ten; ", end="")
        print(f"largest gradient norm of the recurrent kernel {finite.max():.3g}")
    print(*runs["clipped"][1].telemetry)
    if options.output:
        draw(runs, options.output)
        print(f"figure in {options.output}")
    return runs["unclipped"][0], runs["clipped"][0]


if __name__ == "__main__":
    main()
