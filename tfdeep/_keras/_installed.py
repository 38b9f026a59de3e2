"""What tfdeep has replaced on a model."""

from __future__ import annotations

from typing import Any

from tfdeep._keras import _internals, _optimizers, _patches
from tfdeep._keras._patches import Patch


def installed(model: Any) -> list[Patch]:
    """What is replaced now on a model, its layers and its optimizers."""
    owners: dict[int, Any] = {}

    def visit(layer: Any) -> None:
        if id(layer) not in owners:
            owners[id(layer)] = layer
            for inner in _internals.sublayers(layer):
                visit(inner)

    visit(model)
    chain = _optimizers.chain(getattr(model, "optimizer", None))
    for optimizer in [*chain, *(_optimizers.groups(chain[-1]) if chain else [])]:
        owners[id(optimizer)] = optimizer
    return _patches.listed(owners.values())
