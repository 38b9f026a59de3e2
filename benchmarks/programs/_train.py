"""Trains a program for some steps and keeps its losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from benchmarks.programs._program import Prepared

STEPS = 300
_FIRST, _LAST = 5, 20  # steps that the losses before and after are means of


class Losses(keras.callbacks.Callback):
    """Keeps the loss and the metrics of each batch; ends the fit after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.logs: list[dict[str, float]] = []
        self.validated: list[float] = []

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        self.logs.append({name: float(value) for name, value in (logs or {}).items()})
        self.model.reset_metrics()  # `fit` reports means since the start
        if len(self.logs) >= self.steps:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if logs and "val_loss" in logs:
            self.validated.append(float(logs["val_loss"]))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a fit went.

    Attributes:
        steps: How many steps it took.
        first: Means of the loss and the metrics of the first steps.
        last: The same of the last.
        validated: The validation loss of each epoch.
        error: What `fit` raised; empty if nothing.
    """

    steps: int
    first: dict[str, float]
    last: dict[str, float]
    validated: tuple[float, ...]
    error: str

    def __str__(self) -> str:
        parts = [
            f"{name} {self.first[name]:.4g} -> {self.last[name]:.4g}"
            for name in self.last
        ]
        if self.validated:
            least, last = min(self.validated), self.validated[-1]
            parts.append(f"val_loss {least:.4g} at best, {last:.4g} at last")
        if self.steps < STEPS:
            parts.append(f"{self.steps} steps")
        if self.error:
            parts.append(self.error)
        return ", ".join(parts)


def train(
    prepared: Prepared,
    steps: int = STEPS,
    callbacks: Iterable[keras.callbacks.Callback] = (),
) -> Outcome:
    """Fits a model for a number of steps, over its data again and again.

    Args:
        prepared: What `Program.faulty()` or `Program.repaired()` gives.
        steps: How many steps to take at most.
        callbacks: Further callbacks.
    """
    model, x, y, arguments = prepared
    losses = Losses(steps)
    error = ""
    try:
        model.fit(
            x,
            y,
            epochs=steps,
            verbose=0,
            callbacks=[*callbacks, losses],
            **arguments,
        )
    except Exception as raised:  # that a program ends with an error is an outcome
        error = f"{type(raised).__name__}: {str(raised).strip().splitlines()[0][:80]}"
    return Outcome(
        len(losses.logs),
        _means(losses.logs[:_FIRST]),
        _means(losses.logs[-_LAST:]),
        tuple(losses.validated),
        error,
    )


def data(prepared: Prepared) -> tuple[Any, Any]:
    """The inputs and targets that a user would give to `diagnose`: all of them."""
    _, x, y, _ = prepared
    return x, y


def _means(logs: list[dict[str, float]]) -> dict[str, float]:
    names = logs[0] if logs else {}
    return {name: float(np.mean([log[name] for log in logs])) for name in names}
