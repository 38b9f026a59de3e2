"""Lets an optimizer train more variables without forgetting what it knows."""

from __future__ import annotations

import collections
from typing import Any

from tfdeep._core import _keras_internals


def keep_training(model: Any) -> None:
    """Makes a compiled model's optimizer ready for all its trainable variables.

    A Keras optimizer trains only the variables it was built for; a variable that is
    unfrozen later is unknown to it. The optimizer is built anew for the old and the
    new variables, and its state (iterations, learning rate, moments) is carried over.
    The object stays the same, so whoever holds it still holds the right one.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return
    known = _keras_internals.built_for(optimizer)
    known_ids = {id(variable) for variable in known}
    new = [v for v in model.trainable_variables if id(v) not in known_ids]
    if new:
        _build_anew(optimizer, [*known, *new])


def _build_anew(optimizer: Any, variables: list[Any]) -> None:
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(variables)
    _carry_over(optimizer.variables, fresh.variables)
    _become(optimizer, fresh)


def _carry_over(old: list[Any], new: list[Any]) -> None:
    """Copies values between optimizer variables of the same name, in order."""
    by_name: dict[str, Any] = collections.defaultdict(collections.deque)
    for variable in old:
        by_name[variable.name].append(variable)
    for variable in new:
        same = by_name[variable.name]
        if same and same[0].shape == variable.shape:
            variable.assign(same.popleft())


def _become(old: Any, new: Any) -> None:
    """Gives the object `old` the state of `new`, and likewise each inner optimizer."""
    old_inner = getattr(old, "inner_optimizer", None)
    if old_inner is not None:
        _become(old_inner, new.inner_optimizer)
    vars(old).clear()
    vars(old).update(vars(new))
    if old_inner is not None:
        old.inner_optimizer = old_inner
