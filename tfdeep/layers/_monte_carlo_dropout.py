"""Dropout that stays on, and what a network makes of many draws of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._arguments import whole_number
from tfdeep._core._explain import a_type, explain
from tfdeep._keras._walk import layers_of_kind
from tfdeep.errors import ModelError


@keras.saving.register_keras_serializable("tfdeep")
class MCDropout(keras.layers.Dropout):
    """Dropout that is on at inference too, to see how sure a network is.

    Use it in place of `keras.layers.Dropout` and ask `mc_predict` for the mean and
    the spread of many predictions. A network trained with `Dropout` can be built
    again with `MCDropout` and given the same weights: neither has any.

    Args:
        rate: Float in [0, 1). The share of inputs to drop.
        noise_shape: As in `keras.layers.Dropout`.
        seed: Integer, or None for a new random sequence in each run.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:

    >>> layer = tfdeep.layers.MCDropout(0.5, seed=0)
    >>> y = layer(np.ones((1, 1000)), training=False).numpy()
    >>> sorted(set(y[0].tolist()))
    [0.0, 2.0]

    Reference:
        Gal and Ghahramani, 2016, https://arxiv.org/abs/1506.02142.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return super().call(inputs, training=True)


@keras.saving.register_keras_serializable("tfdeep")
class MCAlphaDropout(keras.layers.AlphaDropout):
    """`MCDropout` for networks of SELU units, whose mean and variance it keeps.

    Use it in place of `keras.layers.AlphaDropout`, and see `MCDropout`.

    Args:
        rate: Float in [0, 1). The share of inputs to drop.
        noise_shape: As in `keras.layers.AlphaDropout`.
        seed: Integer, or None for a new random sequence in each run.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:

    >>> layer = tfdeep.layers.MCAlphaDropout(0.2, seed=0)
    >>> x = np.random.default_rng(0).normal(size=(1, 10_000))
    >>> y = layer(x, training=False).numpy()
    >>> bool(abs(y.mean()) < 0.05 and abs(y.std() - 1) < 0.05)
    True

    Reference:
        Klambauer et al., 2017, https://arxiv.org/abs/1706.02515 (section "New
        dropout technique").
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return super().call(inputs, training=True)


class MCPrediction(NamedTuple):
    """What `mc_predict` returns: the mean and the standard deviation, as arrays."""

    mean: Any
    std: Any


def mc_predict(
    model: keras.Model, x: Any, samples: int = 100, batch_size: int = 32
) -> MCPrediction:
    """Predicts many times with dropout on, for the mean and the spread.

    Use it to see where a network is unsure: inputs unlike the training data make
    predictions that differ from draw to draw. With f_s the network under draw s:

        mean = 1/S sum_s f_s(x),    std = sqrt(1/S sum_s (f_s(x) - mean)^2)

    Everything but the `MCDropout` and `MCAlphaDropout` layers works as at inference;
    batch normalization uses its moving averages. The weights stay as they are.

    Args:
        model: A model with `MCDropout` or `MCAlphaDropout` layers and one output,
            compiled or not.
        x: The inputs, as arrays or tensors: one, or a list or dict of them.
        samples: Integer > 0. How many predictions to take, S.
        batch_size: Integer > 0. How many examples to compute at once.

    Returns:
        A named tuple `(mean, std)` of float32 arrays (float64 if the model is) of the
        shape of the model's output.

    Raises:
        ModelError: If no layer of the model is an `MCDropout` or `MCAlphaDropout`, or
            it has several outputs.
        InvalidArgumentError: If `samples` or `batch_size` is not a whole number > 0.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     tfdeep.layers.MCDropout(0.5, seed=0),
    ...     keras.layers.Dense(1, kernel_initializer="ones"),
    ... ])
    >>> x = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    >>> mean, std = tfdeep.layers.mc_predict(model, x, samples=500)
    >>> bool(abs(mean[0, 0] - 3) < 0.4 and abs(std[0, 0] - 3**0.5) < 0.2)
    True
    >>> float(std[1, 0])
    0.0

    Reference:
        Gal and Ghahramani, 2016, https://arxiv.org/abs/1506.02142 (section 4).
    """
    samples = whole_number(samples, "samples", "mc_predict", above=0, example=100)
    batch_size = whole_number(
        batch_size, "batch_size", "mc_predict", above=0, example=32
    )
    if not layers_of_kind(model, (MCDropout, MCAlphaDropout)):
        raise ModelError(
            explain(
                f"`mc_predict` would get the same from each call of '{model.name}'.",
                received="a model without an `MCDropout` or `MCAlphaDropout` layer",
                expected="one at least: plain dropout is off at inference",
                fix="build it with `tfdeep.layers.MCDropout` in place of Dropout and "
                "give it the same weights with `set_weights`",
            )
        )

    @tf.function(reduce_retracing=True, autograph=False)
    def moments(batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        first = _wide(model(batch, training=False))

        # Differences from the first draw: no digits are lost to a large mean.
        def add(i: Any, total: Any, squares: Any) -> tuple[Any, Any, Any]:
            difference = _wide(model(batch, training=False)) - first
            return i + 1, total + difference, squares + tf.square(difference)

        zeros = tf.zeros_like(first)
        _, total, squares = tf.while_loop(
            lambda i, *_: i < samples, add, (1, zeros, zeros)
        )
        shift = total / samples
        variance = tf.maximum(squares / samples - tf.square(shift), 0)
        return first + shift, tf.sqrt(variance)

    batches = tf.data.Dataset.from_tensor_slices(x).batch(batch_size)
    parts = [moments(batch) for batch in batches]
    mean, std = (np.concatenate(part) for part in zip(*parts, strict=True))
    return MCPrediction(mean, std)


def _wide(outputs: Any) -> tf.Tensor:
    if not tf.is_tensor(outputs):
        raise ModelError(
            explain(
                "`mc_predict` cannot take the moments of this model's outputs.",
                received=f"outputs as {a_type(outputs)}",
                expected="one output, a tensor",
                fix="pass a model of one of them: `keras.Model(model.inputs, output)`",
            )
        )
    return outputs if outputs.dtype == tf.float64 else tf.cast(outputs, tf.float32)
