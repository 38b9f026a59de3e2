"""Finds the variable and the layer for which an initializer is called.

Keras gives an initializer only a shape, which is the same for a depthwise kernel and
for that of a plain convolution. So it is read from the call stack: the public method
`Layer.add_weight`, and the `keras.Variable` that it makes, are on it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import keras

from tfdeep._keras import _internals


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
    frame = inspect.currentframe()
    while frame is not None:
        me: Any = frame.f_locals.get("self")
        if variable is None and issubclass(type(me), keras.Variable):
            variable = me
        elif variable is not None and issubclass(type(me), keras.layers.Layer):
            if frame.f_code.co_name == "add_weight":
                return Owner(me, variable.name, variable.path)
            # A variable that was made for its shape only gets its value later, when
            # its layer is no longer on the stack; a model is.
            layer = _layer_inside(me, variable)
            if layer is not None:
                return Owner(layer, variable.name, variable.path)
        frame = frame.f_back
    if variable is None:
        return Owner()
    return Owner(None, variable.name, variable.path)


def _layer_inside(layer: Any, variable: Any) -> Any:
    """The layer in `layer`, itself included, that has made `variable`."""
    waiting, seen = [layer], {id(layer)}
    while waiting:
        layer = waiting.pop()
        if any(v is variable for v in _internals.declared_trainable(layer)):
            return layer
        for inner in _internals.sublayers(layer):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return None
