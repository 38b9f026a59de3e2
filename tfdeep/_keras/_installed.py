"""What tfdeep has replaced on a model."""

from __future__ import annotations

from typing import Any

from tfdeep._keras import _optimizers, _patches, _walk
from tfdeep._keras._patches import Patch


def installed(model: Any) -> list[Patch]:
    """What is replaced now on a model, its layers and its optimizers."""
    chain = _optimizers.chain(getattr(model, "optimizer", None))
    groups = _optimizers.groups(chain[-1]) if chain else []
    owners = [model, *_walk.every_layer(model), *chain, *groups]
    return _patches.listed({id(owner): owner for owner in owners}.values())
