"""Max-norm over the weights that come into one unit, whatever the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._arguments import is_whole_number, number
from tfdeep._core._explain import explain
from tfdeep._keras import _owners
from tfdeep.errors import InvalidArgumentError


@keras.saving.register_keras_serializable("tfdeep")
class FanInMaxNorm(keras.constraints.Constraint):
    """Bounds the norm of the weights that come into each unit.

    Use it with dropout, or wherever weights must stay bounded. After each
    step, for the incoming weights w of a unit:

        w  <-  w * min(1, c / ||w||)

    What comes into a unit depends on the layer: a column of a dense or recurrent
    kernel, a filter of a convolution (also grouped or transposed), a channel's window
    of a depthwise one, a head's output of attention, a row of an embedding.
    `keras.constraints.MaxNorm` takes axis 0 of all of them, which does not bound
    the filters of a convolution; and it shrinks weights that are within the bound.

    Keras applies constraints after steps, so initial values are not bounded before
    the first one; `tfdeep.surgery.constrain` bounds them at once.

    Args:
        max_value: Float > 0. The constant c, in units of weight.
        axis: Axis or axes over which to take the norm. None takes the axes of one unit
            in the layer of the weight, which `fit` and `tfdeep.surgery.constrain` tell.
            In your own loop, give `axis` for kernels of rank 3 and more.

    Raises:
        InvalidArgumentError: If `max_value` is not a finite number > 0, or `axis` is
            not made of whole numbers.
        ModelError: At the first step, if `axis` is None and the axes depend on a layer
            that the constraint was not told.

    Example:

    >>> layer = keras.layers.Dense(
    ...     2, kernel_constraint=tfdeep.constraints.FanInMaxNorm(1.0)
    ... )
    >>> layer.build((None, 2))
    >>> _ = layer.kernel.assign([[3.0, 0.3], [4.0, 0.4]])
    >>> print(layer.kernel.constraint(layer.kernel).numpy())  # norms 5 and 0.5
    [[0.6 0.3]
     [0.8 0.4]]

    Reference:
        Srivastava et al., 2014, https://jmlr.org/papers/v15/srivastava14a.html
        (section 5.1).
    """

    def __init__(
        self, max_value: float = 2.0, axis: int | Sequence[int] | None = None
    ) -> None:
        self.max_value = number(
            max_value,
            "max_value",
            "FanInMaxNorm",
            above=0,
            unit="units of weight",
            example=2.0,
        )
        axes: Any = [axis] if is_whole_number(axis) else axis
        if axes is not None and not all(map(is_whole_number, axes)):
            raise InvalidArgumentError(
                explain(
                    "`FanInMaxNorm` cannot take norms over these axes.",
                    received=f"axis={axis!r}",
                    expected="a whole number, several, or None to go by the layer",
                    fix="for example `axis=(0, 1, 2)` for the kernel of a Conv2D",
                )
            )
        self.axis = None if axes is None else tuple(map(int, axes))

    def __call__(self, w: Any) -> Any:
        axes = _axes_of(w) if self.axis is None else self.axis
        value = tf.convert_to_tensor(w)
        exact = tf.cast(value, tf.float32) if value.dtype.size < 4 else value
        norms = tf.sqrt(tf.reduce_sum(tf.square(exact), axis=axes, keepdims=True))
        bounded = tf.where(
            norms > self.max_value, exact * (self.max_value / norms), exact
        )
        return tf.cast(bounded, value.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"max_value": self.max_value, "axis": self.axis}


def _axes_of(w: Any) -> tuple[int, ...]:
    """The axes of one unit's weights in a variable."""
    if not isinstance(w, keras.Variable):
        return tuple(range(max(len(w.shape) - 1, 1)))
    fix = "give the constraint its `axis`, or use `tfdeep.surgery.constrain(model)`"
    return _owners.unit_axes(w, "FanInMaxNorm", fix)
