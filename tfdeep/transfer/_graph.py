"""The graph of a Functional or Sequential model, and where its frozen part ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfdeep._keras import _internals
from tfdeep._keras._graph import graph_nodes, is_graph
from tfdeep._keras._inference_mode import acts_in_training


@dataclasses.dataclass(frozen=True)
class FrozenPart:
    """The part of a graph that training cannot change, counted from the inputs.

    Attributes:
        nodes: Its nodes (one call of one operation each), inputs first.
        boundary: The tensors that the rest of the graph takes from it.
    """

    nodes: list[Any]
    boundary: list[Any]

    @property
    def weighted(self) -> list[Any]:
        """The layers in it that have weights."""
        return [n.operation for n in self.nodes if has_weights(n)]

    def between(self) -> list[Any]:
        """The layers without weights that stand between layers with weights.

        A dropout layer between two frozen layers belongs to the frozen part; one
        before all of them (noise on the input, augmentation) does not.
        """
        has_weights_below = set()
        found = []
        for node in self.nodes:
            inner = any(
                id(_internals.producer(tensor)) in has_weights_below
                for tensor in node.input_tensors
            )
            weighted = has_weights(node)
            if inner or weighted:
                has_weights_below.add(id(node))
            if inner and not weighted and isinstance(node.operation, keras.Layer):
                found.append(node.operation)
        return found


def has_weights(node: Any) -> bool:
    """Whether a node calls a layer that has weights."""
    return bool(getattr(node.operation, "weights", None))


def frozen_part(model: Any) -> FrozenPart:
    """Finds the largest frozen part of a model's graph.

    A call of a layer belongs to it if nothing trainable stands at or before it. A
    layer without weights that acts in training, such as dropout, belongs to it only
    if a frozen layer with weights comes after it.

    Args:
        model: A Functional or Sequential model.

    Raises:
        ModelError: If the model is no graph of layers.
    """
    nodes = graph_nodes(model)
    inputs = {id(tensor) for tensor in model.inputs}
    frozen_tensors = set(inputs)
    candidates = []
    for node in nodes:
        is_trainable = bool(getattr(node.operation, "trainable_weights", None))
        if not is_trainable and all(
            id(t) in frozen_tensors for t in node.input_tensors
        ):
            candidates.append(node)
            frozen_tensors.update(id(t) for t in node.output_tensors)

    part = _without_loose_ends(candidates)
    kept = {id(node) for node in part}
    inside = inputs | {id(t) for node in part for t in node.output_tensors}
    needed = [t for node in nodes if id(node) not in kept for t in node.input_tensors]
    boundary = {id(t): t for t in [*needed, *model.outputs] if id(t) in inside}
    return FrozenPart(part, list(boundary.values()))


def _without_loose_ends(candidates: list[Any]) -> list[Any]:
    """Leaves out what only acts in training and leads to no frozen weights."""
    leads_to_weights: set[int] = set()
    for node in reversed(candidates):
        if id(node) in leads_to_weights or has_weights(node):
            leads_to_weights.add(id(node))
            for tensor in node.input_tensors:
                leads_to_weights.add(id(_internals.producer(tensor)))
    kept: list[Any] = []
    left_out: set[int] = set()
    for node in candidates:
        is_after_one = any(
            id(_internals.producer(t)) in left_out for t in node.input_tensors
        )
        is_one = id(node) not in leads_to_weights and acts_in_training(node.operation)
        if is_after_one or is_one:
            left_out.add(id(node))
        else:
            kept.append(node)
    return kept


def replay(nodes: list[Any], tensors: dict[int, Any]) -> dict[int, Any]:
    """Calls the layers of a graph again on other tensors.

    Args:
        nodes: The calls to repeat, each after those it needs.
        tensors: By the id of a tensor of the graph, what stands in its place.

    Returns:
        `tensors` and what the calls gave, by the ids of what they gave first.
    """
    tensors = dict(tensors)
    for node in nodes:
        if is_half_frozen(node.operation):
            given = [tensors[id(tensor)] for tensor in node.input_tensors]
            outputs = _spelled_out(node.operation, given)
        else:
            outputs = keras.tree.flatten(_internals.call_node(node, tensors))
        for old, new in zip(node.output_tensors, outputs, strict=True):
            tensors[id(old)] = new
    return tensors


def flatten(model: Any) -> Any:
    """A model of the same layers in which half-frozen inner models are spelled out.

    A boundary can then run through an inner model. A model without such inner models
    is returned as it is.
    """
    nodes = graph_nodes(model)
    if not any(is_half_frozen(node.operation) for node in nodes):
        return model
    tensors = replay(nodes, {id(tensor): tensor for tensor in model.inputs})
    outputs = keras.tree.map_structure(lambda t: tensors[id(t)], outputs_of(model))
    return keras.Model(inputs_of(model), outputs, name=model.name)


def _spelled_out(inner: Any, given: list[Any]) -> list[Any]:
    """Calls the layers of an inner model one by one on the tensors `given`."""
    tensors = {id(t): x for t, x in zip(inner.inputs, given, strict=True)}
    tensors = replay(graph_nodes(inner), tensors)
    return [tensors[id(tensor)] for tensor in inner.outputs]


def is_half_frozen(operation: Any) -> bool:
    """Whether an operation is a model in which some layers are frozen, not all."""
    if not isinstance(operation, keras.Model) or not is_graph(operation):
        return False
    if not operation.trainable_weights:
        return False
    return any(
        is_half_frozen(layer) or (layer.weights and not layer.trainable_weights)
        for layer in operation.layers
    )


def inputs_of(model: Any) -> Any:
    """A model's symbolic inputs, in the structure in which it is called."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def outputs_of(model: Any) -> Any:
    """A model's symbolic outputs, in the structure in which it returns them."""
    return model.outputs[0] if isinstance(model, keras.Sequential) else model.output
