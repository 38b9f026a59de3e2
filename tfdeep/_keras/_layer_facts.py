"""What is known of Keras' layers: the axes of their kernels, and their activations."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

import keras

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


# The axes of kernels.


@dataclasses.dataclass(frozen=True)
class KernelAxes:
    """What the axes of a kernel are.

    Attributes:
        window: Axes of a convolution's window: every output sums over them, and every
            input is seen through them.
        inputs: Axes that an output sums over.
        outputs: Axes of the outputs that one input goes to.
        separate: Axes along which nothing is shared: each index is a map of its own
            (the channels of a depthwise convolution, the rows of an embedding).
        groups: Into how many independent parts the outputs fall.
        is_embedding: Whether an input picks one row.
    """

    window: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    separate: tuple[int, ...] = ()
    groups: int = 1
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        """The number of axes."""
        return sum(map(len, (self.window, self.inputs, self.outputs, self.separate)))

    @property
    def unit(self) -> tuple[int, ...]:
        """The axes along which the weights of one unit lie; of an embedding, a row."""
        return self.outputs if self.is_embedding else self.summed

    @property
    def summed(self) -> tuple[int, ...]:
        """The axes that one output sums over."""
        return tuple(sorted(self.window + self.inputs))

    def fans(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many inputs an output sums over, and how many outputs an input reaches.

        Strides and padding do not count, as in He et al.
        """
        window, inputs, outputs = (
            math.prod(shape[i] for i in axes)
            for axes in (self.window, self.inputs, self.outputs)
        )
        return window * inputs, window * outputs // self.groups


def kernel_axes(name: str, rank: int, layer: Any = None) -> KernelAxes | None:
    """The axes of a kernel; None if its name, rank and layer do not tell.

    | kernel | shape | one unit's axes |
    |---|---|---|
    | dense, recurrent | (inputs, units) | 0 |
    | convolution | (*window, channels, filters) | all but the last |
    | transposed convolution | (*window, filters, channels) | all but the last but one |
    | depthwise convolution | (*window, channels, multiplier) | the window |
    | `EinsumDense`, attention | by the equation | those that are summed over |
    | embedding | (ids, units) | 1: each row is one unit |

    Args:
        name: The name of the variable.
        rank: The number of its axes.
        layer: The layer that owns it, if it is known.
    """
    window, before_last, last = tuple(range(rank - 2)), (rank - 2,), (rank - 1,)
    is_kernel = name == "kernel"
    if is_kernel and isinstance(layer, keras.layers.EinsumDense):
        axes = _axes_in_equation(layer.equation)
        if axes.rank == rank:
            return axes
    is_depthwise = is_kernel and isinstance(layer, DEPTHWISE)
    if rank > 2 and (name == "depthwise_kernel" or is_depthwise):
        return KernelAxes(window, (), last, separate=before_last)
    if rank > 2 and is_kernel and isinstance(layer, TRANSPOSED):
        return KernelAxes(window, last, before_last)
    if (
        rank > 2
        and "kernel" in name
        and len(getattr(layer, "kernel_size", ())) == (rank - 2)
    ):
        groups = getattr(layer, "groups", 1) if is_kernel else 1
        return KernelAxes(window, before_last, last, groups=groups)
    if rank != 2:
        return None
    if "embedding" in name and not name.startswith("reverse"):
        return KernelAxes((), (), (1,), separate=(0,), is_embedding=True)
    return KernelAxes((), (0,), (1,))


def unit_axes(variable: Any, layer: Any = None) -> tuple[int, ...]:
    """The axes over which to take the norm of one unit's incoming weights.

    The whole of a bias or a gain counts as one unit. A kernel of which nothing is
    known counts as that of a convolution.

    Args:
        variable: The weight.
        layer: The layer that owns it. Without one, names and shapes must do.
    """
    rank, name = len(variable.shape), variable.name
    if rank < 2 or "bias" in name or name in ("gamma", "beta"):
        return tuple(range(rank))
    axes = kernel_axes(name, rank, layer)
    return tuple(range(rank - 1)) if axes is None else axes.unit


def _axes_in_equation(equation: str) -> KernelAxes:
    """The axes of the kernel of an `EinsumDense`.

    >>> _axes_in_equation("abc,cde->abde").inputs
    (0,)
    """
    left, output = equation.replace(" ", "").split("->")
    given, kernel = left.split(",")
    axes: dict[tuple[bool, bool], tuple[int, ...]] = {}
    for axis, letter in enumerate(kernel):
        key = letter in given, letter in output
        axes[key] = (*axes.get(key, ()), axis)
    return KernelAxes(
        window=(),
        inputs=axes.get((True, False), ()),
        outputs=axes.get((False, True), ()),
        separate=axes.get((True, True), ()),
    )


# Activations.


class Shape(enum.Enum):
    """What an activation function looks like."""

    LINEAR = "a straight line"
    RECTIFIER = "flat for negative inputs: its units can die"
    LEAKY = "a slope everywhere, another one for negative inputs"
    SQUASHING = "flat at both ends: its units can saturate"
    MIXING = "each output depends on several inputs"
    UNKNOWN = "a function that is not in the table"


@dataclasses.dataclass(frozen=True)
class Activation:
    """What is known of an activation function.

    Attributes:
        shape: What it looks like.
        initializer: The variance scaling that keeps the scale of a signal through it,
            by Keras' name; empty if none is known.
        rms: `sqrt(E[f(z)**2])` with z ~ N(0, 1): what it leaves of the scale. NaN if
            it is not known.
        is_positive: Whether it squashes to values above zero only.
    """

    shape: Shape = Shape.UNKNOWN
    initializer: str = ""
    rms: float = math.nan
    is_positive: bool = False

    @property
    def can_die(self) -> bool:
        """Whether a unit can be without a slope for all inputs."""
        return self.shape is Shape.RECTIFIER

    @property
    def saturates(self) -> bool:
        """Whether it is flat at both ends."""
        return self.shape is Shape.SQUASHING

    @property
    def has_slopes(self) -> bool:
        """Whether each unit has a slope of its own, which may differ from 1."""
        return self.shape not in (Shape.LINEAR, Shape.MIXING)


def _table() -> dict[str, Activation]:
    linear, rectifier, leaky = Shape.LINEAR, Shape.RECTIFIER, Shape.LEAKY
    squashing, mixing = Shape.SQUASHING, Shape.MIXING
    # He et al. 2015 for units that cut off one side, Klambauer et al. 2017 for SELU,
    # Glorot and Bengio 2010 for units that are linear near zero.
    he, lecun, glorot = "he_normal", "lecun_normal", "glorot_normal"
    return {
        "linear": Activation(linear, glorot, 1.0),
        "relu": Activation(rectifier, he, 0.707),
        "relu6": Activation(rectifier, he, 0.707),
        "elu": Activation(rectifier, he, 0.803),
        "celu": Activation(rectifier, he, 0.803),
        "selu": Activation(rectifier, lecun, 1.0),
        "gelu": Activation(rectifier, he, 0.652),
        "silu": Activation(rectifier, he, 0.597),
        "mish": Activation(rectifier, he, 0.673),
        "leaky_relu": Activation(leaky, he, 0.721),
        "tanh": Activation(squashing, glorot, 0.628),
        "hard_tanh": Activation(squashing, glorot, 0.718),
        "softsign": Activation(squashing, glorot, 0.428),
        "sigmoid": Activation(squashing, glorot, 0.542, is_positive=True),
        "hard_sigmoid": Activation(squashing, glorot, 0.527, is_positive=True),
        "softmax": Activation(mixing, is_positive=True),
        "log_softmax": Activation(mixing),
        "glu": Activation(mixing),
        "sparsemax": Activation(mixing, is_positive=True),
    }


ACTIVATIONS = _table()

_ALIASES = {"swish": "silu", "prelu": "leaky_relu", "rrelu": "leaky_relu"}

# Layers that are activations, by the names of their classes.
_ACTIVATION_LAYERS = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "PReLU": "leaky_relu",
    "RReLU": "leaky_relu",
    "ELU": "elu",
    "Softmax": "softmax",
}


def activation(name: str) -> Activation:
    """What is known of an activation by its name."""
    return ACTIVATIONS.get(_ALIASES.get(name, name), Activation())


def activation_name(of: Any) -> str | None:
    """The name of an activation.

    Args:
        of: An activation function, or a layer.

    Returns:
        Keras' name of the function, or of the one a layer ends with, in lower case;
        None for a layer that does not end with an activation, not even a linear one.
    """
    if not isinstance(of, keras.layers.Layer):
        name = str(getattr(of, "__name__", None) or type(of).__name__).lower()
        return _ALIASES.get(name, name)
    for kind in type(of).__mro__:
        if kind.__name__ in _ACTIVATION_LAYERS:
            is_leaky = kind is keras.layers.ReLU and of.negative_slope
            return "leaky_relu" if is_leaky else _ACTIVATION_LAYERS[kind.__name__]
    function = getattr(of, "activation", None)
    return None if function is None else activation_name(function)


# Other facts.


def has_kernel(layer: Any) -> bool:
    """Whether a layer multiplies by a kernel."""
    return getattr(layer, "kernel", None) is not None


def is_normalization(kind: str) -> bool:
    """Whether layers of a class, given by its name, bring inputs to a fixed scale."""
    return "Normalization" in kind and kind not in _NORMALIZED_OTHERWISE


_NORMALIZED_OTHERWISE = (
    "LocalResponseNormalization",
    "SpectralNormalization",
    "WeightNormalization",
)
