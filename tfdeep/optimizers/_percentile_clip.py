"""Clipping at a percentile of the norms seen so far."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._arguments import number, whole_number
from tfdeep.optimizers._global_norm import GlobalNormWrapper
from tfdeep.optimizers._refusals import fix_for


@keras.saving.register_keras_serializable("tfdeep")
class PercentileClip(GlobalNormWrapper):
    """Shortens all gradients together to a percentile of the recent joint norms.

    Use it when the right `clip_norm` is not known or changes while the network
    trains. With n_t the joint norm at step t:

        g_i  <-  g_i * min(1, c_t / n_t)
        c_t  =   p-th percentile of n_(t-w+1), ..., n_t

    With the default of 10, nine steps of ten are shortened: it makes the steps of
    about the same length. A norm that is zero or not finite is not remembered.

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        percentile: Float > 0 and <= 100.
        window: Integer > 0. How many norms are remembered, in steps. The paper
            remembers all; a window forgets the start of the training.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `percentile` or `window` is out of its range, or
            `inner_optimizer` cannot work inside a wrapper.

    Example:

    >>> weight = keras.Variable([0.0])
    >>> sgd = keras.optimizers.SGD(learning_rate=1.0)
    >>> optimizer = tfdeep.optimizers.PercentileClip(sgd, percentile=50.0)
    >>> for norm in [1.0, 3.0, 100.0]:
    ...     optimizer.apply([keras.ops.array([norm])], [weight])
    >>> print(weight.numpy())  # 1, then 2 (between 1 and 3), then 3
    [-6.]

    Reference:
        Seetharaman et al., 2020, https://arxiv.org/abs/2007.14469 (AutoClip).
    """

    def __init__(
        self,
        inner_optimizer: Any,
        percentile: float = 10.0,
        window: int = 1000,
        name: str | None = None,
    ) -> None:
        percentile = number(
            percentile,
            "percentile",
            "PercentileClip",
            above=0,
            at_most=100,
            unit="percent",
            fix=fix_for(percentile, "PercentileClip", "percentile=10"),
        )
        window = whole_number(
            window, "window", "PercentileClip", above=0, unit="steps", example=1000
        )
        super().__init__(inner_optimizer, name=name)
        self.percentile = percentile
        self.window = window

    def build_state(self, variables: list[keras.Variable]) -> None:
        self._seen = self.add_variable((), dtype="int", name="norms_seen")
        # What is not seen yet sorts behind what is.
        self._norms = self.add_variable(
            (self.window,),
            initializer=keras.initializers.Constant(np.inf),
            name="norms",
        )

    def threshold(self, norm: tf.Tensor) -> tf.Tensor:
        norm = tf.cast(norm, tf.float32)
        usable = tf.math.is_finite(norm) & (norm > 0)
        place = self._seen.value % self.window
        is_place = tf.range(self.window, dtype=place.dtype) == place
        norms = tf.where(is_place & usable, norm, self._norms.value)
        seen = self._seen.value + tf.cast(usable, self._seen.dtype)
        self._norms.assign(norms)
        self._seen.assign(seen)
        known = tf.cast(tf.minimum(seen, self.window), tf.float32)
        return _percentile(tf.sort(norms), known, self.percentile)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "percentile": self.percentile,
            "window": self.window,
        }


def _percentile(ordered: tf.Tensor, count: tf.Tensor, percentile: float) -> tf.Tensor:
    """The percentile of the first `count` values, linear between neighbours."""
    position = tf.maximum(count - 1, 0) * (percentile / 100)
    below = tf.floor(position)
    low = tf.gather(ordered, tf.cast(below, tf.int32))
    high = tf.gather(ordered, tf.cast(tf.math.ceil(position), tf.int32))
    # Not low + (high - low) * part: before the first norm both are infinite.
    return tf.where(low == high, low, low + (high - low) * (position - below))
