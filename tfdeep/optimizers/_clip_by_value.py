"""Clipping each entry of the gradient."""

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
class ClipByValue(OptimizerWrapper):
    """Limits every entry of every gradient to `[-clip_value, clip_value]`.

    Use it when single entries explode. It changes the direction of the update; to
    keep the direction, use `ClipByGlobalNorm`.

        g_ij  <-  min(max(g_ij, -c), c)

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        clip_value: Float > 0. The largest absolute entry, in gradient units (loss per
            unit of weight), of the gradient summed over all replicas.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `clip_value` is not a finite number > 0, or
            `inner_optimizer` cannot work inside a wrapper.

    Example:

    >>> weight = keras.Variable([0.0, 0.0, 0.0])
    >>> sgd = keras.optimizers.SGD(learning_rate=1.0)
    >>> optimizer = tfdeep.optimizers.ClipByValue(sgd, clip_value=1.0)
    >>> optimizer.apply([keras.ops.array([5.0, -0.5, -9.0])], [weight])
    >>> print(weight.numpy())
    [-1.   0.5  1. ]

    Reference:
        Mikolov, 2012, Statistical language models based on neural networks, ch. 3.
    """

    def __init__(
        self, inner_optimizer: Any, clip_value: float, name: str | None = None
    ) -> None:
        clip_value = number(
            clip_value,
            "clip_value",
            "ClipByValue",
            above=0,
            unit="gradient units",
            fix=fix_for(clip_value, "ClipByValue", "clip_value=1"),
        )
        super().__init__(inner_optimizer, name=name)
        self.clip_value = clip_value

    def transform(
        self, gradients: list[Gradient], variables: list[keras.Variable]
    ) -> list[Gradient]:
        # A sparse gradient may hold one row several times; only their sum can be
        # compared with the bound, so it is made dense.
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        clipped = [
            tf.clip_by_value(gradient, -self.clip_value, self.clip_value)
            for gradient in dense
        ]
        self.record(
            norm=_gradients.global_norm(dense),
            clipped_norm=_gradients.global_norm(clipped),
            threshold=self.clip_value,
        )
        return clipped

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "clip_value": self.clip_value}
