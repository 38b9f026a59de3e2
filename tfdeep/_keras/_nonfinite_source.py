"""Finds the layer that makes the first NaN or infinity, inside other layers too."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdeep._keras import _walk
from tfdeep._keras._patches import replaced


class NonFiniteSource:
    """Looks for the first call with finite inputs and an output that is not.

    What is inside a layer returns before the layer does, so of a layer and those inside
    it the innermost that is to blame is found.

    Attributes:
        path: The path of the layer; None if there is none so far.
        behind: If there is none, the path of the first layer whose input is not finite:
            an operation between layers made it.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self.behind: str | None = None

    @contextlib.contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Looks on, for as long as the context is open, while the model is called."""
        # A loop over time is compiled as a whole: nothing is seen inside.
        found = _walk.layers(model, is_closed=lambda x: isinstance(x, keras.layers.RNN))
        with contextlib.ExitStack() as stack:
            for path, layer in found.items():
                around = functools.partial(self._seen, path)
                stack.enter_context(replaced(layer, "call", around))
            yield

    def _seen(self, path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        @tf.autograph.experimental.do_not_convert
        def seen(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if self.path is None and not _is_finite(result):
                if _is_finite((args, kwargs)):
                    self.path, self.behind = path, None
                elif self.behind is None:
                    self.behind = path
            return result

        return seen


def _is_finite(nest: Any) -> bool:
    return all(
        bool(tf.reduce_all(tf.math.is_finite(x)))
        for x in tf.nest.flatten(nest)
        if tf.is_tensor(x) and hasattr(x, "numpy") and x.dtype.is_floating
    )
