"""Restore, freeze, cache and fine-tune under watch, beside three other ways."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import tfdeep
from tfdeep._core._records import Record, render_table
from tfdeep._demo._data import Task, load_tasks

HIDDEN_UNITS = [100] * 5
BATCH_SIZE = 20
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RANDOM, RESTORED, FROZEN, CACHED = (
    "random weights",
    "restored, all trained",
    "restored, frozen",
    "restored, frozen, cached",
)


@dataclasses.dataclass(frozen=True)
class DemoResult(Record):
    """What the demo measured.

    Attributes:
        source_accuracy: Test accuracy on the source task.
        accuracies: By way of training, the test accuracy of each seed.
        seconds_per_epoch: By way of training, the median time of an epoch.
        largest_difference: Between the weights trained with and without the cache,
            the largest absolute difference over all seeds.
        digest: SHA-256 of all trained weights; equal digests mean equal runs.
    """

    source_accuracy: float
    accuracies: dict[str, list[float]]
    seconds_per_epoch: dict[str, float]
    largest_difference: float
    digest: str


def run_demo(
    dataset: str,
    seed: int,
    num_seeds: int,
    epochs: int,
    output: pathlib.Path,
    say: Callable[[object], None],
) -> DemoResult:
    """Runs the demo.

    Args:
        dataset: One of `tfdeep._demo._data.DATASETS`.
        seed: The first seed.
        num_seeds: How many seeds to average over.
        epochs: Epochs of each training.
        output: Directory for the source model, the logs and the figure.
        say: Called with each thing to show.
    """
    output.mkdir(parents=True, exist_ok=True)
    source, target = load_tasks(dataset)
    with Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
        TimeRemainingColumn(),
        transient=True,
    ) as progress:
        bar = progress.add_task("source task", total=epochs * (1 + 4 * num_seeds))

        def started(what: str) -> list[keras.callbacks.Callback]:
            progress.update(bar, description=what)
            return [_Advance(progress, bar)]

        say(f"1. Train the source task: {dataset} {source.classes}")
        keras.utils.set_random_seed(seed)
        model = train_source(source, epochs, started("source task"))
        source_accuracy = model.evaluate(
            source.x_test, source.y_test, verbose=0, return_dict=True
        )["accuracy"]
        weights = output / f"{dataset}_0to4.weights.h5"
        model.save_weights(weights)
        say(f"   test accuracy {source_accuracy:.3f}; saved to {weights}\n")

        runs = [
            _Runs(
                target,
                weights,
                seed + i,
                epochs,
                output,
                started,
                say if i == 0 else _silent,
            )
            for i in range(num_seeds)
        ]
    result = DemoResult(
        source_accuracy=source_accuracy,
        accuracies={way: [r.accuracy[way] for r in runs] for way in runs[0].accuracy},
        seconds_per_epoch={
            way: statistics.median(r.seconds[way] for r in runs)
            for way in runs[0].seconds
        },
        largest_difference=max(r.difference for r in runs),
        digest=hashlib.sha256(b"".join(r.digest for r in runs)).hexdigest(),
    )
    _say_results(result, target, epochs, runs[0], output, say)
    return result


def train_source(
    task: Task, epochs: int, callbacks: list[keras.callbacks.Callback] | None = None
) -> keras.Model:
    """Trains the network whose layers are reused."""
    model = _build(task)
    model.compile(keras.optimizers.Adam(1e-3), LOSS, metrics=["accuracy"])
    model.fit(
        _batches(task), epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    )
    return model


class _Runs:
    """The four ways to train the target task, from one seed."""

    def __init__(
        self,
        task: Task,
        weights: pathlib.Path,
        seed: int,
        epochs: int,
        output: pathlib.Path,
        started: Callable[[str], list[keras.callbacks.Callback]],
        say: Callable[[object], None],
    ) -> None:
        self.accuracy: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self._task, self._epochs, self._started = task, epochs, started
        self._seed = seed
        data = _batches(task)

        model = self._model()
        self._fit(RANDOM, model, model, data)

        model = self._model()
        say(f"2. Restore hidden[123] for the target task: {task.classes}\n")
        say(tfdeep.restore(model, weights, include="hidden[123]"))
        self._fit(RESTORED, model, model, data)

        model = self._model()
        tfdeep.restore(model, weights, include="hidden[123]")
        tfdeep.freeze(model, include="hidden[12]")
        self._fit(FROZEN, model, model, data)
        uncached = model.get_weights()

        model = self._model()
        tfdeep.restore(model, weights, include="hidden[123]")
        say("\n3. Freeze hidden[12]\n")
        say(tfdeep.freeze(model, include="hidden[12]"))
        head, features, self.cache_report = tfdeep.cache_frozen(model, data)
        say("\n4. Cache what the frozen layers give, and train the rest\n")
        say(self.cache_report)
        self.log_dir = None
        if importlib.util.find_spec("tensorboard") is not None:
            run = time.strftime("%Y%m%d-%H%M%S")
            self.log_dir = output / "logs" / f"{run}-seed{seed}"
        self.monitor = tfdeep.callbacks.GradientMonitor(log_dir=self.log_dir)
        self._fit(CACHED, model, head, features, [self.monitor])

        cached = model.get_weights()
        self.difference = max(
            float(np.max(np.abs(a - b))) for a, b in zip(uncached, cached, strict=True)
        )
        self.digest = b"".join(w.tobytes() for w in cached)

    def _model(self) -> keras.Model:
        keras.utils.set_random_seed(self._seed)
        return _build(self._task)

    def _fit(
        self,
        way: str,
        model: keras.Model,
        trained: keras.Model,
        data: tf.data.Dataset,
        callbacks: list[keras.callbacks.Callback] | None = None,
    ) -> None:
        trained.compile(
            optimizer=tfdeep.optimizers.ClipByGlobalNorm(
                keras.optimizers.Adam(1e-3), clip_norm=1.0
            ),
            loss=LOSS,
            metrics=["accuracy"],
        )
        clock = _Clock()
        trained.fit(
            data,
            epochs=self._epochs,
            shuffle=False,
            verbose=0,
            callbacks=[*self._started(way), *(callbacks or []), clock],
        )
        self.seconds[way] = clock.median()
        if model is not trained:
            model.compile(loss=LOSS, metrics=["accuracy"])
        results = model.evaluate(
            self._task.x_test, self._task.y_test, verbose=0, return_dict=True
        )
        self.accuracy[way] = results["accuracy"]


def _say_results(
    result: DemoResult,
    task: Task,
    epochs: int,
    first: _Runs,
    output: pathlib.Path,
    say: Callable[[object], None],
) -> None:
    seeds = len(result.accuracies[RANDOM])
    rows = [
        (
            way,
            f"{statistics.mean(values):.3f}",
            f"{min(values):.3f} to {max(values):.3f}",
            f"{result.seconds_per_epoch[way] * 1000:.1f}",
        )
        for way, values in result.accuracies.items()
    ]
    best = max(
        result.accuracies, key=lambda way: statistics.mean(result.accuracies[way])
    )
    say("\n5. Four ways to train the target task\n")
    say(
        render_table(
            f"Test accuracy on {len(task.y_test):,} images after {epochs} epochs on "
            f"{len(task.y_train):,} ({seeds} seeds)",
            ["weights at the start", "mean", "worst to best", "ms/epoch"],
            rows,
            notes=[
                f"Best on average here: {best}.",
                "Cached and uncached training end in weights that differ by at most "
                f"{result.largest_difference:.3g}.",
                f"Running the frozen layers for the cache took "
                f"{first.cache_report.seconds * 1000:.0f} ms, once; the cached run has "
                "the monitor on.",
                f"Digest of the trained weights: {result.digest[:16]}",
            ],
            align="lrrr",
        )
    )
    say("\n6. What the monitor saw in the cached run of the first seed\n")
    say(first.monitor.report())
    say("")
    if first.log_dir is None:
        say("No TensorBoard logs: `pip install tfdeep[tensorboard]` adds them.")
    else:
        say(f"TensorBoard: tensorboard --logdir {output / 'logs'}")
    if importlib.util.find_spec("matplotlib") is None:
        say("No figure: `pip install tfdeep[plots]` adds it.")
    else:
        figure = output / "gradient_norms.png"
        tfdeep.diagnostics.plot_gradient_norms(
            first.monitor.history,
            title="Gradient norms of the fine-tuned layers",
            steps=first.monitor.recording.steps,
        ).savefig(figure, dpi=120)
        say(f"Figure:      {figure}")


def _build(task: Task) -> keras.Model:
    return tfdeep.models.dnn(
        input_shape=task.x_train.shape[1:],
        hidden_units=HIDDEN_UNITS,
        num_outputs=5,
        activation="elu",
    )


def _batches(task: Task) -> tf.data.Dataset:
    """The training images in one fixed order, so that runs can be compared."""
    order = np.random.RandomState(0).permutation(len(task.x_train))
    data = (task.x_train[order], task.y_train[order])
    return tf.data.Dataset.from_tensor_slices(data).batch(BATCH_SIZE)


def _silent(thing: object) -> None:
    """Says nothing: the tables of one seed are enough."""


class _Advance(keras.callbacks.Callback):
    """Moves the progress bar."""

    def __init__(self, progress: Progress, bar: Any) -> None:
        super().__init__()
        self._progress, self._bar = progress, bar

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._progress.advance(self._bar)


class _Clock(keras.callbacks.Callback):
    """Takes the time of each epoch but the first, which traces the step."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._seconds.append(time.perf_counter() - self._begin)

    def median(self) -> float:
        return statistics.median(self._seconds[1:] or self._seconds)
