"""The private attributes of Keras that tfdeep reads, each behind one function.

Keras has no public way to walk the layers inside a layer, the graph behind a
symbolic tensor, or the variables an optimizer was built for. Everything tfdeep
needs of these stands here and nowhere else; `tests/core/test_keras_internals.py`
says which Keras versions were checked.
"""

from __future__ import annotations

from typing import Any


def sublayers(layer: Any) -> list[Any]:
    """The layers directly inside a layer or model, in the order Keras tracks them."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def declared_trainable(layer: Any) -> list[Any]:
    """A layer's own variables that were made to be trained, frozen or not."""
    return list(layer._trainable_variables)


def producer(tensor: Any) -> Any:
    """The node (one call of one operation) that made a symbolic tensor.

    A node has `operation`, `input_tensors` and `output_tensors`.
    """
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]


def has_mask(tensor: Any) -> bool:
    """Whether Keras hands a mask on beside a symbolic tensor."""
    return getattr(tensor, "_keras_mask", None) is not None


def call_node(node: Any, tensors: dict[int, Any]) -> Any:
    """Calls a node's operation again, with `tensors[id(t)]` in place of each input."""
    args, kwargs = node.arguments.fill_in(tensors)
    return node.operation(*args, **kwargs)


def built_for(optimizer: Any) -> list[Any]:
    """The model variables for which an optimizer has made its own variables."""
    return list(optimizer._trainable_variables)
