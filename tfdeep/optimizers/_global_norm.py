"""What the rules share that shorten all gradients together."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core import _gradients
from tfdeep._core._gradients import Gradient
from tfdeep.optimizers._wrapper import OptimizerWrapper


class GlobalNormWrapper(OptimizerWrapper):
    """Shortens all gradients together to a threshold on their joint L2 norm.

    A gradient with a NaN passes as it is; one whose squares overflow float32 becomes
    zero, and counts as clipped. `SkipNonFinite` is for both.
    """

    def threshold(self, norm: tf.Tensor) -> Any:
        """The largest joint norm that passes; may depend on this and earlier norms.

        Args:
            norm: Scalar; NaN or infinite if an entry is.
        """
        raise NotImplementedError

    def transform(
        self, gradients: list[Gradient], variables: list[keras.Variable]
    ) -> list[Gradient]:
        norm = _gradients.global_norm(gradients)
        threshold = tf.cast(self.threshold(norm), norm.dtype)
        factor = tf.where(norm > threshold, threshold / norm, 1.0)
        clipped_norm = tf.math.multiply_no_nan(norm, factor)  # infinity times 0 is 0
        self.record(norm=norm, clipped_norm=clipped_norm, threshold=threshold)
        return [_gradients.scale(gradient, factor) for gradient in gradients]
