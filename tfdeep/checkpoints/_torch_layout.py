"""How PyTorch names and lays out the parameters of the layers that Keras has, too.

It sees a variable's path, shape and layer, never a file. "Layout" means the order of
the axes and gates in a weight, as in `layout="torch"`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from tfdeep._keras._variables import ModelVariable

Convert = Callable[..., np.ndarray]


class Conversion(str, enum.Enum):
    """How a parameter of PyTorch becomes a weight of Keras."""

    NONE = "none"
    TRANSPOSED = "transposed"
    SPLIT = "split_into_axes"
    CHANNELS_LAST = "channels_last"
    DEPTHWISE = "depthwise"
    BROADCAST = "broadcast"
    HEADS = "heads"
    THIRD = "third_of_projection"
    GATES = "gates"
    SUM_OF_BIASES = "sum_of_biases"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to make a variable's values from what a PyTorch module saved.

    `convert` takes one array for each path of `sources` and returns the array that
    Keras wants; it raises ValueError if their shapes cannot be those of such a module.
    `note` describes the conversion in words.
    """

    sources: tuple[str, ...]
    convert: Convert
    conversion: Conversion = Conversion.NONE
    note: str = ""


def recipes(variable: ModelVariable, owners: Sequence[Any]) -> tuple[Recipe, ...]:
    """The recipes that might fill a variable, best first.

    The torch module is expected to have the name of the Keras layer, inside modules
    named like the layers around it. A dot in a Keras name counts as "/".

    Args:
        variable: The variable.
        owners: The layers from the model inwards, down to `variable.layer`.

    Returns:
        The recipes; none if PyTorch has no such parameter.
    """
    place = _Place.of(variable, owners)
    for classes, rule in _RULES:
        if isinstance(variable.layer, classes):
            return tuple(rule(place))
    return ()


def flattened(shape: tuple[int, int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """For the `Dense` layer behind a `Flatten` of images.

    PyTorch flattens an image channel by channel, Keras pixel by pixel, so the rows of
    the kernel are in another order. Names do not tell where this happens.

    Args:
        shape: Height, width and channels of what is flattened, as Keras has it.

    Returns:
        A function that reorders the rows of a kernel of shape (H*W*C, units) from
        PyTorch's C, H, W to Keras' H, W, C.

    Raises:
        ValueError: The function raises it for a kernel of another shape.

    Example:

    >>> reorder = tfdeep.checkpoints.flattened((1, 2, 3))
    >>> reorder(np.arange(6).reshape(6, 1)).ravel()
    array([0, 2, 4, 1, 3, 5])
    """
    height, width, channels = shape

    def reorder(kernel: np.ndarray) -> np.ndarray:
        if kernel.ndim != 2 or kernel.shape[0] != math.prod(shape):
            raise ValueError(
                f"a kernel of shape {kernel.shape}, not of {math.prod(shape)} rows"
            )
        rows = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
        return np.reshape(rows, kernel.shape)

    return reorder


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a variable is in a model.

    `parts` are the names of the layers from the model inwards, down to the layer that
    owns it. `around` are the layers around that one, innermost first: `around[i]` has
    the name `parts[-2 - i]`.
    """

    name: str
    shape: tuple[int, ...]
    layer: Any
    parts: tuple[str, ...]
    around: tuple[Any, ...]

    @classmethod
    def of(cls, variable: ModelVariable, owners: Sequence[Any]) -> _Place:
        *parts, name = variable.path.split("/")
        around = tuple(owners)[:-1][::-1][: max(len(parts) - 1, 0)]
        shape = tuple(variable.variable.shape)
        return cls(name, shape, variable.layer, tuple(parts), around)

    def inside(self, kind: Any, depth: int = 0) -> bool:
        """Whether the layer around, or one further out, is of a class."""
        return len(self.around) > depth and isinstance(self.around[depth], kind)

    def modules(self) -> list[tuple[str, ...]]:
        """The names that the torch module may have, best first."""
        found = [self.parts]
        if self.inside(keras.layers.TimeDistributed):
            found.append(self.parts[:-1])
        return found

    def recipe(self, parameter: str, convert: Convert, *how: Any) -> list[Recipe]:
        """Recipes that fill the variable from one parameter of the module."""
        return [
            Recipe((_join(module, parameter),), convert, *how)
            for module in self.modules()
        ]


def _join(module: Iterable[str], parameter: str) -> str:
    return "/".join([*(name.replace(".", "/") for name in module), parameter])


def _as_it_is(values: np.ndarray) -> np.ndarray:
    return values


def _same(**parameters: str) -> Callable[[_Place], list[Recipe]]:
    """The rule for parameters that have another name and nothing else."""

    def rule(place: _Place) -> list[Recipe]:
        if place.name not in parameters:
            return []
        return place.recipe(parameters[place.name], _as_it_is)

    return rule


def _dense(place: _Place) -> list[Recipe]:
    if place.name == "kernel":
        return place.recipe("weight", *_WEIGHT)
    return _bias(place)


_bias = _same(bias="bias")


def _conv(place: _Place) -> list[Recipe]:
    """Both the convolution (O, I, ...) and the transposed one (I, O, ...)."""
    if place.name != "kernel":
        return _bias(place)
    spatial = "DHW"[2 - len(place.shape) :]
    channels = "IO" if isinstance(place.layer, _TRANSPOSED) else "OI"
    note = f"{channels}{spatial} to {spatial}{channels[::-1]}"
    return _channels_last(place, "weight", note)


def _channels_last(place: _Place, parameter: str, note: str) -> list[Recipe]:
    axes = (*range(2, len(place.shape)), 1, 0)
    how = (Conversion.CHANNELS_LAST, note)
    return place.recipe(parameter, lambda values: values.transpose(axes), *how)


def _depthwise(place: _Place) -> list[Recipe]:
    if place.name != "kernel":
        return _bias(place)
    return place.recipe(*_depthwise_kernel("weight", place.shape))


def _separable(place: _Place) -> list[Recipe]:
    """PyTorch has no such layer; usually it is two, named as Keras names kernels."""
    if place.name == "depthwise_kernel":
        return place.recipe(*_depthwise_kernel("depthwise/weight", place.shape))
    if place.name == "pointwise_kernel":
        return _channels_last(place, "pointwise/weight", "OI1 to 1IO")
    return _same(bias="pointwise/bias")(place)


def _depthwise_kernel(
    parameter: str, shape: tuple[int, ...]
) -> tuple[str, Convert, Conversion, str]:
    channels, multiplier = shape[-2:]

    def convert(values: np.ndarray) -> np.ndarray:
        if values.shape[:2] != (channels * multiplier, 1):
            raise ValueError(
                f"shape {values.shape}, not ({channels * multiplier}, 1, ...)"
            )
        kernel = values.reshape(channels, multiplier, *values.shape[2:])
        return np.moveaxis(kernel, (0, 1), (-2, -1))

    note = "one filter per channel, channels last"
    return parameter, convert, Conversion.DEPTHWISE, note


def _prelu(place: _Place) -> list[Recipe]:
    if place.name != "alpha":
        return []

    def convert(values: np.ndarray) -> np.ndarray:
        if values.ndim != 1:
            raise ValueError(f"shape {values.shape}, not one slope per channel")
        return np.broadcast_to(values, place.shape)

    note = "one slope per channel, or one for all"
    return place.recipe("weight", convert, Conversion.BROADCAST, note)


def _einsum(place: _Place) -> list[Recipe]:
    if place.inside(keras.layers.MultiHeadAttention):
        return [*_attention(place), *_einsum_dense(place)]
    return _einsum_dense(place)


def _einsum_dense(place: _Place) -> list[Recipe]:
    axes = _linear_axes(place.layer.equation)
    if axes is None:
        return []
    summed, kept = axes
    if place.name == "kernel":
        how = (Conversion.SPLIT, "transposed and split into axes")
        if len(summed) == len(kept) == 1:
            how = (Conversion.TRANSPOSED, "transposed")
        return place.recipe("weight", _linear(place.shape, len(summed)), *how)
    if place.name == "bias" and sorted(place.layer.bias_axes or "") == sorted(kept):
        if len(kept) == 1:
            return place.recipe("bias", _reshaped(place.shape))
        how = (Conversion.SPLIT, "split into axes")
        return place.recipe("bias", _reshaped(place.shape), *how)
    return []


def _linear_axes(equation: str) -> tuple[str, str] | None:
    """The axes of the kernel that are summed over, and the others.

    None if the layer is not linear. In a linear one, the last axes of the input are
    summed over the first axes of the kernel, and its other axes end the output.
    """
    match = re.fullmatch(r"([\w.]+),(\w+)->([\w.]+)", equation.replace(" ", ""))
    if match is None:
        return None
    inputs, kernel, output = match.groups()
    summed = "".join(axis for axis in kernel if axis not in output)
    kept = kernel[len(summed) :]
    is_linear = (
        0 < len(summed) < len(kernel)
        and kernel.startswith(summed)
        and inputs.endswith(summed)
        and output.endswith(kept)
        and not set(kept) & set(inputs)
    )
    return (summed, kept) if is_linear else None


def _linear(shape: tuple[int, ...], inputs: int) -> Convert:
    """From (out, in) to a kernel whose first `inputs` axes make up `in`."""
    wanted = math.prod(shape[inputs:]), math.prod(shape[:inputs])

    def convert(values: np.ndarray) -> np.ndarray:
        if values.shape != wanted:
            raise ValueError(f"shape {values.shape}, not {wanted}")
        return np.reshape(values.T, shape)

    return convert


def _reshaped(shape: tuple[int, ...]) -> Convert:
    def convert(values: np.ndarray) -> np.ndarray:
        if values.shape != (math.prod(shape),):
            raise ValueError(f"shape {values.shape}, not ({math.prod(shape)},)")
        return values.reshape(shape)

    return convert


def _attention(place: _Place) -> list[Recipe]:
    """The parts of `torch.nn.MultiheadAttention`, or of one made of linear layers."""
    module, role = place.parts[:-1], place.parts[-1]
    axes = _linear_axes(place.layer.equation)
    if axes is None or place.name not in ("kernel", "bias"):
        return []
    is_kernel = place.name == "kernel"
    linear = _linear(place.shape, len(axes[0]))
    convert = linear if is_kernel else _reshaped(place.shape)
    parameter = "weight" if is_kernel else "bias"
    if role == "attention_output":
        how = (Conversion.HEADS, "transposed, heads joined") if is_kernel else ()
        return [Recipe((_join(module, f"out_proj/{parameter}"),), convert, *how)]
    if role not in _THIRDS:
        return []
    number, letter = _THIRDS.index(role), role[0]
    note = "transposed and split into heads" if is_kernel else "split into heads"
    names = [f"{letter}_proj/{parameter}"]
    if is_kernel:
        names.insert(0, f"{letter}_proj_weight")
    third = Recipe(
        (_join(module, f"in_proj_{parameter}"),),
        lambda values: convert(_block(values, 3, number)),
        Conversion.THIRD,
        f"{role}'s third, {note}",
    )
    heads = (convert, Conversion.HEADS, note)
    return [third, *(Recipe((_join(module, name),), *heads) for name in names)]


_THIRDS = ("query", "key", "value")


def _block(values: np.ndarray, count: int, number: int) -> np.ndarray:
    """One of `count` equal blocks along the first axis."""
    if values.ndim == 0 or values.shape[0] % count:
        raise ValueError(f"shape {values.shape} is not {count} equal blocks")
    size = values.shape[0] // count
    return values[number * size : (number + 1) * size]


def _recurrent(place: _Place) -> list[Recipe]:
    if isinstance(place.layer, keras.layers.GRUCell):
        if not place.layer.reset_after:
            return []  # PyTorch resets after the product only
        parts = _GRU
    else:
        parts = _LSTM_OR_SIMPLE
    if place.name not in parts:
        return []
    names, convert, conversion, note = parts[place.name]
    found = []
    for module, suffix in _recurrent_modules(place):
        sources = tuple(_join(module, f"{name}{suffix}") for name in names)
        found.append(Recipe(sources, convert, conversion, note))
    return found


def _recurrent_modules(place: _Place) -> list[tuple[tuple[str, ...], str]]:
    """The torch modules that a cell may be in, and how they mark its parameters."""
    cell = [(place.parts, "")]
    if not place.inside(keras.layers.RNN):
        return cell
    modules, direction = [place.parts[:-1]], ""
    if place.inside(keras.layers.Bidirectional, 1):
        wrapper, layer = place.around[1], place.around[0]
        direction = "_reverse" if layer is wrapper.backward_layer else ""
        inner = re.sub("^(forward|backward)_", "", place.parts[-2])
        modules = [place.parts[:-2], (*place.parts[:-3], inner)]
    found = []
    for module in modules:
        found.append((module, f"_l0{direction}"))
        # A stack of layers is one module in PyTorch, whose layers are numbered.
        match = re.fullmatch(r"(.+)_l(\d+)", module[-1])
        if match is not None:
            stack = (*module[:-1], match[1])
            found.append((stack, f"_l{match[2]}{direction}"))
    return found + cell


def _gates(values: np.ndarray) -> np.ndarray:
    """Blocks r, z, n along the first axis as z, r, n."""
    reset, update, new = (_block(values, 3, number) for number in range(3))
    return np.concatenate([update, reset, new])


def _transposed(values: np.ndarray) -> np.ndarray:
    return np.transpose(values, (1, 0))


def _sum(of_input: np.ndarray, of_state: np.ndarray) -> np.ndarray:
    if of_input.shape != of_state.shape:
        raise ValueError(f"biases of shapes {of_input.shape} and {of_state.shape}")
    total: np.ndarray = of_input + of_state
    return total


def _gated_biases(of_input: np.ndarray, of_state: np.ndarray) -> np.ndarray:
    return np.stack([_gates(of_input), _gates(of_state)])


_Parts = dict[str, tuple[tuple[str, ...], Convert, Conversion, str]]
_BIASES = ("bias_ih", "bias_hh")
_WEIGHT = (_transposed, Conversion.TRANSPOSED, "transposed")
# The order of an LSTM's gates is the same: i f g o, which Keras calls i f c o.
_LSTM_OR_SIMPLE: _Parts = {
    "kernel": (("weight_ih",), *_WEIGHT),
    "recurrent_kernel": (("weight_hh",), *_WEIGHT),
    "bias": (_BIASES, _sum, Conversion.SUM_OF_BIASES, "sum of both biases"),
}
_GATES = "gates r z n to z r h"
_GATED = (lambda w: _gates(w).transpose(1, 0), Conversion.GATES, _GATES)
_GRU: _Parts = {
    "kernel": (("weight_ih",), *_GATED),
    "recurrent_kernel": (("weight_hh",), *_GATED),
    "bias": (_BIASES, _gated_biases, Conversion.GATES, f"both biases, {_GATES}"),
}


def _layers(*names: str) -> tuple[Any, ...]:
    """The classes of these names that this version of Keras has."""
    found = (getattr(keras.layers, name, None) for name in names)
    return tuple(layer for layer in found if layer is not None)


_TRANSPOSED = _layers("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_RULES: tuple[tuple[tuple[Any, ...], Callable[[_Place], list[Recipe]]], ...] = (
    (_layers("Dense"), _dense),
    (_layers("EinsumDense"), _einsum),
    ((*_layers("Conv1D", "Conv2D", "Conv3D"), *_TRANSPOSED), _conv),
    (_layers("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise),
    (_layers("SeparableConv1D", "SeparableConv2D"), _separable),
    (
        _layers("BatchNormalization"),
        _same(
            gamma="weight",
            beta="bias",
            moving_mean="running_mean",
            moving_variance="running_var",
        ),
    ),
    (
        _layers("LayerNormalization", "GroupNormalization"),
        _same(gamma="weight", beta="bias"),
    ),
    (_layers("RMSNormalization"), _same(scale="weight")),
    (_layers("Embedding"), _same(embeddings="weight")),
    (_layers("PReLU"), _prelu),
    (_layers("LSTMCell", "GRUCell", "SimpleRNNCell"), _recurrent),
)
