"""The private attributes of Keras that tfdeep reads, each behind one function.

Keras has no public way to walk the layers inside a layer, the graph behind a
symbolic tensor, or the variables an optimizer was built for; nor has TensorFlow one to
ask a strategy how it sums over replicas. Everything tfdeep needs of these stands here
and nowhere else; `tests/core/test_keras_internals.py` says which Keras versions were
checked.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from tfdeep._core import _optimizers


def sublayers(layer: Any) -> list[Any]:
    """The layers directly inside a layer or model, in the order Keras tracks them."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def declared_trainable(layer: Any) -> list[Any]:
    """A layer's own variables that were made to be trained, frozen or not."""
    return list(getattr(layer, "_trainable_variables", ()))


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


def trainable_when_compiled(model: Any) -> Any:
    """The `trainable` flag of each layer when the model was compiled; None if unknown.

    Keras keeps it from 3.15 on.
    """
    return getattr(model, "_compiled_trainable_state", None)


def was_traced(train_function: Any) -> bool:
    """Whether a model's train function was called, and keeps what it trained then."""
    closure = getattr(train_function, "__closure__", None) or ()
    functions = [cell.cell_contents for cell in closure]
    counters = [getattr(f, "experimental_get_tracing_count", None) for f in functions]
    return any(counter() > 0 for counter in counters if counter is not None)


def strategy_of(optimizer: Any) -> Any:
    """The distribution strategy in whose scope an optimizer was made."""
    return optimizer._distribution_strategy


def all_reduce_of(strategy: Any) -> Any:
    """How a strategy sums over replicas: a `tf.distribute.CrossDeviceOps` or None."""
    return getattr(strategy.extended, "_cross_device_ops", None)


def apply_reduced(optimizer: Any, gradients: Sequence[Any], variables: Any) -> None:
    """Has an optimizer apply gradients that are summed over the replicas already.

    Keras sums in every `apply`, and a second sum of the same gradients costs a tenth
    of the step and more.
    """
    for group in _optimizers.groups(optimizer):
        _make_sum_optional(group)
    _this_thread.has_summed = True  # each replica is traced in a thread of its own
    try:
        optimizer.apply(gradients, trainable_variables=variables)
    finally:
        _this_thread.has_summed = False


def _make_sum_optional(optimizer: Any) -> None:
    name = "_all_reduce_sum_gradients"
    if name in vars(optimizer):
        return
    keras_own = getattr(optimizer, name)

    def sum_once(pairs: Any) -> Any:
        summed = getattr(_this_thread, "has_summed", False)
        return list(pairs) if summed else keras_own(pairs)

    vars(optimizer)[name] = sum_once


_this_thread = threading.local()
