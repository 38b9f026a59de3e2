"""The private attributes of Keras that tfdeep reads, each behind one function.

Keras has no public way to walk the layers inside a layer, the graph behind a
symbolic tensor, or the variables an optimizer was built for; nor has TensorFlow one to
ask a strategy how it sums over replicas. Everything tfdeep needs of these stands here
and nowhere else; `tests/core/test_internals.py` says which Keras versions were
checked.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._keras import _optimizers, _patches


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


def uncast_value(variable: Any) -> Any:
    """A variable's value in its own dtype, also in a layer of mixed precision."""
    autocast, variable._autocast = variable._autocast, False
    try:
        return variable.value
    finally:
        variable._autocast = autocast


def has_mask(tensor: Any) -> bool:
    """Whether Keras hands a mask on beside a symbolic tensor."""
    return getattr(tensor, "_keras_mask", None) is not None


def call_arguments(node: Any, tensors: dict[int, Any]) -> tuple[Any, Any]:
    """How a node called its operation, with `tensors[id(t)]` in place of each input."""
    args, kwargs = node.arguments.fill_in(tensors)
    return args, kwargs


def call_node(node: Any, tensors: dict[int, Any]) -> Any:
    """Calls a node's operation again, with `tensors[id(t)]` in place of each input."""
    args, kwargs = call_arguments(node, tensors)
    return node.operation(*args, **kwargs)


def built_for(optimizer: Any) -> list[Any]:
    """The model variables for which an optimizer has made its own variables."""
    variables = list(optimizer._trainable_variables)
    inner = getattr(optimizer, "inner_optimizer", None)
    if optimizer.built and not variables and inner is not None:
        return built_for(inner)  # Keras 3.8: `LossScaleOptimizer` leaves it to that one
    return variables


def compiled_loss(model: Any) -> Any:
    """What computes the loss given to `compile`, without penalties; None if none is."""
    return getattr(model, "_compile_loss", None)


def optimizer_state(optimizer: Any) -> dict[Any, tuple[Any, Any]]:
    """An optimizer's own variables, each with the model variable it belongs to or None.

    Keras optimizers keep what they know of the model's variables in lists with an
    entry for each. The names in them may be the same: those of `Adafactor` are, and
    those of two inner models whose layers have the same names.

    Returns:
        By a key that is the same for another optimizer of this kind.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    inside = [inner] if inner is not None else getattr(optimizer, "optimizers", [])
    own = {id(v) for v in optimizer._variables}
    own -= {id(v) for other in inside for v in other.variables}
    variables = built_for(optimizer)
    state: dict[Any, tuple[Any, Any]] = {}
    for name, value in vars(optimizer).items():
        if name in ("_variables", "_trainable_variables") or name.startswith("_self_"):
            continue  # lists of all, and what TensorFlow keeps for its checkpoints
        entries: list[tuple[Any, Any, Any]] = [(None, value, None)]
        if isinstance(value, dict):
            entries = [(key, entry, None) for key, entry in value.items()]
        elif isinstance(value, (list, tuple)) and len(value) == len(variables):
            entries = [(id(v), e, v) for v, e in zip(variables, value, strict=True)]
        for key, entry, owner in entries:
            if id(entry) in own:
                own.discard(id(entry))
                state[name, key] = (entry, owner)
    places: dict[str, int] = {}
    for variable in optimizer._variables:
        if id(variable) in own:
            place = places.setdefault(variable.name, 0)
            places[variable.name] += 1
            state["", variable.name, place] = (variable, None)
    return state


# What TensorFlow's tracked lists and dicts hold beside their items. Where these differ
# from the items, no checkpoint can be written.
_OF_TRACKED_CONTAINERS = (
    "_storage",
    "_last_wrapped_list_snapshot",
    "_self_last_wrapped_dict_snapshot",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_dependency_names",
)


def substitute(optimizer: Any, known: dict[int, Any]) -> None:
    """Puts other variables in the place of an optimizer's own, wherever it holds them.

    Args:
        optimizer: The optimizer.
        known: By the `id` of a variable, what takes its place.
    """

    def swapped(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        # In place, since some containers are held twice, and past what tracks them.
        inside = getattr(value, "__wrapped__", value)
        if isinstance(inside, (list, dict)):
            for name in _OF_TRACKED_CONTAINERS:
                swapped(getattr(value, name, None))
        if isinstance(inside, list):
            list.__setitem__(inside, slice(None), [swapped(item) for item in inside])
        elif isinstance(inside, dict):
            for key, item in list(inside.items()):
                dict.__setitem__(inside, key, swapped(item))
        elif isinstance(value, tf.__internal__.tracking.TrackableReference):
            return type(value)(value.name, swapped(value.ref))
        return value

    for name, value in list(vars(optimizer).items()):
        vars(optimizer)[name] = swapped(value)


def multiply_rates(
    optimizer: Any, owner: Any, factors: Sequence[tuple[Any, float]]
) -> None:
    """Has an optimizer update each variable with its own multiple of the learning rate.

    Keras hands the learning rate to `update_step` for each variable, but lets weight
    decay read it for all of them.

    Args:
        optimizer: The one that updates weights.
        owner: Whose factors these are. They replace those given before, multiply with
            those of other owners, and end with this object.
        factors: Variables that the optimizer was built for, each with its factor.
    """
    by_owner = vars(optimizer).setdefault("_tfdeep_rates", weakref.WeakKeyDictionary())
    by_owner[owner] = {optimizer._var_key(v): factor for v, factor in factors}
    if _patches.is_installed(optimizer, "update_step"):
        return
    keras_own = optimizer.update_step

    def factor_of(variable: Any) -> float:
        key = optimizer._var_key(variable)
        return float(math.prod(f.get(key, 1.0) for f in by_owner.values()))

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = factor_of(variable)
        rate = learning_rate if factor == 1 else learning_rate * factor
        keras_own(gradient, variable, rate)

    def apply_weight_decay(variables: Sequence[Any]) -> None:
        by_factor: dict[float, list[Any]] = {}
        for variable in variables:
            by_factor.setdefault(factor_of(variable), []).append(variable)
        for factor, group in by_factor.items():
            scaled = _WithRate(optimizer, factor)
            type(optimizer)._apply_weight_decay(scaled, group)

    reason = "trains each variable with its own multiple of the learning rate"
    _patches.install(optimizer, "update_step", update_step, reason)
    _patches.install(optimizer, "_apply_weight_decay", apply_weight_decay, reason)


class _WithRate:
    """An optimizer that reads a multiple of its own learning rate."""

    def __init__(self, optimizer: Any, factor: float) -> None:
        self._optimizer = optimizer
        self._factor = factor

    @property
    def learning_rate(self) -> Any:
        return self._optimizer.learning_rate * self._factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


@contextlib.contextmanager
def schedule_hidden(optimizer: Any) -> Iterator[Any]:
    """Takes away what gives the learning rate, and gives it back; None for a number.

    Keras asks a schedule for its config, which one of a user's own may not have.
    """
    rate = optimizer._learning_rate
    if not callable(rate):
        yield None
        return
    with _patches.replaced(optimizer, "_learning_rate", lambda _: 0.0):
        yield rate


def group_chooser(optimizer: Any) -> Callable[[Any], Any]:
    """How a `MultiOptimizer` chooses a variable's optimizer, the known one first."""
    chosen: dict[int, Any] = {}

    def group_of(variable: Any) -> Any:
        index = optimizer._var_to_optimizer_idx.get(optimizer._var_key(variable))
        if index is not None:
            return optimizer.optimizers[index]
        if id(variable) not in chosen:
            chosen[id(variable)] = optimizer._optimizer_map(variable)
        return chosen[id(variable)]

    return group_of


def groups_kept(old: Any, new: Any) -> dict[str, Any]:
    """What a `MultiOptimizer` holds of its own when it takes over another's state."""
    return {
        "_inner_optimizers": [*old.optimizers, *new.optimizers[len(old.optimizers) :]],
        "_optimizer_map": old._optimizer_map,
        "_var_to_optimizer_idx": old._var_to_optimizer_idx | new._var_to_optimizer_idx,
    }


def trainable_when_compiled(model: Any) -> Any:
    """The `trainable` flag of each layer when the model was compiled; None if unknown.

    Keras keeps it from 3.15 on.
    """
    return getattr(model, "_compiled_trainable_state", None)


def compilation(model: Any) -> Any:
    """An object that a model has from its last `compile`; None before the first.

    Each `compile` makes a new one.
    """
    return getattr(model, "_loss_tracker", None)


def was_traced(train_function: Any) -> bool:
    """Whether a model's train function was called, and keeps what it trained then."""
    counter = getattr(train_function, "experimental_get_tracing_count", None)
    if counter is not None:
        return bool(counter() > 0)
    closure = getattr(train_function, "__closure__", None) or ()
    inside = [cell.cell_contents for cell in closure]
    return any(was_traced(one) for one in inside if callable(one))


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
    if _patches.is_installed(optimizer, name):
        return
    keras_own = getattr(optimizer, name)

    def sum_once(pairs: Any) -> Any:
        summed = getattr(_this_thread, "has_summed", False)
        return list(pairs) if summed else keras_own(pairs)

    _patches.install(optimizer, name, sum_once, "sums over the replicas once")


_this_thread = threading.local()


def compute_loss(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """The loss of a batch as the train step of `fit` computes it."""
    # The argument `training` is one that a model's own `compute_loss` may lack.
    return model._compute_loss(x, y, y_pred, sample_weight, training=True)


def computes_its_own_loss(model: Any) -> bool:
    """Whether the class of a model has a `compute_loss` of its own."""
    return type(model).compute_loss is not keras.Model.compute_loss


def own_losses(layer: Any) -> list[Any]:
    """What a layer itself added to the loss in the last call, without its weights'."""
    return list(layer._get_own_losses())


def clear_losses(model: Any) -> None:
    """Forgets what the layers of a model added to the loss."""
    model._clear_losses()
