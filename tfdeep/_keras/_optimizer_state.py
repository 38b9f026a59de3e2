"""Fits a built optimizer to the variables that train, without forgetting anything."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from tfdeep._keras import _internals, _optimizers

# By optimizer: its variables for those of the model that it does not train for now.
_SET_ASIDE: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()

_AVERAGE = "_model_variables_moving_average"


def known_variables(model: Any) -> list[Any]:
    """The variables that a model's optimizer was built for; none if it is not built."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return []
    return _internals.built_for(optimizer)


def fits(model: Any) -> bool:
    """Whether a model's optimizer is not built, or for just what trains."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return True
    known = [id(variable) for variable in known_variables(model)]
    return known == [id(variable) for variable in model.trainable_variables]


def fit_to_trainable(model: Any) -> None:
    """Makes a compiled model's optimizer one for just the variables that train.

    Keras builds an optimizer once. Afterwards it refuses variables that are unfrozen,
    and moves frozen ones: moving averages of weights are written back by position,
    and in some cases to every variable the optimizer was built for. So an optimizer
    like it is built anew, in which the variables that the old one had for what still
    trains (iterations, learning rate, moments) take their places. Those for what is
    frozen are set aside until it trains again.

    The objects stay the same: whoever holds the optimizer holds the right one, and a
    step that was traced before is right again when the same variables train.
    """
    if not fits(model):
        with model.distribute_strategy.scope():
            _build_anew(model.optimizer, list(model.trainable_variables))


def _build_anew(optimizer: Any, variables: list[Any]) -> None:
    fresh = _unbuilt(optimizer)
    fresh.build(variables)
    known = dict(_SET_ASIDE.get(optimizer, {}))
    known.update({key: variable for key, (variable, _) in _state(optimizer).items()})
    places: dict[int, Any] = {}
    for key, (new, owner) in _state(fresh).items():
        old = known.get(key)
        if old is not None and tuple(old.shape) == tuple(new.shape):
            places[id(new)] = known.pop(key)
        elif owner is not None and _AVERAGE in key:
            new.assign(owner)  # Keras does so at its first step only
    for one in _all(fresh):
        _internals.substitute(one, places)
    _become(optimizer, fresh)
    _SET_ASIDE[optimizer] = known


def _unbuilt(optimizer: Any) -> Any:
    """An optimizer with the same settings that was not built yet.

    Inner optimizers and schedules are handed over as they are, not as a config:
    those of a user's own need not be registered, or have one.
    """
    kind = type(optimizer)
    with contextlib.ExitStack() as stack:
        schedules = [
            stack.enter_context(_internals.schedule_hidden(one))
            for one in _all(optimizer)
        ]
        config = optimizer.get_config()
    if hasattr(optimizer, "inner_optimizer"):
        del config["inner_optimizer"]
        return kind(_unbuilt(optimizer.inner_optimizer), **config)
    if _is_multi(optimizer):
        group_of = _internals.group_chooser(optimizer)
        likes = {id(group): _unbuilt(group) for group in optimizer.optimizers}
        config["optimizer_map"] = lambda v: likes.get(id(group_of(v)), group_of(v))
        fresh = kind(**config)
        fresh.optimizers.extend(likes.values())
        return fresh
    if schedules[0] is not None:
        config["learning_rate"] = schedules[0]
    return kind.from_config(config)


def _all(optimizer: Any) -> list[Any]:
    """An optimizer and all those inside it."""
    chain = _optimizers.chain(optimizer)
    return chain + (chain[-1].optimizers if _is_multi(chain[-1]) else [])


def _is_multi(optimizer: Any) -> bool:
    return _optimizers.groups(optimizer) != [optimizer]


def _state(optimizer: Any) -> dict[Any, tuple[Any, Any]]:
    """Each variable of an optimizer, and of those inside, with whose state it is."""
    return {
        (place, *key): entry
        for place, one in enumerate(_all(optimizer))
        for key, entry in _internals.optimizer_state(one).items()
    }


def _become(old: Any, new: Any) -> None:
    """Gives the object `old` the state of `new`, and likewise each optimizer inside."""
    inside = {}
    if hasattr(old, "inner_optimizer"):
        _become(old.inner_optimizer, new.inner_optimizer)
        inside["inner_optimizer"] = old.inner_optimizer
    elif _is_multi(old):
        for old_group, new_group in zip(old.optimizers, new.optimizers, strict=False):
            _become(old_group, new_group)
        inside = _internals.groups_kept(old, new)
    before = dict(vars(old))
    vars(old).update(vars(new))
    # What was set after construction, or is missing in a config, stays.
    vars(old).update(
        {
            name: value
            for name, value in before.items()
            if name != "built" and (callable(value) or isinstance(value, _PLAIN))
        }
    )
    for name, value in inside.items():
        setattr(old, name, value)


_PLAIN = (bool, int, float, str, type(None))
