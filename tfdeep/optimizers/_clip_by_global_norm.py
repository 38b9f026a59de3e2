"""Clipping the norm of all gradients together."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._arguments import number
from tfdeep.optimizers._global_norm import GlobalNormWrapper
from tfdeep.optimizers._refusals import fix_for


@keras.saving.register_keras_serializable("tfdeep")
class ClipByGlobalNorm(GlobalNormWrapper):
    """Shortens all gradients together when their joint L2 norm is above `clip_norm`.

    Use it when rare, huge gradients throw training off. The direction of the update
    is kept; only its length is bounded:

        g_i  <-  g_i * min(1, c / n),     n = sqrt(sum_i ||g_i||^2)

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        clip_norm: Float > 0. The largest joint L2 norm, in gradient units (loss per
            unit of weight), of the gradients summed over all replicas.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `clip_norm` is not a finite number > 0, or
            `inner_optimizer` cannot work inside a wrapper.

    Example:

    >>> first, second = keras.Variable([0.0]), keras.Variable([0.0])
    >>> sgd = keras.optimizers.SGD(learning_rate=1.0)
    >>> optimizer = tfdeep.optimizers.ClipByGlobalNorm(sgd, clip_norm=5.0)
    >>> gradients = [keras.ops.array([6.0]), keras.ops.array([8.0])]
    >>> optimizer.apply(gradients, [first, second])
    >>> print(first.numpy(), second.numpy())
    [-3.] [-4.]

    Reference:
        Pascanu et al., 2013, https://arxiv.org/abs/1211.5063 (Algorithm 1).
    """

    def __init__(
        self, inner_optimizer: Any, clip_norm: float, name: str | None = None
    ) -> None:
        clip_norm = number(
            clip_norm,
            "clip_norm",
            "ClipByGlobalNorm",
            above=0,
            unit="gradient units",
            fix=fix_for(clip_norm, "ClipByGlobalNorm", "clip_norm=1"),
        )
        super().__init__(inner_optimizer, name=name)
        self.clip_norm = clip_norm

    def threshold(self, norm: tf.Tensor) -> float:
        return self.clip_norm

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "clip_norm": self.clip_norm}
