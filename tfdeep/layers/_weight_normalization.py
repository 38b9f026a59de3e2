"""Weights as a length times a direction."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfdeep._core._explain import explain
from tfdeep._keras import _internals
from tfdeep._keras._layer_facts import unit_axes
from tfdeep.errors import DataError, ModelError
from tfdeep.layers._substitute import call_with
from tfdeep.layers._unit_moments import unit_moments

_KERNELS = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel")


@keras.saving.register_keras_serializable("tfdeep")
class WeightNormalization(keras.layers.Wrapper):
    """Trains the length and the direction of each unit's weights apart.

    Use it where batch normalization does not fit: small batches, recurrent networks,
    noise that hurts. The wrapped layer computes with

        w = g * v / ||v||

    where ||v|| is taken over the weights of one unit, whatever the kernel's layout.
    v is the variable that the layer made, g (`kernel_g`) is made by the wrapper, and
    both are trained. It wraps dense layers, `EinsumDense`, convolutions of every kind
    and recurrent layers, and what is built of them, such as
    `keras.layers.Bidirectional`. Every kernel in them is normalized: of a separable
    convolution both, of a recurrent layer `kernel` and `recurrent_kernel`.

    At the start g = ||v||, and the layer computes what it did before it was wrapped.
    Weight normalization does not control the size of the outputs; the paper therefore
    starts from one batch of data, which is what `adapt` does.

    Regularizers and constraints of the kernel act on v, whose length does not matter
    to w: leave them out.

    Args:
        layer: The layer to wrap. It may be built and trained already.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`. The `dtype` is
            that of `layer` if it is not given.

    Call arguments:
        inputs: What the wrapped layer takes.
        initial_state: Of a recurrent layer, as it takes it.
        mask: As the wrapped layer takes it.
        training: As the wrapped layer takes it.

    Raises:
        ModelError: If `layer` has no kernel, or it uses LoRA or is quantized.

    Example:

    >>> layer = tfdeep.layers.WeightNormalization(keras.layers.Dense(3))
    >>> batch = np.random.default_rng(0).normal(2.0, 5.0, (64, 8)).astype("float32")
    >>> layer.adapt(batch)
    >>> y = layer(batch).numpy()
    >>> bool(abs(y.mean(axis=0)).max() < 1e-5)
    True
    >>> bool(abs(y.std(axis=0) - 1).max() < 1e-4)
    True
    >>> bool(abs(layer.fold()(batch).numpy() - y).max() < 1e-5)
    True

    Reference:
        Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868 (equation 2; the
        start from data: equations 5 and 6).
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", getattr(layer, "dtype_policy", None))
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._kernels = list(_kernels(self.layer))
        if not self._kernels:
            raise ModelError(
                explain(
                    "`WeightNormalization` finds no kernel to normalize.",
                    received=f"{type(self.layer).__name__} '{self.layer.name}'",
                    expected="a dense, convolution or recurrent layer, not quantized "
                    "and without LoRA",
                    fix="wrap the layer inside that holds the kernel",
                )
            )
        self._lengths: list[keras.Variable] = []
        for v, axes in self._kernels:
            name = f"{v.name}_g"
            count = sum(g.name.startswith(name) for g in self._lengths)
            g = self.add_weight(
                name=f"{name}_{count}" if count else name,
                shape=[n for i, n in enumerate(v.shape) if i not in axes],
                initializer=_norm_of(v, axes),
                dtype=v.dtype,
            )
            self._lengths.append(g)

    def call(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        given = {"initial_state": initial_state, "mask": mask, "training": training}
        taken = inspect.signature(self.layer.call).parameters
        given = {k: v for k, v in given.items() if k in taken and v is not None}
        outputs, losses = call_with(self.layer, self._weights(), inputs, **given)
        for loss in losses:
            self.add_loss(loss)
        return outputs

    def _weights(self) -> list[tuple[keras.Variable, Any]]:
        """Each kernel v with its w = g v / ||v||, in the precision of v."""
        return [
            (v, _scaled(v, axes, _internals.uncast_value(g)))
            for (v, axes), g in zip(self._kernels, self._lengths, strict=True)
        ]

    def adapt(self, data: Any) -> None:
        """Sets lengths and biases so that the outputs on `data` are standardized.

        With t = v . x / ||v|| of each unit on the data, before the activation:

            g = 1 / std(t),    b = -mean(t) / std(t)

        so that each unit has mean 0 (if the layer has a bias) and standard deviation
        1. Units that are constant on the data stay as they are. Adapt the layers of a
        network in their order, each on the outputs of those before it.

        Args:
            data: One batch of inputs of the layer, as large as possible.

        Raises:
            ModelError: If the layer is recurrent, for which the paper defines no such
                start, or shares one bias among several units.
            DataError: If the outputs are not finite, or no unit varies on the data.
        """
        if not self.built:
            self(data)
        layer = self.layer
        kernel, axes = self._kernels[-1]
        own = _internals.declared_trainable(layer)
        if hasattr(layer, "state_size") or not any(v is kernel for v in own):
            raise _cannot_adapt(layer, "a dense or convolution layer")
        bias = layer.bias
        g = self._lengths[-1]
        if bias is not None and np.prod(bias.shape) != np.prod(g.shape):
            raise _cannot_adapt(layer, "a bias for each unit, or none")

        values = self._weights()
        values[-1] = (kernel, _scaled(kernel, axes, ops.ones_like(g)))
        if bias is not None:
            values.append((bias, ops.zeros_like(bias)))
        activation, layer.activation = layer.activation, keras.activations.linear
        try:
            outputs, _ = call_with(layer, values, ops.convert_to_tensor(data))
        finally:
            layer.activation = activation
        mean, std, in_kernel_order = unit_moments(layer, outputs)
        varies = std > 1e-6 * (abs(mean) + std)
        if not np.isfinite(std).all() or not varies.any():
            raise DataError(
                explain(
                    f"'{layer.name}' cannot be adapted to this data.",
                    received="outputs that are not finite"
                    if not np.isfinite(std).all()
                    else "outputs that are the same for all examples",
                    expected="a batch of different, finite examples",
                    fix="pass more examples of the training data; nothing was changed",
                )
            )
        scale = np.divide(1, std, where=varies, out=np.ones_like(std))
        old = ops.convert_to_numpy(g)
        new = in_kernel_order(scale).reshape(g.shape)
        g.assign(np.where(in_kernel_order(varies).reshape(g.shape), new, old))
        if bias is not None:
            old = ops.convert_to_numpy(bias)
            new = (-mean * scale).reshape(bias.shape)
            bias.assign(np.where(varies.reshape(bias.shape), new, old))

    def fold(self) -> keras.layers.Layer:
        """Makes a plain layer that computes the same.

        Returns:
            A new layer of the class, name and arguments of the wrapped one, with the
            kernels w = g v / ||v||. The wrapper stays as it is.

        Raises:
            ModelError: If the wrapper has no weights yet.
        """
        layer = self.layer
        if not self.built:
            raise ModelError(
                explain(
                    "`WeightNormalization` cannot be folded before it has weights.",
                    received=f"'{self.name}', which is not built",
                    expected="a layer that was called or built",
                    fix="call it on a batch first",
                )
            )
        plain = type(layer).from_config(layer.get_config())
        plain.build_from_config(layer.get_build_config())
        kernels = {id(v): w for v, w in self._weights()}
        plain.set_weights([kernels.get(id(v), v) for v in layer.weights])
        return plain

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)


def _kernels(layer: Any) -> Iterator[tuple[keras.Variable, tuple[int, ...]]]:
    """The kernels in a layer, with the axes over which a unit's weights lie."""
    is_plain = not getattr(layer, "lora_enabled", False)
    is_plain = is_plain and not getattr(layer, "quantization_mode", None)
    for variable in _internals.declared_trainable(layer) if is_plain else ():
        if variable.name in _KERNELS:
            yield variable, unit_axes(variable, layer)
    for inner in _internals.sublayers(layer):
        yield from _kernels(inner)


def _norm_of(v: keras.Variable, axes: tuple[int, ...]) -> Any:
    """An initializer that gives the norms of another variable."""

    def initializer(shape: Any, dtype: Any = None) -> Any:
        value = _internals.uncast_value(v)
        return ops.sqrt(ops.sum(ops.square(value), axis=axes))

    return initializer


def _scaled(v: keras.Variable, axes: tuple[int, ...], g: Any) -> Any:
    """w = g v / ||v||; a v of zero has no direction, and is divided by 1.

    The gradients are written out (equation 3 of the paper): those that TensorFlow
    derives go over the kernel twice as often.
    """

    @tf.custom_gradient
    def scaled(v: tf.Tensor, g: tf.Tensor) -> Any:
        squares = tf.reduce_sum(tf.square(v), axes, keepdims=True)
        norm = tf.sqrt(tf.where(squares > 0, squares, 1))
        factor = g / norm

        def gradients(dw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dg = tf.reduce_sum(dw * v, axes, keepdims=True) / norm
            return dw * factor - v * (dg * factor / norm), dg

        return v * factor, gradients

    value = tf.convert_to_tensor(_internals.uncast_value(v))
    return scaled(value, ops.expand_dims(g, axes))


def _cannot_adapt(layer: Any, expected: str) -> ModelError:
    return ModelError(
        explain(
            f"'{layer.name}' cannot be adapted to data.",
            received=f"{type(layer).__name__}",
            expected=expected,
            fix="leave out `adapt`: the layer starts as it would unwrapped",
        )
    )
