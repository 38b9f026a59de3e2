"""Penalties on the kernels of a model that is already built."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfdeep._core._arguments import number
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep.surgery._kernels import give, select_kernels

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class KernelPenalty:
    """The penalty on one kernel.

    Attributes:
        path: Path of the kernel.
        before: What it had: "l1=..., l2=..." or the name of a regularizer; "" if none.
        penalty: What it adds to the loss now, with the weights it has.
        saved: Whether `model.save` keeps the penalty.
    """

    path: str
    before: str
    penalty: float
    saved: bool


@dataclasses.dataclass(frozen=True)
class RegularizeReport(Record):
    """Which kernels have a penalty now.

    Attributes:
        model: Name of the model.
        l1: Factor of the sum of the absolute weights.
        l2: Factor of the sum of their squares.
        kernels: The kernels that were selected.
    """

    model: str
    l1: float
    l2: float
    kernels: tuple[KernelPenalty, ...]

    def __str__(self) -> str:
        rows = [
            (k.path, k.before or "-", f"{k.penalty:.4g}", "yes" if k.saved else "no")
            for k in self.kernels
        ]
        return render_table(
            f"{self.model}: l1={self.l1:g}, l2={self.l2:g} on {len(rows)} kernels",
            ["kernel", "had", "adds to the loss", "saved"],
            shorten(rows, _MOST_ROWS),
            align="llrl",
        )


def regularize(
    model: Any,
    l1: float = 0.0,
    l2: float = 0.0,
    include: Patterns = None,
    exclude: Patterns = None,
) -> RegularizeReport:
    """Gives kernels of a built model an l1 or l2 penalty, from now on.

    Use it on models that somebody else has built, such as those of
    `keras.applications`. For each selected kernel w, the loss grows by

        l1 * sum(|w|) + l2 * sum(w ** 2)

    It replaces the regularizer that a kernel has, so a second call is in place of the
    first one, and `regularize(model)` takes all penalties away. Biases and the gains
    of normalizations never get one. A compiled model needs no new `compile`. A frozen
    kernel is penalized only while it is trained.

    `model.save` keeps the penalty where the layer has a setting for it and the model
    saves its layers' settings; the report says where not (in a subclassed model, or
    inside `MultiHeadAttention`): call `regularize` again on a loaded model.

    Args:
        model: A built model.
        l1: Float >= 0. Loss per unit of absolute weight.
        l2: Float >= 0. Loss per unit of squared weight.
        include: A pattern or a list of patterns; the kernels to penalize. None takes
            all: weights of two axes or more, embeddings included.
        exclude: A pattern or a list of patterns; the kernels to leave as they are.

    Returns:
        A `tfdeep.surgery.RegularizeReport`, which prints as a table.

    Raises:
        InvalidArgumentError: If `l1` or `l2` is not a finite number >= 0.
        SelectionError: If a pattern selects nothing.
        ModelError: If the model has no kernels, or no weights yet.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3], num_outputs=2)
    >>> report = tfdeep.surgery.regularize(model, l2=1e-4, exclude="outputs")
    >>> [kernel.path for kernel in report.kernels], len(model.losses)
    (['hidden1/kernel'], 1)
    """
    l1, l2 = _factor(l1, "l1"), _factor(l2, "l2")
    kernels = select_kernels(model, include, exclude)
    regularizer = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
    before = [_described(kernel.variable.regularizer) for kernel in kernels]
    saved = give(model, kernels, "regularizer", regularizer)
    return RegularizeReport(
        model.name,
        l1,
        l2,
        tuple(
            KernelPenalty(
                path=kernel.path,
                before=had,
                penalty=float(regularizer(kernel.variable)) if regularizer else 0.0,
                saved=is_saved,
            )
            for kernel, had, is_saved in zip(kernels, before, saved, strict=True)
        ),
    )


def _factor(value: Any, argument: str) -> float:
    unit = "loss per unit of weight"
    return number(value, argument, "regularize", at_least=0, unit=unit, example=1e-4)


def _described(regularizer: Any) -> str:
    if regularizer is None:
        return ""
    factors = {
        name: float(getattr(regularizer, name))
        for name in ("l1", "l2")
        if getattr(regularizer, name, None)
    }
    if not factors:
        return type(regularizer).__name__
    return ", ".join(f"{name}={value:g}" for name, value in factors.items())
