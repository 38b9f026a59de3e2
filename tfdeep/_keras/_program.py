"""Describes how a model is trained, in plain values: outputs, losses, optimizer."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._keras import _architecture, _graph, _layer_facts, _losses, _optimizers
from tfdeep._keras._losses import Loss
from tfdeep._keras._walk import Call, calls, layers_of_kind

Shape = tuple[int | None, ...]

# A step of these has the size of the rate, whatever the size of the gradient.
_NORMALIZING = {
    "Adam", "AdamW", "Adamax", "Nadam", "RMSprop", "Lion", "Lamb", "Adafactor",
    "Rprop", "Adagrad", "Adadelta", "Muon",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes:
        layer: Path of the layer that makes it; empty if unknown.
        activation: The activation it ends with; None if unknown, as after a merge.
        size: How many numbers the activation's axis has; 0 if unknown.
        before: The activation of what that activation is applied to, where it is a
            layer of its own; None if there is none, or unknown.
        loss: What is known of its loss.
        shape: Its shape; None if unknown.
        target_shape: The shape of its targets, once they were seen.
    """

    layer: str = ""
    activation: str | None = None
    size: int = 0
    before: str | None = None
    loss: Loss = dataclasses.field(default_factory=Loss)
    shape: Shape | None = None
    target_shape: Shape | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """The input of a convolution that reads an input of the model.

    Attributes:
        layer: Path of the convolution.
        shape: The shape of one example.
        channels: Which axis of it is taken for the channels.
    """

    layer: str
    shape: Shape
    channels: int


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """A batch normalization.

    Attributes:
        layer: Its path.
        momentum: That of its moving averages.
        places: How many numbers of an example go into each of its statistics; 0 if
            unknown.
    """

    layer: str
    momentum: float
    places: int


@dataclasses.dataclass(frozen=True)
class Program:
    """How a model is trained.

    Attributes:
        outputs: Its outputs; empty if unknown.
        optimizer: Name of the class that updates the weights; empty if there is none.
        learning_rate: The rate at the start; NaN if unknown.
        is_scheduled: Whether a schedule sets the rate.
        normalizes: Whether a step has the size of the rate, whatever the gradient's.
        wrappers: Names of the classes around the optimizer.
        dropouts: The rates of the dropout layers, by path.
        batch_norms: The batch normalizations that train.
        images: What the first convolutions read.
        linear_layers: Paths of the layers with kernels, if the model computes a linear
            function; empty otherwise, or if unknown.
    """

    outputs: tuple[Output, ...] = ()
    optimizer: str = ""
    learning_rate: float = math.nan
    is_scheduled: bool = False
    normalizes: bool = False
    wrappers: tuple[str, ...] = ()
    dropouts: tuple[tuple[str, float], ...] = ()
    batch_norms: tuple[BatchNorm, ...] = ()
    images: tuple[Image, ...] = ()
    linear_layers: tuple[str, ...] = ()

    def seen(self, outputs: Sequence[Output]) -> Program:
        """The program with what a batch has shown of its outputs.

        Args:
            outputs: `shape`, `target_shape` and, of a model that is not a graph,
                `activation` and `size` count.
        """
        if len(outputs) != len(self.outputs):
            known: Sequence[Output] = [Output()] * len(outputs)
            if len(self.outputs) == 1:  # one loss for all outputs of an unknown number
                known = [self.outputs[0]] * len(outputs)
        else:
            known = self.outputs
        return dataclasses.replace(
            self,
            outputs=tuple(
                dataclasses.replace(
                    old,
                    shape=new.shape,
                    target_shape=new.target_shape,
                    activation=old.activation or new.activation,
                    size=old.size or new.size,
                )
                for old, new in zip(known, outputs, strict=True)
            ),
        )


def describe(model: Any, loss: Any = None) -> Program:
    """Describes how a built model is trained; changes and computes nothing.

    Args:
        model: The model.
        loss: What it is trained with, in place of what it was compiled with.
    """
    found, ends = calls(model) if _graph.is_graph(model) else ([], [])
    listed = _architecture.layers_of(model)
    return Program(
        outputs=_outputs(model, ends, listed, loss),
        **_of_optimizer(getattr(model, "optimizer", None)),
        dropouts=tuple(
            (path, float(layer.rate))
            for path, layer in layers_of_kind(model, _DROPOUTS).items()
        ),
        batch_norms=tuple(
            BatchNorm(path, float(layer.momentum), _places(layer))
            for path, layer in layers_of_kind(
                model, keras.layers.BatchNormalization
            ).items()
            if layer.trainable
        ),
        images=_images(found),
        linear_layers=_linear_layers(found, ends),
    )


def _places(layer: Any) -> int:
    try:
        shape = layer.input.shape[1:-1]
    except (AttributeError, ValueError):  # called several times, or not in a graph
        return 0
    return math.prod(shape) if None not in shape else 0


_DROPOUTS = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
)


def _of_optimizer(optimizer: Any) -> dict[str, Any]:
    chain = _optimizers.chain(optimizer)
    if not chain:
        return {}
    plain = _optimizers.groups(chain[-1])[0]
    rate = getattr(plain, "_learning_rate", None)
    is_scheduled = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    try:
        value = float(plain.learning_rate)
    except (TypeError, ValueError):
        value = math.nan
    name = type(plain).__name__
    return {
        "optimizer": name,
        "learning_rate": value,
        "is_scheduled": is_scheduled,
        "normalizes": name in _NORMALIZING,
        "wrappers": tuple(type(outer).__name__ for outer in chain[:-1]),
    }


# Outputs.


def _outputs(
    model: Any, ends: Sequence[Call], listed: Any, loss: Any
) -> tuple[Output, ...]:
    given = getattr(model, "loss", None) if loss is None else loss
    names = getattr(model, "output_names", None)
    losses = _losses.losses_of(given, names, max(len(ends), 1))
    if not ends:
        return (Output(layer=next(reversed(listed), ""), loss=losses[0]),)
    return tuple(
        _output(call, loss, listed) for call, loss in zip(ends, losses, strict=True)
    )


def _output(call: Call, loss: Loss, listed: Any) -> Output:
    end = call
    while _only_reshapes(end.layer) and len(end.before) == 1:
        end = end.before[0]
    place = end
    while place.path not in listed and place.before:
        place = place.before[0]
    return Output(
        layer=place.path if place.path in listed else call.path,
        activation=end.activation or _of_operation(end.layer),
        size=_size(end.layer),
        before=_activation_before(end),
        loss=loss,
    )


def _activation_before(end: Call) -> str | None:
    if end.has_kernel or len(end.before) != 1:
        return None
    return end.before[0].activation or _of_operation(end.before[0].layer)


def _only_reshapes(operation: Any) -> bool:
    name = type(operation).__name__
    return name in ("Reshape", "Flatten", "Squeeze", "ExpandDims", "Identity", "Cast")


def _of_operation(operation: Any) -> str | None:
    """The name of the activation that an operation of `keras.ops` is."""
    name = type(operation).__name__.lower()
    return name if name in _layer_facts.ACTIVATIONS else None


def _size(operation: Any) -> int:
    """How many numbers there are along the axis of an output's activation."""
    axis = getattr(operation, "axis", -1)
    axes = [axis] if isinstance(axis, int) else axis
    try:
        shape = operation.output.shape
        return math.prod(int(shape[axis]) for axis in axes)
    except (AttributeError, ValueError, TypeError, IndexError):
        return int(getattr(operation, "units", 0) or getattr(operation, "filters", 0))


_OF_OPERATION = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Relu6": "relu6",
    "Tanh": "tanh",
    "Elu": "elu",
    "Selu": "selu",
    "Softplus": "softplus",
    "BiasAdd": "linear",
    "AddV2": "linear",
    "MatMul": "linear",
    "BatchMatMulV2": "linear",
    "Conv2D": "linear",
}
_PASSING = ("Identity", "Reshape", "Squeeze", "ExpandDims", "Cast", "StopGradient")


def seen_output(prediction: Any, target: Any) -> Output:
    """What a prediction and its target show while the train step is traced."""
    shape = _shape(prediction)
    return Output(
        activation=_traced_activation(prediction),
        size=int(shape[-1] or 0) if shape else 0,
        shape=shape,
        target_shape=None if target is None else _shape(target),
    )


def _traced_activation(tensor: Any) -> str | None:
    try:
        operation = tensor.op
        while operation.type in _PASSING:
            operation = operation.inputs[0].op
    except (AttributeError, IndexError):  # it was computed eagerly
        return None
    return _OF_OPERATION.get(operation.type)


def _shape(tensor: Any) -> Shape | None:
    shape = getattr(tensor, "shape", None)
    if isinstance(shape, tf.TensorShape) and shape.rank is None:
        return None
    return None if shape is None else tuple(shape)


# The graph.


def _images(found: Sequence[Call]) -> tuple[Image, ...]:
    images = []
    for call in found:
        if not isinstance(call.layer, _CONVOLUTIONS) or not _reads_input(call):
            continue
        shape = tuple(call.layer.input.shape[1:])
        is_first = call.layer.data_format == "channels_first"
        images.append(Image(call.path, shape, 0 if is_first else len(shape) - 1))
    return tuple(images)


_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.SeparableConv2D,
    keras.layers.DepthwiseConv2D,
)


def _reads_input(call: Call) -> bool:
    """Whether nothing that could move axes lies between an input and a call."""
    before = call.before
    while (
        before
        and len(before) == 1
        and _KEEPS_AXES.fullmatch(type(before[0].layer).__name__)
    ):
        before = before[0].before
    return not before


_KEEPS_AXES = re.compile(
    r"InputLayer|Rescaling|Normalization|ZeroPadding2D|GaussianNoise|Random\w+|Dropout"
    r"|BatchNormalization"
)

_LINEAR = re.compile(
    r"InputLayer|Rescaling|Normalization|ZeroPadding[123]D|UpSampling[123]D|Flatten"
    r"|(Global)?AveragePooling[123]D|Cropping[123]D|Reshape|Permute|Add|Subtract|Average"
    r"|Concatenate|Gaussian\w+|\w*Dropout(1D|2D|3D)?|BatchNormalization|Cast|Squeeze"
)


def _linear_layers(found: Sequence[Call], ends: Sequence[Call]) -> tuple[str, ...]:
    """The layers with kernels of a graph that computes a linear function."""
    kernels = [call.path for call in found if call.has_kernel]
    # A linear layer that trains nothing, such as a frozen projection, is meant.
    if len(kernels) < 2 or not all(
        _is_linear(call, is_end=call in ends or _ends_with(call, ends))
        for call in found
    ):
        return ()
    return tuple(kernels)


def _ends_with(call: Call, ends: Sequence[Call]) -> bool:
    """Whether only the reshaping of an output follows."""
    after = call.after
    return bool(after) and all(
        _only_reshapes(one.layer) and (one in ends or _ends_with(one, ends))
        for one in after
    )


def _is_linear(call: Call, is_end: bool) -> bool:
    activation = call.activation or _of_operation(call.layer)
    if call.has_kernel and not isinstance(call.layer, keras.layers.RNN):
        return is_end or activation in (None, "linear")
    if activation is not None:
        return is_end or activation == "linear"
    return _LINEAR.fullmatch(type(call.layer).__name__) is not None
