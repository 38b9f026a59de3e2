"""The axes of the kernel that an initializer draws."""

from __future__ import annotations

from collections.abc import Sequence

from tfdeep._core._explain import a_type, explain
from tfdeep._keras._layer_facts import KernelAxes, kernel_axes
from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers._owner import Owner


def axes_of(
    shape: Sequence[int],
    owner: Owner,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> KernelAxes:
    """The axes of a kernel of this shape, as given, or else by its layer.

    Raises:
        InvalidArgumentError: If the shape could be read in more than one way.
    """
    rank, name, layer = len(shape), owner.name, owner.layer
    if input_axes is not None and output_axes is not None:
        return _by_axes(rank, input_axes, output_axes)
    axes = kernel_axes(name, rank, layer)
    if axes is not None:
        return axes
    raise InvalidArgumentError(
        explain(
            "The shape does not determine which axes are inputs and which outputs.",
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
) -> KernelAxes:
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
    return KernelAxes(
        window=tuple(sorted(ins & outs)),
        inputs=tuple(sorted(ins - outs)),
        outputs=tuple(sorted(outs - ins)),
        separate=tuple(sorted(set(range(rank)) - ins - outs)),
    )
