"""Sees what the layers of a model compute while the model is called.

Keras has no hook for it. For as long as it looks on, `call` and `activation` of each
layer object are replaced by functions that keep what passes and change nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._guard import Guard
from tfdeep._keras._patches import replaced


@dataclasses.dataclass
class LayerCall:
    """One call of a layer.

    Attributes:
        layer: The layer.
        input: The first tensor it was given.
        output: The first tensor it returned.
        before_activation: What its activation function was given, where that is seen.
        activation: The activation function; None if there is none.
    """

    layer: Any
    input: Any
    output: Any = None
    before_activation: Any = None
    activation: Callable[[Any], Any] | None = None


class LayerCalls:
    """Keeps the last call of each layer, for each thread that calls the model.

    The replicas of a strategy are traced in threads of their own.

    Args:
        layers: The layers to look at, by path.
        guard: Leaves out a call that cannot be looked at.
    """

    def __init__(self, layers: Mapping[str, Any], guard: Guard | None = None) -> None:
        self._layers = layers
        self._guard = guard or Guard("tfdeep")
        self._by_thread: dict[int, dict[str, LayerCall]] = {}
        self._is_open = False

    def take(self) -> dict[str, LayerCall]:
        """The calls in this thread since the last take, in their order."""
        return self._by_thread.pop(threading.get_ident(), {})

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks on while the context is open."""
        if self._is_open:
            yield
            return
        self._is_open = True
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_is_open", False)
            for path, layer in self._layers.items():
                stack.enter_context(
                    replaced(layer, "call", functools.partial(self._seen, path))
                )
                # Recurrent layers only pass on the activation of their cell.
                is_own = not isinstance(
                    getattr(type(layer), "activation", None), property
                )
                if is_own and getattr(layer, "activation", None) is not None:
                    stack.enter_context(
                        replaced(
                            layer,
                            "activation",
                            functools.partial(self._activated, path),
                        )
                    )
            yield

    def _calls(self) -> dict[str, LayerCall]:
        return self._by_thread.setdefault(threading.get_ident(), {})

    def _seen(self, path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        @tf.autograph.experimental.do_not_convert
        def seen(*args: Any, **kwargs: Any) -> Any:
            what = f"the outputs of {path}"
            begun = self._guard(what, self._begin, path, (args, kwargs))
            result = call(*args, **kwargs)
            if begun is not None:
                self._guard(what, self._end, begun, result, call)
            return result

        return seen

    def _begin(self, path: str, given: Any) -> LayerCall | None:
        tensor = _first_tensor(given)
        if not _is_computed(tensor):  # Keras asks for shapes only
            return None
        calls = self._calls()
        calls.pop(path, None)
        calls[path] = LayerCall(self._layers[path], tensor)
        return calls[path]

    def _end(self, seen: LayerCall, result: Any, call: Callable[..., Any]) -> None:
        seen.output = _first_tensor(result)
        if _is_activation_layer(seen.layer):
            seen.before_activation = seen.input
            seen.activation = call

    def _activated(self, path: str, activation: Callable[..., Any]) -> Any:
        @functools.wraps(activation)
        @tf.autograph.experimental.do_not_convert
        def activated(x: Any, *args: Any, **kwargs: Any) -> Any:
            current = self._calls().get(path)
            if current is not None and _is_computed(x):
                current.before_activation = x
                current.activation = activation
            return activation(x, *args, **kwargs)

        return activated


def _is_activation_layer(layer: Any) -> bool:
    kinds = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
    return isinstance(layer, kinds)


def _first_tensor(nest: Any) -> Any:
    return next((x for x in tf.nest.flatten(nest) if tf.is_tensor(x)), None)


def _is_computed(tensor: Any) -> bool:
    return tf.is_tensor(tensor) and not isinstance(tensor, keras.KerasTensor)
