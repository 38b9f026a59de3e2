"""Walks over models: the layers inside a model, and the calls in its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tfdeep._keras import _graph, _internals, _layer_facts


def layers(
    model: Any, is_closed: Callable[[Any], bool] = lambda layer: False
) -> dict[str, Any]:
    """Every layer inside a model or layer once, by its path, outer ones first.

    Args:
        model: The model or layer.
        is_closed: Says of a layer that what is inside it is left out.
    """
    found: dict[str, Any] = {}
    for path, layer in _visited(model, "", {id(model)}, is_closed):
        found.setdefault(path, layer)
    return found


def every_layer(model: Any) -> list[Any]:
    """Every layer inside a model once, also where paths are the same."""
    return [layer for _, layer in _visited(model, "", {id(model)})]


def _visited(
    layer: Any,
    prefix: str,
    seen: set[int],
    is_closed: Callable[[Any], bool] = lambda layer: False,
) -> Iterator[tuple[str, Any]]:
    for child in _internals.sublayers(layer):
        if id(child) not in seen:
            seen.add(id(child))
            yield prefix + child.name, child
            if not is_closed(child):
                yield from _visited(child, f"{prefix}{child.name}/", seen, is_closed)


def layers_of_kind(model: Any, kind: Any) -> dict[str, Any]:
    """The layers inside a model that are instances of a class, or of several."""
    return {p: layer for p, layer in layers(model).items() if isinstance(layer, kind)}


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer or operation in a graph.

    Attributes:
        path: Names of the layers from the model inwards.
        layer: The layer or operation.
        before: The calls whose outputs it reads.
        after: The calls that read its output.
    """

    path: str
    layer: Any
    before: list[Call]
    after: list[Call] = dataclasses.field(default_factory=list)

    @property
    def activation(self) -> str | None:
        """The name of the activation that a layer ends with."""
        if not isinstance(self.layer, keras.layers.Layer):
            return None
        return _layer_facts.activation_name(self.layer)

    @property
    def has_kernel(self) -> bool:
        """Whether it multiplies by a kernel."""
        return _layer_facts.has_kernel(self.layer)

    @property
    def is_normalization(self) -> bool:
        """Whether it brings its input to a fixed scale."""
        return _layer_facts.is_normalization(type(self.layer).__name__)

    def next_activation(self) -> str | None:
        """The first activation function from this call on, if only one can follow."""
        call = self
        while call.activation in (None, "linear"):
            if len(call.after) != 1:
                return call.activation
            call = call.after[0]
            if call.has_kernel or len(call.before) != 1:
                return "linear"
        return call.activation


def calls(model: Any, prefix: str = "") -> tuple[list[Call], list[Call]]:
    """The calls in the graph of a model, those of models inside it in their place.

    Args:
        model: A Functional or Sequential model that is built.
        prefix: Put before each path.

    Returns:
        All calls, each after those it reads, and those that make the outputs.

    Raises:
        ModelError: If the model is not a graph of layers.
    """
    found: list[Call] = []
    outputs = _visit(model, prefix, {}, found)
    return found, [call for calls_of_one in outputs for call in calls_of_one]


def _visit(
    graph: Any, prefix: str, entering: dict[int, list[Call]], found: list[Call]
) -> list[list[Call]]:
    """Adds the calls of `graph` to `found`; returns those that make each output.

    Args:
        graph: The model.
        prefix: Put before each path.
        entering: By the id of an input of `graph`, the calls that it comes from.
        found: The calls so far.
    """
    sources = dict(entering)
    for node in _graph.graph_nodes(graph):
        operation = node.operation
        given = [sources.get(id(tensor), []) for tensor in node.input_tensors]
        if _graph.is_graph(operation):
            inside = {id(t): c for t, c in zip(operation.inputs, given, strict=True)}
            path = f"{prefix}{operation.name}/"
            made = _visit(operation, path, inside, found)
            sources.update(zip(map(id, node.output_tensors), made, strict=True))
            continue
        before = [call for calls_of_one in given for call in calls_of_one]
        call = Call(prefix + operation.name, operation, before)
        for earlier in before:
            earlier.after.append(call)
        found.append(call)
        sources.update((id(tensor), [call]) for tensor in node.output_tensors)
    return [sources.get(id(tensor), []) for tensor in graph.outputs]
