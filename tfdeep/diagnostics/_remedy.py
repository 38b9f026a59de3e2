"""What to change in a program, as a value."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfdeep._core._records import Record

CHANGES = (
    "inputs",
    "targets",
    "labels",
    "output",
    "loss",
    "learning_rate",
    "optimizer",
    "clipping",
    "initializer",
    "activation",
    "normalization",
    "skip_connections",
    "regularization",
    "data",
    "trainable",
    "model",
    "look",
)


@dataclasses.dataclass(frozen=True)
class Remedy(Record):
    """One change to a model or its training that answers a finding.

    It prints as text with the code to write. The other fields say the same to a
    program.

    Attributes:
        text: What to do, with the call that does it, and what else helps.
        change: What is changed; one of "inputs", "targets", "labels", "output",
            "loss", "learning_rate", "optimizer", "clipping", "initializer",
            "activation", "normalization", "skip_connections", "regularization",
            "data", "trainable", "model", and "look" where a person has to look first.
        layer: Path of the layer; empty where it is the whole program.
        before: What stands there now; None if unknown.
        after: What to put in its place: of "learning_rate" a rate, or a factor for
            the present one as `"x 0.1"`; else a value or the code of one.

    Example:

    >>> remedy = tfdeep.diagnostics.Remedy(
    ...     'Dense(1, activation="sigmoid")', "output", "head", "softmax", "sigmoid"
    ... )
    >>> print(remedy)
    Dense(1, activation="sigmoid")
    >>> remedy.before, remedy.after
    ('softmax', 'sigmoid')
    """

    text: str
    change: str = "look"
    layer: str = ""
    before: Any = None
    after: Any = None

    @classmethod
    def of(cls, remedy: Remedy | str) -> Remedy:
        """A remedy, or text as one."""
        return remedy if isinstance(remedy, Remedy) else cls(remedy)

    def __str__(self) -> str:
        return self.text
