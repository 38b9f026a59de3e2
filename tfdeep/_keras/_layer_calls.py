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
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers
        self._by_thread: dict[int, dict[str, LayerCall]] = {}

    def take(self) -> dict[str, LayerCall]:
        """The calls in this thread since the last take, in their order."""
        return self._by_thread.pop(threading.get_ident(), {})

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks on while the context is open."""
        with contextlib.ExitStack() as stack:
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
            given = _first_tensor((args, kwargs))
            if not _is_computed(given):  # Keras asks for shapes only
                return call(*args, **kwargs)
            seen_call = LayerCall(self._layers[path], given)
            calls = self._calls()
            calls.pop(path, None)
            calls[path] = seen_call
            result = call(*args, **kwargs)
            seen_call.output = _first_tensor(result)
            if _is_activation_layer(seen_call.layer):
                seen_call.before_activation = given
                seen_call.activation = call
            return result

        return seen

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
