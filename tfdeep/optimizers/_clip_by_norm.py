"""Clipping the norm of each variable's gradient."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core import _gradients
from tfdeep._core._arguments import number
from tfdeep._core._gradients import Gradient
from tfdeep.optimizers._refusals import fix_for
from tfdeep.optimizers._wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable("tfdeep")
class ClipByNorm(OptimizerWrapper):
    """Shortens each variable's gradient whose L2 norm is above `clip_norm`.

    Use it when the layers need limits of their own. It keeps the direction within a
    variable, but not between variables; `ClipByGlobalNorm` keeps both.

        g_i  <-  g_i * min(1, c / ||g_i||)

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        clip_norm: Float > 0. The largest L2 norm of one variable's gradient, in
            gradient units (loss per unit of weight), summed over all replicas.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `clip_norm` is not a finite number > 0, or
            `inner_optimizer` cannot work inside a wrapper.

    Example:

    >>> first, second = keras.Variable([0.0, 0.0]), keras.Variable([0.0])
    >>> sgd = keras.optimizers.SGD(learning_rate=1.0)
    >>> optimizer = tfdeep.optimizers.ClipByNorm(sgd, clip_norm=2.5)
    >>> gradients = [keras.ops.array([3.0, 4.0]), keras.ops.array([0.5])]
    >>> optimizer.apply(gradients, [first, second])
    >>> print(first.numpy(), second.numpy())
    [-1.5 -2. ] [-0.5]

    Reference:
        Pascanu et al., 2013, https://arxiv.org/abs/1211.5063 (applied by variable).
    """

    def __init__(
        self, inner_optimizer: Any, clip_norm: float, name: str | None = None
    ) -> None:
        clip_norm = number(
            clip_norm,
            "clip_norm",
            "ClipByNorm",
            above=0,
            unit="gradient units",
            fix=fix_for(clip_norm, "ClipByNorm", "clip_norm=1"),
        )
        super().__init__(inner_optimizer, name=name)
        self.clip_norm = clip_norm

    def transform(
        self, gradients: list[Gradient], variables: list[keras.Variable]
    ) -> list[Gradient]:
        norms = _gradients.l2_norms(gradients)
        factors = tf.where(norms > self.clip_norm, self.clip_norm / norms, 1.0)
        self.record(
            norm=tf.norm(norms),
            clipped_norm=tf.norm(tf.math.multiply_no_nan(norms, factors)),
            threshold=self.clip_norm,
        )
        return [
            _gradients.scale(gradient, factors[i])
            for i, gradient in enumerate(gradients)
        ]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "clip_norm": self.clip_norm}
