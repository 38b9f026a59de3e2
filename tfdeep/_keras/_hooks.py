"""Hears of calls of a TensorFlow class' method, in the whole process, for a while.

A loop of one's own calls neither a method of its model nor of a callback at each step.
What it calls is `tf.GradientTape.gradient`, and the function that it gave to
`tf.function`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

Listener = Callable[..., None]

_lock = threading.RLock()


@dataclasses.dataclass
class _Hook:
    before: Callable[..., Any]
    replacement: Callable[..., Any]
    listeners: list[Listener]


_hooks: dict[tuple[type, str], _Hook] = {}

# The class of what `tf.function` returns, which TensorFlow does not publish.
_FUNCTION = type(tf.function(lambda: None))


def gradients(listener: Listener) -> contextlib.AbstractContextManager[None]:
    """Has `listener(tape, target, sources, ...)` called after `tape.gradient(...)`."""
    return _heard(tf.GradientTape, "gradient", listener)


def functions(listener: Listener) -> contextlib.AbstractContextManager[None]:
    """Has `listener(function, ...)` called after each call of a `tf.function`."""
    return _heard(_FUNCTION, "__call__", listener)


@contextlib.contextmanager
def _heard(owner: type, name: str, listener: Listener) -> Iterator[None]:
    with _lock:
        if (owner, name) not in _hooks:
            before, listeners = vars(owner)[name], list[Listener]()
            replacement = _told(before, listeners)
            _hooks[owner, name] = _Hook(before, replacement, listeners)
            setattr(owner, name, replacement)
        hook = _hooks[owner, name]
        hook.listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            hook.listeners.remove(listener)
            if not hook.listeners:
                del _hooks[owner, name]
                if vars(owner)[name] is hook.replacement:
                    setattr(owner, name, hook.before)


def _told(method: Callable[..., Any], listeners: list[Listener]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        for listener in tuple(listeners):
            listener(self, *args, **kwargs)
        return result

    return unconverted(told)


def unconverted(wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Has AutoGraph call a wrapper as it is, also in a function that it converts."""
    vars(wrapper)["autograph_info__"] = None
    return wrapper


def as_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as AutoGraph would call it where the wrapper around it is called."""
    convert = tf.__internal__.autograph
    converted: Callable[..., Any] = convert.tf_convert(
        function, convert.control_status_ctx(), convert_by_default=False
    )
    return converted
