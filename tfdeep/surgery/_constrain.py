"""Constraints on the kernels of a model that is already built."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfdeep._core._explain import explain
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep._keras import _owners
from tfdeep.errors import InvalidArgumentError
from tfdeep.surgery._kernels import give, select_kernels

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class ConstrainedKernel:
    """What `constrain` did to one kernel.

    Attributes:
        path: Path of the kernel.
        before: Name of the constraint it had; "" if none.
        changed: Number of its weights (single numbers) that were not within the
            constraint and were changed.
        saved: Whether `model.save` keeps the constraint.
    """

    path: str
    before: str
    changed: int
    saved: bool


@dataclasses.dataclass(frozen=True)
class ConstrainReport(Record):
    """Which kernels are constrained now.

    Attributes:
        model: Name of the model.
        constraint: Name of the constraint; "" if constraints were removed.
        kernels: The kernels that were selected.
    """

    model: str
    constraint: str
    kernels: tuple[ConstrainedKernel, ...]

    def __str__(self) -> str:
        rows = [
            (k.path, k.before or "-", f"{k.changed:,}", "yes" if k.saved else "no")
            for k in self.kernels
        ]
        name = self.constraint or "no constraint"
        return render_table(
            f"{self.model}: {name} on {len(rows)} kernels",
            ["kernel", "had", "weights changed", "saved"],
            shorten(rows, _MOST_ROWS),
            align="llrl",
        )


def constrain(
    model: Any,
    constraint: Any,
    include: Patterns = None,
    exclude: Patterns = None,
) -> ConstrainReport:
    """Puts kernels of a built model under a constraint, at once and after each step.

    Use it on models that somebody else has built, and to have a constraint hold for
    the initial weights too, which Keras leaves as they are until the first step. It
    replaces the constraint that a kernel has; None takes it away. A compiled model
    needs no new `compile`.

    `model.save` keeps the constraint where the layer has a setting for it and the
    model saves its layers' settings; the report says where not: call `constrain`
    again on a loaded model.

    Args:
        model: A built model.
        constraint: A `keras.constraints.Constraint`, the name of one, or None; such
            as `tfdeep.constraints.FanInMaxNorm(2.0)`.
        include: A pattern or a list of patterns; the kernels to constrain. None takes
            all: weights of two axes or more, embeddings included.
        exclude: A pattern or a list of patterns; the kernels to leave as they are.

    Returns:
        A `tfdeep.surgery.ConstrainReport`, which prints as a table.

    Raises:
        InvalidArgumentError: If `constraint` is not one, or gives other shapes or
            values that are not finite.
        SelectionError: If a pattern selects nothing.
        ModelError: If the model has no kernels, or no weights yet.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3], num_outputs=2)
    >>> limit = tfdeep.constraints.FanInMaxNorm(0.1)
    >>> report = tfdeep.surgery.constrain(model, limit, include="hidden1")
    >>> norms = np.linalg.norm(model.get_layer("hidden1").kernel.numpy(), axis=0)
    >>> print(norms.round(4))
    [0.1 0.1 0.1]
    """
    constraint = _constraint(constraint)
    _owners.tell(model)
    kernels = select_kernels(model, include, exclude)
    values = [_constrained(constraint, kernel) for kernel in kernels]
    before = [kernel.variable.constraint for kernel in kernels]
    saved = give(model, kernels, "constraint", constraint)
    rows = []
    for kernel, had, is_saved, (old, new) in zip(
        kernels, before, saved, values, strict=True
    ):
        kernel.variable.assign(new)
        changed = int((old != new).sum())
        rows.append(ConstrainedKernel(kernel.path, _name(had), changed, is_saved))
    return ConstrainReport(model.name, _name(constraint), tuple(rows))


def _name(constraint: Any) -> str:
    return "" if constraint is None else type(constraint).__name__


def _constraint(constraint: Any) -> Any:
    if isinstance(constraint, str):
        constraint = keras.constraints.get(constraint)
    if constraint is None or isinstance(constraint, keras.constraints.Constraint):
        return constraint
    raise InvalidArgumentError(
        explain(
            "`constrain` needs a constraint.",
            received=f"constraint={constraint!r}",
            expected="a `keras.constraints.Constraint`, the name of one, or None",
            fix="for example `tfdeep.constraints.FanInMaxNorm(2.0)`; nothing was "
            "changed",
        )
    )


def _constrained(constraint: Any, kernel: Any) -> tuple[Any, Any]:
    """The values of a kernel, and what the constraint makes of them."""
    old = kernel.variable.numpy()
    if constraint is None:
        return old, old
    new = keras.ops.convert_to_numpy(constraint(kernel.variable))
    if new.shape != old.shape or not np.isfinite(new.astype(np.float64)).all():
        raise InvalidArgumentError(
            explain(
                f"The constraint does not fit `{kernel.path}`.",
                received=f"{type(constraint).__name__} gives values of shape "
                f"{new.shape}, of which {np.isfinite(new).sum()} are finite",
                expected=f"{old.size} finite values of shape {old.shape}",
                fix=f"leave it out with exclude={kernel.path!r}; nothing was changed",
            )
        )
    return old, new
