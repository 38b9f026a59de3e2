"""The normalization of AlexNet, over neighboring channels."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._arguments import flag, number, one_of, whole_number
from tfdeep.layers._configured import ConfiguredLayer


@keras.saving.register_keras_serializable("tfdeep")
class LocalResponseNormalization(ConfiguredLayer):
    """Divides each value by the strength of its neighbors in other channels.

    Use it to rebuild networks from the time of AlexNet; new ones train better with
    `keras.layers.BatchNormalization` or `GroupNormalization`. With k = `bias` and
    r = `depth_radius`:

        b_i = a_i / (k + alpha * sum_(j = i-r ... i+r) a_j^2) ^ beta

    over the 2 r + 1 channels around i, fewer at the edges. The paper's n is
    2 r + 1 = 5. Some texts count n + 1 points, which holds for even n. The defaults
    are the paper's; `tf.nn.local_response_normalization` has (5, 1, 1, 0.5). It is
    computed in float32 whatever the dtype of the layer, because squares of float16
    overflow.

    Args:
        depth_radius: Integer >= 0. How many channels to each side count.
        bias: Float > 0. The paper's k.
        alpha: Float. The weight of a neighbor's square.
        beta: Float. The exponent.
        alpha_over_n: Whether to divide `alpha` by n = 2 r + 1, as Caffe and PyTorch
            do; the paper and TensorFlow do not.
        data_format: `"channels_last"` or `"channels_first"`; the default is Keras'.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)`.

    Output shape:
        That of the input.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:

    >>> layer = tfdeep.layers.LocalResponseNormalization(
    ...     depth_radius=1, bias=1.0, alpha=1.0, beta=1.0)
    >>> print(layer(np.array([[1.0, 2.0, 0.0]])).numpy())  # 1/6, 2/6, 0/5
    [[0.16666667 0.33333334 0.        ]]

    Reference:
        Krizhevsky et al., 2012, "ImageNet Classification with Deep Convolutional
        Neural Networks" (section 3.3).
    """

    arguments = ("depth_radius", "bias", "alpha", "beta", "alpha_over_n", "data_format")

    def __init__(
        self,
        depth_radius: int = 2,
        bias: float = 2.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        alpha_over_n: bool = False,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = "LocalResponseNormalization"
        self.depth_radius = whole_number(
            depth_radius, "depth_radius", name, at_least=0, example=2
        )
        self.bias = number(bias, "bias", name, above=0, example=2.0)
        self.alpha = number(alpha, "alpha", name, example=1e-4)
        self.beta = number(beta, "beta", name, example=0.75)
        self.alpha_over_n = flag(alpha_over_n, "alpha_over_n", name)
        self.data_format = one_of(
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
            "data_format",
            name,
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def call(self, inputs: Any) -> Any:
        n = 2 * self.depth_radius + 1
        x = tf.cast(inputs, tf.float32)
        if self.data_format == "channels_first":
            x = tf.experimental.numpy.moveaxis(x, 1, -1)
        # The operation takes images only; every place is an image of its own.
        y = tf.nn.local_response_normalization(
            tf.reshape(x, [-1, 1, 1, x.shape[-1]]),
            depth_radius=self.depth_radius,
            bias=self.bias,
            alpha=self.alpha / n if self.alpha_over_n else self.alpha,
            beta=self.beta,
        )
        y = tf.reshape(y, tf.shape(x))
        if self.data_format == "channels_first":
            y = tf.experimental.numpy.moveaxis(y, -1, 1)
        return tf.cast(tf.ensure_shape(y, inputs.shape), inputs.dtype)
