"""Fits a built optimizer to the variables that train, without forgetting anything."""

from __future__ import annotations

import collections
import weakref
from typing import Any

import numpy as np

from tfdeep._core import _keras_internals

# By optimizer: the state of variables that it does not train for the time being.
_SET_ASIDE: weakref.WeakKeyDictionary[Any, dict[str, list[np.ndarray]]] = (
    weakref.WeakKeyDictionary()
)


def fit_to_trainable(model: Any) -> None:
    """Makes a compiled model's optimizer one for just the variables that train.

    Keras builds an optimizer once. Afterwards it refuses variables that are unfrozen,
    and moves frozen ones: moving averages of weights are written back by position,
    and in some cases to every variable the optimizer was built for. So the optimizer
    is built anew, as Keras would build it when loading the model, and its state
    (iterations, learning rate, moments) is carried over by name. What it knows of a
    variable that is frozen is set aside until that variable trains again.

    The objects stay the same, so whoever holds the optimizer holds the right one.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return
    variables = list(model.trainable_variables)
    known = [id(variable) for variable in _keras_internals.built_for(optimizer)]
    if variables and known != [id(variable) for variable in variables]:
        with model.distribute_strategy.scope():
            _build_anew(optimizer, variables)


def _build_anew(optimizer: Any, variables: list[Any]) -> None:
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(variables)
    known = collections.defaultdict(list, _SET_ASIDE.get(optimizer, {}))
    for name, values in _by_name(optimizer).items():
        known[name] = [variable.numpy() for variable in values]
    for name, new in _by_name(fresh).items():
        old = known.pop(name, [])
        for variable, value in zip(new, old, strict=False):
            if tuple(variable.shape) == value.shape:
                variable.assign(value)
    _become(optimizer, fresh)
    _SET_ASIDE[optimizer] = dict(known)


def _by_name(optimizer: Any) -> dict[str, list[Any]]:
    """An optimizer's variables by name; in a chain, one name may stand for several."""
    by_name: dict[str, list[Any]] = collections.defaultdict(list)
    for variable in optimizer.variables:
        by_name[variable.name].append(variable)
    return by_name


def _become(old: Any, new: Any) -> None:
    """Gives the object `old` the state of `new`, and likewise each inner optimizer."""
    old_inner = getattr(old, "inner_optimizer", None)
    if old_inner is not None:
        _become(old_inner, new.inner_optimizer)
    # What was set after construction, such as `exclude_from_weight_decay`, stays.
    vars(old).update(vars(new))
    if old_inner is not None:
        old.inner_optimizer = old_inner
