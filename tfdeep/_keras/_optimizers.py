"""Walking through optimizers that hold optimizers."""

from __future__ import annotations

from typing import Any


def chain(optimizer: Any) -> list[Any]:
    """An optimizer and those inside it, from the outside in; empty for None."""
    found = []
    while optimizer is not None:
        found.append(optimizer)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return found


def groups(optimizer: Any) -> list[Any]:
    """The optimizers that update weights: itself, or those of a `MultiOptimizer`."""
    return list(getattr(optimizer, "optimizers", None) or [optimizer])
