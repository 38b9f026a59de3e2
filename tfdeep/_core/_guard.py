"""Keeps what only looks on from ending what it looks at."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from tfdeep._core._explain import explain
from tfdeep.errors import TfdeepError

_Result = TypeVar("_Result")


class Guard:
    """Runs measurements; one that fails is left out from then on, with one warning.

    An error that tfdeep raises on purpose, about an argument, passes.

    Args:
        owner: The public name of what measures, for the warning.

    Attributes:
        left_out: By what is left out, the error that it failed with.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.left_out: dict[str, str] = {}

    def __call__(
        self,
        what: str,
        measure: Callable[..., _Result],
        *args: Any,
        otherwise: Any = None,
    ) -> _Result | Any:
        """Calls `measure(*args)`.

        Args:
            what: What it measures, in words that complete "cannot measure ...".
            measure: The measurement. It contains no code of the user's.
            *args: Its arguments.
            otherwise: What comes back if it fails, or has failed before.
        """
        if what in self.left_out:
            return otherwise
        try:
            return measure(*args)
        except TfdeepError:
            raise
        except Exception as error:
            self.leave_out(what, error)
            return otherwise

    def leave_out(self, what: str, error: Exception) -> None:
        """Notes that something cannot be measured, and warns."""
        lines = str(error).strip().splitlines() or [""]
        self.left_out[what] = f"{type(error).__name__}: {lines[0]}"
        warnings.warn(
            explain(
                f"`{self.owner}` cannot measure {what}, and leaves it out.",
                received=self.left_out[what],
                expected="what Keras' layers compute in most models: dense tensors of "
                "floating-point numbers",
                fix="nothing, if you can do without it: training goes on, and so "
                "does the rest of what is measured",
            ),
            stacklevel=2,
        )
