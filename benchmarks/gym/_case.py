"""What a net of the gym is, and how it is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from benchmarks.gym import _nets
from benchmarks.gym._data import digits
from tfdeep.diagnostics import KINDS

FAMILIES = {
    "dense": _nets.dense,
    "convolutional": _nets.convolutional,
    "recurrent": _nets.recurrent,
    "residual": _nets.residual,
    "attention": _nets.attention,
}


def no_callbacks(model: keras.Model) -> list[keras.callbacks.Callback]:
    """None."""
    return []


@dataclasses.dataclass(frozen=True)
class Case:
    """A net and its data, and what is known to ail it.

    `build()` and `data()` give the net as it is in the gym; told other settings, they
    give it mended. A batch is `batch_size` rows in their order: without shuffling,
    what happens at a step always happens at that step.
    """

    name: str
    family: str
    build: Callable[..., keras.Model]
    data: Callable[..., tuple[np.ndarray, np.ndarray]]
    kinds: tuple[str, ...] = ()  # acceptable findings, best first; none if healthy
    layers: tuple[str, ...] = ()  # any of these is the right one; none: the whole net
    batch_size: int = 32
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remedy: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # settings
    callbacks: Callable[[keras.Model], list[keras.callbacks.Callback]] = no_callbacks
    before: Callable[[keras.Model, np.ndarray, np.ndarray], None] | None = None
    learns: bool = True  # in spite of its illness, if it has one


def make_case(
    name: str,
    family: str = "dense",
    kinds: tuple[str, ...] = (),
    layers: tuple[str, ...] = (),
    *,
    build: Callable[..., keras.Model] | None = None,
    data: Callable[..., tuple[np.ndarray, np.ndarray]] = digits,
    batch_size: int = 32,
    callbacks: Callable[[keras.Model], list[keras.callbacks.Callback]] = no_callbacks,
    before: Callable[[keras.Model, np.ndarray, np.ndarray], None] | None = None,
    learns: bool | None = None,
    remedy: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Case:
    """A case of a family, with the settings that make it what it is."""
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"{name}: no such kinds as {sorted(unknown)}")
    return Case(
        name,
        family,
        functools.partial(build or FAMILIES[family], **settings),
        functools.partial(data, **settings),
        kinds,
        layers,
        batch_size,
        settings,
        remedy or {},
        callbacks,
        before,
        not kinds if learns is None else learns,
    )


class Losses(keras.callbacks.Callback):
    """Keeps the loss of each batch, which `fit` reports as a mean since the start."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        self.losses.append(float((logs or {})["loss"]))
        self.model.reset_metrics()


def prepare(case: Case, **changes: Any) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """The model, ready for the fit that is watched, and its data."""
    keras.utils.set_random_seed(0)
    settings = {**case.settings, **changes}
    x, y = case.data(**settings)
    model = case.build(**settings)
    if case.before is not None:
        case.before(model, x, y)
    return model, x, y


def train(
    case: Case,
    steps: int = 50,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    **changes: Any,
) -> list[float]:
    """Trains the net of a case, with some settings changed, and gives its losses."""
    model, x, y = prepare(case, **changes)
    losses = Losses()
    rows = steps * case.batch_size
    model.fit(
        x[:rows],
        y[:rows],
        batch_size=case.batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, *case.callbacks(model), losses],
    )
    return losses.losses
