"""The graph of a Functional or Sequential model."""

from __future__ import annotations

from typing import Any

import keras

from tfdeep._core._explain import a_type, explain
from tfdeep._keras import _internals
from tfdeep.errors import ModelError


def graph_nodes(model: Any) -> list[Any]:
    """The nodes of a Functional or Sequential model, each after those it needs.

    Raises:
        ModelError: If the model is no graph of layers, or not built.
    """
    if not is_graph(model):
        raise ModelError(
            explain(
                f"The model `{model.name}` has no graph that could be cut.",
                received=f"{a_type(model)} (a subclass of keras.Model)"
                if not isinstance(model, keras.Sequential)
                else "a Sequential that is not built",
                expected="a Functional or Sequential model that knows its input shape",
                fix="build it with the Functional API or `keras.Sequential`, starting "
                "with `keras.Input(shape)`; nothing was changed",
            )
        )
    ordered: list[Any] = []
    seen = {id(_internals.producer(tensor)) for tensor in model.inputs}
    # Depth first without recursion: deep nets are what this library is for.
    stack = [(_internals.producer(t), False) for t in reversed(model.outputs)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(_internals.producer(t), False) for t in node.input_tensors]
    return ordered


def is_graph(model: Any) -> bool:
    """Whether the model is a graph of symbolic tensors."""
    try:
        tensors = [*model.inputs, *model.outputs]
    except (AttributeError, TypeError, ValueError):
        return False
    return all(isinstance(tensor, keras.KerasTensor) for tensor in tensors)
