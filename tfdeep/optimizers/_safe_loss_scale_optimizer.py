"""Loss scaling that looks at the gradients of all replicas."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfdeep._core._gradients import Gradient
from tfdeep._keras import _replicas


@keras.saving.register_keras_serializable("tfdeep")
class SafeLossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' `LossScaleOptimizer`, with the finite check over all replicas.

    Use it in place of the one that `compile` adds under a mixed_float16 policy when
    training on several replicas. Keras looks at the gradients of the first replica
    only: an overflow on another one is applied, and makes every weight NaN. Inside a
    tfdeep wrapper such a step is skipped in any case; with this class the loss scale
    is lowered as well.

    Arguments are those of `keras.optimizers.LossScaleOptimizer`.

    Example:

    >>> clip = tfdeep.optimizers.ClipByGlobalNorm("adam", clip_norm=1.0)
    >>> optimizer = tfdeep.optimizers.SafeLossScaleOptimizer(clip, 1024.0)
    >>> model = tfdeep.models.dnn((4,), hidden_units=[8], num_outputs=2)
    >>> model.compile(optimizer, "mse")  # and is not wrapped again
    """

    def check_finite(self, grads: Sequence[Gradient | None]) -> tf.Tensor:
        finite = super().check_finite(grads)
        [broken] = _replicas.sum_over([tf.cast(~finite, tf.float32)])
        return tf.equal(broken, 0)
