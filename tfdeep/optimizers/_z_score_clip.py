"""Clipping the norms that stand out from those before."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._arguments import number, whole_number
from tfdeep.optimizers._global_norm import GlobalNormWrapper
from tfdeep.optimizers._refusals import fix_for


@keras.saving.register_keras_serializable("tfdeep")
class ZScoreClip(GlobalNormWrapper):
    """Shortens all gradients together when their joint norm is an outlier.

    Use it for long trainings with rare spikes: the usual step passes untouched, and
    the further a step stands out, the more it is shortened. With n_t the joint norm
    at step t, and mu and sigma the moving mean and deviation of the norms before:

        z  =  (n_t - mu) / sigma
        g_i  <-  g_i * c / n_t  if z > z_max,    c = mu + z_max^2 / z * sigma

        m = min(n_t, c):  mu <- a mu + (1 - a) m,
                          sigma^2 <- a sigma^2 + (1 - a) (m - mu)^2

    The first `warmup_steps` steps pass, and give mu and sigma their first values. A
    norm that is not finite changes neither.

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        z_threshold: Float > 0. z_max, in standard deviations.
        decay: Float > 0 and < 1. a, the part of mu and sigma^2 that a step keeps.
        warmup_steps: Integer > 1, in steps.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or `inner_optimizer`
            cannot work inside a wrapper.

    Example:

    >>> weight = keras.Variable([0.0])
    >>> sgd = keras.optimizers.SGD(learning_rate=1.0)
    >>> optimizer = tfdeep.optimizers.ZScoreClip(sgd, warmup_steps=4)
    >>> for norm in [1.0, 2.0, 1.0, 2.0]:
    ...     optimizer.apply([keras.ops.array([norm])], [weight])
    >>> optimizer.apply([keras.ops.array([50.0])], [weight])
    >>> print(weight.numpy().round(2))  # 6, then 1.5 + 2.5^2 / 97 * .5
    [-7.53]

    Reference:
        Kumar et al., 2025, https://arxiv.org/abs/2504.02507 (ZClip).
    """

    def __init__(
        self,
        inner_optimizer: Any,
        z_threshold: float = 2.5,
        decay: float = 0.97,
        warmup_steps: int = 25,
        name: str | None = None,
    ) -> None:
        z_threshold = number(
            z_threshold,
            "z_threshold",
            "ZScoreClip",
            above=0,
            unit="standard deviations",
            fix=fix_for(z_threshold, "ZScoreClip", "z_threshold=2.5"),
        )
        decay = number(decay, "decay", "ZScoreClip", above=0, below=1, example=0.97)
        warmup_steps = whole_number(
            warmup_steps,
            "warmup_steps",
            "ZScoreClip",
            above=1,
            unit="steps",
            example=25,
        )
        super().__init__(inner_optimizer, name=name)
        self.z_threshold = z_threshold
        self.decay = decay
        self.warmup_steps = warmup_steps

    def build_state(self, variables: list[keras.Variable]) -> None:
        self._seen = self.add_variable((), dtype="int", name="norms_seen")
        self._mean = self.add_variable((), name="mean_norm")
        self._variance = self.add_variable((), name="variance_of_norms")

    def threshold(self, norm: tf.Tensor) -> tf.Tensor:
        norm = tf.cast(norm, tf.float32)
        mean, deviation = self._mean.value, tf.sqrt(self._variance.value)
        warming = self._seen.value < self.warmup_steps
        usual = mean + self.z_threshold * (deviation + _EPSILON)
        z = (norm - mean) / (deviation + _EPSILON)
        shortened = mean + self.z_threshold**2 / z * deviation
        threshold = tf.where(norm > usual, shortened, usual)
        threshold = tf.where(warming, np.float32(np.inf), threshold)
        self._remember(tf.minimum(norm, threshold), tf.math.is_finite(norm), warming)
        return threshold

    def _remember(self, norm: tf.Tensor, usable: tf.Tensor, warming: tf.Tensor) -> None:
        """Takes one norm into the mean and variance."""
        seen, mean, variance = self._seen.value, self._mean.value, self._variance.value
        # Equal parts of all norms while warming up, as their plain mean has it.
        count = tf.cast(seen, tf.float32)
        keep = tf.where(warming, count / (count + 1), self.decay)
        new_mean = keep * mean + (1 - keep) * norm
        deviation = tf.where(warming, norm - mean, norm - new_mean)
        new_variance = keep * variance + (1 - keep) * deviation * (norm - new_mean)
        self._mean.assign(tf.where(usable, new_mean, mean))
        self._variance.assign(tf.where(usable, new_variance, variance))
        self._seen.assign(seen + tf.cast(usable, seen.dtype))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "z_threshold": self.z_threshold,
            "decay": self.decay,
            "warmup_steps": self.warmup_steps,
        }


_EPSILON = 1e-6  # as in the authors' program: norms that never vary have no deviation
