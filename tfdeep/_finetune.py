"""The common case of fine-tuning as one call."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfdeep._core import _paths
from tfdeep._core._arguments import is_whole_number
from tfdeep._core._explain import explain, listing
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, human_bytes, render_table
from tfdeep._keras import _variables
from tfdeep._keras._optimizer_state import fit_to_trainable
from tfdeep.callbacks import GradientMonitor, GradualUnfreeze
from tfdeep.diagnostics import Finding
from tfdeep.errors import InvalidArgumentError
from tfdeep.transfer import CacheReport
from tfdeep.transfer._cache import cache_frozen
from tfdeep.transfer._dataset import checked_dataset
from tfdeep.transfer._freeze import freeze as freeze_variables
from tfdeep.transfer._freeze import unfreeze as unfreeze_variables


@dataclasses.dataclass(frozen=True)
class FineTuneStage(Record):
    """Epochs in which the same variables were trained.

    Attributes:
        name: What was done.
        first_epoch: The first of its epochs, from 0.
        epochs: Number of its epochs.
        seconds: Time that they took, in seconds.
        trainable: Number of weights (single numbers) that were trained.
        logs: Losses and metrics of its last epoch.
    """

    name: str
    first_epoch: int
    epochs: int
    seconds: float
    trainable: int
    logs: dict[str, float]


@dataclasses.dataclass(frozen=True)
class FineTuneReport(Record):
    """What `finetune` did.

    Attributes:
        model: Name of the model.
        stages: The stages, in order.
        cache: What was cached for the first of them.
        history: By name, losses and metrics of all epochs.
        findings: What the monitor found.
        seconds: Time that all of it took, in seconds.
    """

    model: str
    stages: tuple[FineTuneStage, ...]
    cache: CacheReport
    history: dict[str, list[float]]
    findings: tuple[Finding, ...]
    seconds: float

    def __str__(self) -> str:
        names = list(self.stages[0].logs)[:4]
        rows = [
            (
                stage.name,
                f"{stage.first_epoch}-{stage.first_epoch + stage.epochs - 1}",
                f"{stage.trainable:,}",
                f"{stage.seconds:.1f}",
                *(f"{stage.logs.get(name, math.nan):.4f}" for name in names),
            )
            for stage in self.stages
        ]
        epochs = sum(stage.epochs for stage in self.stages)
        cached = (
            f"features of {self.cache.examples:,} examples: "
            f"{human_bytes(self.cache.bytes)} in {self.cache.seconds:.1f} s"
        )
        findings = [f"{f.kind} in {f.layer}: {f.remedy}" for f in self.findings[:5]]
        return render_table(
            f"Fine-tuned {self.model}: {epochs} epochs in {self.seconds:.1f} s",
            ["stage", "epochs", "weights", "s", *names],
            rows,
            notes=[cached, *(findings or ["the monitor found nothing wrong"])],
            align="llrr" + "r" * len(names),
        )


def finetune(
    model: Any,
    dataset: Any,
    loss: Any,
    *,
    freeze: Patterns = None,
    optimizer: Any = "adam",
    metrics: Sequence[Any] | None = None,
    epochs: int = 10,
    unfreeze: Mapping[int, Patterns] | None = None,
    rate_factor: float | None = 0.1,
    validation_data: Any = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = "auto",
) -> FineTuneReport:
    """Fine-tunes a pretrained model: first its head on cached features, then deeper.

    Use it for the common case, after `tfdeep.restore`. It freezes layers, runs them
    once over the dataset, trains the rest on what they gave and, from given epochs
    on, unfreezes layers and trains the whole. The optimizer keeps its moments from
    stage to stage. Each step is a call of its own (`freeze`, `cache_frozen`,
    `callbacks.GradualUnfreeze`) for what this one does not cover.

    Args:
        model: A Functional or Sequential model.
        dataset: A finite `tf.data.Dataset` of `(inputs, labels)` or `(inputs, labels,
            sample_weights)`, in batches or, with `batch_size`, of single examples;
            not shuffled in itself if `cache_dir` is given.
        loss: As for `compile`.
        freeze: A pattern or a list of patterns of the variables to freeze. None
            leaves the flags as they are.
        optimizer: As for `compile`; `tfdeep.optimizers.ClipByGlobalNorm(...)` clips.
        metrics: As for `compile`.
        epochs: Number of epochs of all stages together.
        unfreeze: By epoch, counted from 0: patterns of the variables that train from
            then on. The epochs before the first of them train on cached features.
        rate_factor: What to multiply the learning rate by when variables are unfrozen.
            None leaves it.
        validation_data: A dataset like `dataset`, evaluated after each epoch.
        batch_size: Number of examples a batch. None keeps the dataset's batches.
        shuffle: Whether cached features come in a new order each epoch.
        cache_dir: Directory for the features; None holds them in memory.
        log_dir: Directory for what the monitor records; None writes nothing.
        callbacks: As for `fit`; they see one fit for the cached stage and one for the
            rest.
        verbose: As for `fit`.

    Returns:
        A `tfdeep.FineTuneReport`, which prints as a table. `model` is trained, and
        compiled with the optimizer, loss and metrics.

    Raises:
        SelectionError: If a pattern selects nothing.
        ModelError, DataError, CacheError: See `tfdeep.cache_frozen`.
        InvalidArgumentError: If `epochs` or `unfreeze` cannot work. In all these cases
            nothing was trained, and what was frozen for it is unfrozen again.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> x, y = np.random.normal(size=(32, 4)), np.zeros(32)
    >>> dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    >>> report = tfdeep.finetune(
    ...     model,
    ...     dataset,
    ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ...     freeze="hidden[12]",
    ...     epochs=3,
    ...     unfreeze={2: "hidden2"},
    ...     verbose=0,
    ... )
    >>> [(stage.first_epoch, stage.trainable) for stage in report.stages]
    [(0, 8), (2, 20)]
    """
    started = time.perf_counter()
    stages = dict(sorted((unfreeze or {}).items()))
    _check_epochs(epochs, stages)
    paths = [variable.path for variable in _variables.model_variables(model)]
    for patterns in stages.values():
        _paths.select(paths, patterns)
    thaw = GradualUnfreeze(stages, rate_factor=rate_factor) if stages else None
    frozen = () if freeze is None else freeze_variables(model, freeze).changed
    validation = None
    try:
        head, features, cached = cache_frozen(
            model, dataset, cache_dir, batch_size, shuffle=shuffle
        )
        if validation_data is not None:
            _, validation, _ = cache_frozen(
                model, validation_data, cache_dir, batch_size
            )
            validation_data = checked_dataset(model, validation_data, batch_size)
    except BaseException:
        if frozen:
            unfreeze_variables(model, [re.escape(path) for path in frozen])
        raise

    head.compile(optimizer, loss, metrics=metrics)
    first = min(stages, default=epochs)
    monitor = GradientMonitor(log_dir=log_dir, on_finding=None)
    clock = _Clock()
    history = head.fit(
        features,
        epochs=first,
        validation_data=validation,
        callbacks=[monitor, clock, *callbacks],
        verbose=verbose,
    )
    log = {name: list(values) for name, values in history.history.items()}
    findings = list(monitor.findings)

    model.compile(head.optimizer, loss, metrics=metrics)
    fit_to_trainable(model)
    if thaw is not None:
        monitor = GradientMonitor(
            log_dir=log_dir and os.path.join(log_dir, "unfrozen"), on_finding=None
        )
        history = model.fit(
            checked_dataset(model, dataset, batch_size),
            initial_epoch=first,
            epochs=epochs,
            validation_data=validation_data,
            callbacks=[thaw, monitor, clock, *callbacks],
            verbose=verbose,
        )
        for name, values in history.history.items():
            log.setdefault(name, []).extend(values)
        findings += monitor.findings
    return FineTuneReport(
        model=model.name,
        stages=tuple(_stages(stages, epochs, clock, cached)),
        cache=cached,
        history=log,
        findings=tuple(findings),
        seconds=time.perf_counter() - started,
    )


class _Clock(keras.callbacks.Callback):
    """By epoch: how long it took, how many weights it trained, and its logs."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[int, tuple[float, int, dict[str, float]]] = {}
        self._started = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self._started
        trained = sum(math.prod(w.shape) for w in self.model.trainable_weights)
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.epochs[epoch] = (seconds, trained, values)


def _stages(
    stages: Mapping[int, Patterns], epochs: int, clock: _Clock, cached: CacheReport
) -> list[FineTuneStage]:
    edges = [0, *stages, epochs]
    names = [f"train {listing(cached.head_layers, limit=3)}"]
    names += [f"unfreeze {listing(_paths.as_patterns(p))}" for p in stages.values()]
    made = []
    for name, (first, stop) in zip(names, itertools.pairwise(edges), strict=True):
        ran = [clock.epochs[e] for e in range(first, stop) if e in clock.epochs]
        if ran:  # a callback may have ended the fit
            seconds = sum(epoch[0] for epoch in ran)
            _, trained, logs = ran[-1]
            made.append(FineTuneStage(name, first, len(ran), seconds, trained, logs))
    return made


def _check_epochs(epochs: Any, stages: Mapping[int, Patterns]) -> None:
    if (
        is_whole_number(epochs)
        and epochs > 0
        and all(is_whole_number(e) and 0 < e < epochs for e in stages)
    ):
        return
    raise InvalidArgumentError(
        explain(
            "`finetune` cannot follow these epochs.",
            received=f"epochs={epochs!r}, unfreeze at {listing(stages)}",
            expected="a whole number of epochs > 0, and epochs within it from 1 on at "
            "which to unfreeze",
            fix="epochs=10, unfreeze={6: 'hidden2', 8: 'hidden1'}; nothing was trained",
        )
    )
