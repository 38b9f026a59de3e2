"""What a caller of `restore`, `plan_restore` or `compare` asks for."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import keras

from tfdeep._core._paths import Patterns
from tfdeep.checkpoints._invalid import invalid
from tfdeep.checkpoints._matching import Matching, Transform, match_by_name
from tfdeep.checkpoints._names import Rename
from tfdeep.checkpoints._open import open as open_checkpoint
from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.checkpoints._readers._tensors import path_of
from tfdeep.checkpoints._report import Match, RestoreReport
from tfdeep.checkpoints._targets import (
    Planned,
    Targets,
    find_targets,
    planned_entries,
)


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `restore` that say what goes where, checked.

    Attributes are those arguments; `tfdeep.restore` explains them.
    """

    model: Any
    source: str | os.PathLike[str]
    include: Patterns = None
    exclude: Patterns = None
    rename: Rename = None
    transform: Transform = None
    layout: str | None = None
    on_missing: str = "error"
    on_mismatch: str = "error"
    min_restored: int = 1
    cast: bool = False
    optimizer: bool = False
    plan: RestoreReport | str | None = None
    limits: Limits | None = None
    allow_remote: bool = False

    def __post_init__(self) -> None:
        _check_model(self.model, self.source)
        _check_choice("on_missing", self.on_missing)
        _check_choice("on_mismatch", self.on_mismatch)
        if self.plan is not None and self.rename is not None:
            raise invalid(
                "A plan already says which name goes where.",
                received="plan=... and rename=...",
                expected="one of them",
                fix="leave out `rename`",
            )

    def open(self) -> Reader:
        """Opens the file."""
        return open_checkpoint(self.source, self.limits, self.allow_remote)

    def targets(self) -> Targets:
        """The selected variables of the model."""
        return find_targets(
            self.model,
            self.include,
            self.exclude,
            self.transform,
            self.layout,
            self.optimizer,
        )

    def match(self, targets: Targets, reader: Reader) -> Matching:
        """What of an open file goes into which of the variables."""
        planned: dict[str, Planned] = {}
        if self.plan is not None:
            planned = planned_entries(self.plan)
            targets = targets.as_planned(planned)
        wanted = targets.for_tensors(reader.variables)
        matching = match_by_name(wanted, reader.variables, self.rename, self.cast)
        for match in matching.matched if planned else ():
            _check_followed(match, planned[match.path])
        return matching


def _check_model(model: Any, source: Any) -> None:
    if isinstance(model, keras.layers.Layer):
        return
    swapped = isinstance(source, keras.layers.Layer)
    raise invalid(
        "The first argument must be a model.",
        received=f"model={model!r}",
        expected="a built Keras model, then the file",
        fix=f"{'swap the first two arguments: ' if swapped else ''}"
        "`tfdeep.restore(model, source)`",
    )


def _check_choice(name: str, value: str) -> None:
    if value not in ("error", "skip"):
        raise invalid(
            f"`restore` does not know this `{name}`.",
            received=f"{name}={value!r}",
            expected='"error" or "skip"',
            fix=f'{name}="skip" leaves such variables alone and reports them',
        )


def _check_followed(match: Match, planned: Planned) -> None:
    """Raises if a variable would be filled otherwise than its plan says."""
    made = Planned(tuple(map(path_of, match.sources)), match.steps)
    if made != planned:
        raise invalid(
            f"The plan for {match.path!r} cannot be followed.",
            received=_described(made),
            expected=_described(planned),
            fix="pass the `layout`, `transform` and `cast` that the plan was made with",
        )


def _described(planned: Planned) -> str:
    steps = planned.steps
    return (
        f"{' + '.join(planned.sources)}, conversion {steps.conversion.value!r}, "
        f"transformed={steps.transformed}, cast_from={steps.cast_from!r}"
    )
