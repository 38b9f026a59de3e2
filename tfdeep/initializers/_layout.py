"""Which axes of a kernel are inputs, outputs, or places of a window."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import keras

from tfdeep._core._explain import a_type, explain
from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers._owner import Owner

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the axes of a kernel are.

    Attributes:
        window: Axes of a convolution's window: every output sums over them, and every
            input is seen through them.
        inputs: Axes that an output sums over.
        outputs: Axes of the outputs that one input goes to.
        apart: Axes along which nothing is shared: each index is a map of its own
            (the channels of a depthwise convolution, the rows of an embedding).
        groups: Into how many parts, apart from each other, the outputs fall.
    """

    window: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    apart: tuple[int, ...] = ()
    groups: int = 1

    @property
    def rank(self) -> int:
        """The number of axes."""
        return sum(map(len, (self.window, self.inputs, self.outputs, self.apart)))

    def fans(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many inputs an output sums over, and how many outputs an input reaches.

        Strides and padding do not count, as in He et al.
        """
        window = math.prod(shape[i] for i in self.window)
        inputs = math.prod(shape[i] for i in self.inputs)
        outputs = math.prod(shape[i] for i in self.outputs)
        return window * inputs, window * outputs // self.groups


def layout_of(
    shape: Sequence[int],
    owner: Owner,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Layout:
    """The layout of a kernel of this shape, by the axes given or else by its layer.

    Raises:
        InvalidArgumentError: If the shape could be read in more than one way.
    """
    rank, name, layer = len(shape), owner.name, owner.layer
    if input_axes is not None and output_axes is not None:
        return _by_axes(rank, input_axes, output_axes)
    is_kernel = name == "kernel"
    if is_kernel and isinstance(layer, keras.layers.EinsumDense):
        layout = _by_equation(layer.equation)
        if layout.rank == rank:
            return layout
    window = tuple(range(rank - 2))
    window_rank = len(getattr(layer, "kernel_size", ()))
    if window_rank and window_rank == rank - 2 and "kernel" in name:
        before_last, last = rank - 2, rank - 1
        if name == "depthwise_kernel" or (is_kernel and isinstance(layer, _DEPTHWISE)):
            return Layout(window, (), (last,), apart=(before_last,))
        if is_kernel and isinstance(layer, _TRANSPOSED):
            return Layout(window, (last,), (before_last,))
        groups = getattr(layer, "groups", 1) if is_kernel else 1
        return Layout(window, (before_last,), (last,), groups=groups)
    if rank == 2 and "embedding" in name and not name.startswith("reverse"):
        return Layout((), (), (1,), apart=(0,))
    if rank == 2:
        return Layout((), (0,), (1,))
    raise InvalidArgumentError(
        explain(
            "The shape alone does not tell which axes are inputs and which outputs.",
            received=f"shape={tuple(shape)} for "
            + (f"the variable `{owner.path}`" if owner.path else "no variable")
            + (f" of {a_type(layer)}" if layer is not None else ""),
            expected="a matrix, or the kernel of a layer of Keras (or of a subclass)",
            fix="pass `input_axes`, all axes that one output sums over, and "
            "`output_axes`, all axes through which one input is seen; of a plain 2-D "
            "convolution: input_axes=(0, 1, 2), output_axes=(0, 1, 3)",
        )
    )


def _by_axes(
    rank: int, input_axes: Sequence[int], output_axes: Sequence[int]
) -> Layout:
    if not all(-rank <= axis < rank for axis in (*input_axes, *output_axes)):
        raise InvalidArgumentError(
            explain(
                "The kernel has no such axes.",
                received=f"input_axes={tuple(input_axes)}, "
                f"output_axes={tuple(output_axes)} for a kernel of {rank} axes",
                expected=f"axes from {-rank} to {rank - 1}",
                fix="count the axes of the kernel, not those of the layer's input",
            )
        )
    ins = {axis % rank for axis in input_axes}
    outs = {axis % rank for axis in output_axes}
    return Layout(
        window=tuple(sorted(ins & outs)),
        inputs=tuple(sorted(ins - outs)),
        outputs=tuple(sorted(outs - ins)),
        apart=tuple(sorted(set(range(rank)) - ins - outs)),
    )


def _by_equation(equation: str) -> Layout:
    """The layout of the kernel of an `EinsumDense`.

    >>> _by_equation("abc,cde->abde")
    Layout(window=(), inputs=(0,), outputs=(1, 2), apart=(), groups=1)
    """
    left, output = equation.replace(" ", "").split("->")
    given, kernel = left.split(",")
    axes: dict[tuple[bool, bool], list[int]] = {}
    for axis, letter in enumerate(kernel):
        axes.setdefault((letter in given, letter in output), []).append(axis)
    return Layout(
        window=(),
        inputs=tuple(axes.get((True, False), ())),
        outputs=tuple(axes.get((False, True), ())),
        apart=tuple(axes.get((True, True), ())),
    )
