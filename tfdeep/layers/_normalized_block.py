"""A layer, its normalization and its activation, in this order."""

from __future__ import annotations

from typing import Any

import keras

from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError


@keras.saving.register_keras_serializable("tfdeep")
class NormalizedBlock(keras.layers.Wrapper):
    """A dense or convolution layer that is normalized before its activation.

    Use it in place of a layer with an activation followed by `BatchNormalization`.
    The paper normalizes what goes into the activation, and then the bias of the layer
    is useless: the normalization subtracts it again.

        y = activation(normalization(W x))

    The block takes the activation out of the layer, and the bias too if the
    normalization cancels it: `BatchNormalization`, and `GroupNormalization` with one
    channel a group. `LayerNormalization` and others do not cancel a bias, and it
    stays. The learned offset of the normalization takes its place.

    Args:
        layer: A `Dense`, `EinsumDense` or convolution layer. If it has something to
            take out, it is not built yet, and the block makes one like it.
        normalization: The layer to normalize with; `BatchNormalization` by default.
        activation: The activation, if the layer itself has none.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`. The `dtype` is
            that of `layer` if it is not given.

    Raises:
        InvalidArgumentError: If the layer has no activation and bias to take out, is
            built already, or has an activation and another one is given.

    Example:

    >>> dense = keras.layers.Dense(4, activation="relu")
    >>> block = tfdeep.layers.NormalizedBlock(dense)
    >>> block(np.ones((2, 3))).shape
    TensorShape([2, 4])
    >>> [w.name for w in block.weights]
    ['kernel', 'gamma', 'beta', 'moving_mean', 'moving_variance']

    Reference:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167 (section 3.2).
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        normalization: keras.layers.Layer | None = None,
        activation: Any = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", getattr(layer, "dtype_policy", None))
        if normalization is None:
            normalization = keras.layers.BatchNormalization(
                dtype=kwargs["dtype"], name="normalization"
            )
        surplus = _surplus(layer, normalization)
        _check(layer, activation, surplus)
        if "activation" in surplus:
            activation = layer.activation
        if surplus:
            layer = type(layer).from_config(layer.get_config() | surplus)
        super().__init__(layer, **kwargs)
        self.normalization = normalization
        self.activation = keras.activations.get(activation)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if not self.normalization.built:
            self.normalization.build(self.layer.compute_output_shape(input_shape))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        x = self.layer(inputs)
        if isinstance(self.normalization, keras.layers.BatchNormalization):
            x = self.normalization(x, training=training, mask=mask)
        else:
            x = self.normalization(x)
        return self.activation(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "normalization": keras.layers.serialize(self.normalization),
            "activation": keras.activations.serialize(self.activation),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        config = dict(config)
        for name in ("layer", "normalization"):
            config[name] = keras.layers.deserialize(config[name], custom_objects)
        return cls(**config)


def _surplus(layer: Any, normalization: Any) -> dict[str, Any]:
    """The arguments that remove the activation and a useless bias from a layer."""
    surplus: dict[str, Any] = {}
    if not _is_linear(getattr(layer, "activation", None)):
        surplus["activation"] = None
    if _cancels_bias(normalization):
        if getattr(layer, "use_bias", False):
            surplus["use_bias"] = False
        if getattr(layer, "bias_axes", None):
            surplus["bias_axes"] = None
    return surplus


def _cancels_bias(normalization: Any) -> bool:
    if isinstance(normalization, keras.layers.GroupNormalization):
        return bool(normalization.groups == -1)
    return isinstance(normalization, keras.layers.BatchNormalization)


def _is_linear(activation: Any) -> bool:
    return activation is None or activation is keras.activations.linear


def _check(layer: Any, activation: Any, surplus: dict[str, Any]) -> None:
    fits = hasattr(layer, "activation") and hasattr(layer, "bias_initializer")
    is_recurrent = hasattr(layer, "state_size")
    has_two = "activation" in surplus and activation is not None
    is_late = bool(surplus) and layer.built
    if fits and not is_recurrent and not has_two and not is_late:
        return
    raise InvalidArgumentError(
        explain(
            "`NormalizedBlock` cannot put a normalization into this layer.",
            received=f"layer={layer!r}, activation={activation!r}",
            expected="a dense or convolution layer that is not built, and one "
            "activation at most",
            fix="for example `NormalizedBlock(keras.layers.Dense(100), "
            "activation='relu')`",
        )
    )
