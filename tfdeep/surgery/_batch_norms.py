"""The batch normalizations of a model."""

from __future__ import annotations

from typing import Any

import keras

from tfdeep._keras import _internals


def batch_norms(model: Any) -> dict[str, Any]:
    """Every batch normalization of a model, nested ones included, by its path."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(layer: Any, prefix: str) -> None:
        for child in _internals.sublayers(layer):
            if id(child) not in seen:
                seen.add(id(child))
                if isinstance(child, keras.layers.BatchNormalization):
                    found[prefix + child.name] = child
                visit(child, f"{prefix}{child.name}/")

    visit(model, "")
    return found
