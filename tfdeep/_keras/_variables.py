"""The weights of a model, each with its path.

A variable's path is the names of the layers around it, then its own name:
`hidden1/kernel`, `base/block2/conv/bias`. The model's own name is not part of it, so
the path is the same for a Sequential, a Functional and a subclassed model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tfdeep._core._explain import a_type, explain
from tfdeep._keras import _internals
from tfdeep.errors import ModelError


@dataclasses.dataclass(frozen=True)
class ModelVariable:
    """One weight of a model.

    Attributes:
        path: Names of the layers from the model inwards, then the variable's name.
        variable: The `keras.Variable`.
        layer: The layer that owns it.
    """

    path: str
    variable: Any
    layer: Any

    @property
    def layer_path(self) -> str:
        """The path of the owning layer; empty for the model itself."""
        return self.path.rpartition("/")[0]


def model_variables(model: Any) -> list[ModelVariable]:
    """Every weight of `model` once, with its path, in the order of the layers.

    Raises:
        ModelError: If the model has no weights yet.
    """
    found: list[ModelVariable] = []
    seen: set[int] = set()

    def visit(layer: Any, prefix: str) -> None:
        seen.add(id(layer))
        for variable in own_weights(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                found.append(ModelVariable(prefix + variable.name, variable, layer))
        for child in _internals.sublayers(layer):
            if id(child) not in seen:
                visit(child, f"{prefix}{child.name}/")

    visit(model, "")
    if not found:
        raise ModelError(
            explain(
                f"The model `{model.name}` has no weights yet.",
                received=f"{a_type(model)} with built={model.built}",
                expected="a model whose layers have created their weights",
                fix="call it on a batch, `model.build(input_shape)`, or start it with "
                "`keras.Input(shape)`; nothing was changed",
            )
        )
    return found


def own_weights(layer: Any) -> list[Any]:
    """The weights of a layer that belong to none of its sublayers."""
    inner = {
        id(weight) for child in _internals.sublayers(layer) for weight in child.weights
    }
    return [weight for weight in layer.weights if id(weight) not in inner]
