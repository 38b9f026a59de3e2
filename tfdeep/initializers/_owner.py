"""Finds the variable and the layer for which an initializer is called.

Keras gives an initializer only a shape, which is the same for a depthwise kernel and
for that of a plain convolution. So it is read from the call stack: the public method
`Layer.add_weight`, and the `keras.Variable` that it makes, are on it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from tfdeep._keras import _owners


@dataclasses.dataclass(frozen=True)
class Owner:
    """The variable for which values are drawn.

    Attributes:
        layer: Its layer; None if there is none or it is not known.
        name: The variable's own name; empty if the initializer was called directly.
        path: The path that Keras gives the variable; empty likewise.
    """

    layer: Any = None
    name: str = ""
    path: str = ""


_set: contextvars.ContextVar[Owner | None] = contextvars.ContextVar(
    "owner", default=None
)


@contextlib.contextmanager
def drawing_for(layer: Any, variable: Any) -> Iterator[None]:
    """Sets the owner that initializers see while the context is open."""
    token = _set.set(Owner(layer, variable.name, variable.path))
    try:
        yield
    finally:
        _set.reset(token)


def current() -> Owner:
    """The owner of the values that are being drawn."""
    owner = _set.get()
    if owner is not None:
        return owner
    variable: Any = None
    for caller, method in _owners.callers((keras.Variable, keras.layers.Layer)):
        if isinstance(caller, keras.Variable):
            variable = variable if variable is not None else caller
        elif variable is not None and method == "add_weight":
            return Owner(caller, variable.name, variable.path)
        elif variable is not None:
            # A variable that was made while only shapes were asked for gets its value
            # later, when its layer is no longer among the callers; a model is.
            _owners.tell(caller)
            layer = _owners.told_layer(variable)
            if layer is not None:
                return Owner(layer, variable.name, variable.path)
    if variable is None:
        return Owner()
    return Owner(None, variable.name, variable.path)
