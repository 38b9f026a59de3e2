"""Orthogonal matrices for kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfdeep._core._arguments import number
from tfdeep._core._explain import a_type, explain
from tfdeep._keras._layer_facts import KernelAxes
from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers._axes import axes_of
from tfdeep.initializers._owner import Owner
from tfdeep.initializers._random import RandomInitializer


class _GainedInitializer(RandomInitializer):
    """Base of those with a factor."""

    def __init__(
        self,
        gain: float = 1.0,
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seed, input_axes, output_axes)
        self.gain = number(
            gain,
            "gain",
            type(self).__name__,
            fix='for an activation: gain=tfdeep.initializers.gain("relu")',
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["gain"] = self.gain
        return config


@keras.saving.register_keras_serializable("tfdeep")
class Orthogonal(_GainedInitializer):
    """Draws kernels that keep the length of every input (times a gain).

    Use it for recurrent kernels and for deep nets without normalization. As a matrix W
    of fan_in rows and one column per output,

        W^T W = gain^2 I    or, with fewer rows than columns,    W W^T = gain^2 I

    It is uniform among all such matrices (QR of a normal matrix, with the signs
    corrected). Keras has this for one reading of the axes; here they are read as the
    layer uses them: transposed convolutions, attention and `EinsumDense` are orthogonal
    as maps, and so is each group and each channel of a grouped or depthwise
    convolution. The decomposition is made in float32 or float64, and rounded to the
    requested dtype: bfloat16 works.

    Args:
        gain: Finite float: the factor. `tfdeep.initializers.gain("tanh")` for tanh.
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Raises:
        InvalidArgumentError: If an argument has no meaning; when it draws, if the
            axes do not follow from the shape.

    Example:

    >>> w = tfdeep.initializers.Orthogonal(gain=2.0, seed=1)((3, 3))
    >>> print(np.round(w.numpy().T @ w.numpy(), 3) + 0)
    [[4. 0. 0.]
     [0. 4. 0.]
     [0. 0. 4.]]

    Reference:
        Saxe et al., 2014, https://arxiv.org/abs/1312.6120.
    """

    def draw(self, shape: tuple[int, ...], dtype: str, seed: int, owner: Owner) -> Any:
        axes = axes_of(shape, owner, self.input_axes, self.output_axes)
        ins, separate = axes.window + axes.inputs, axes.separate
        if not ins:  # an embedding: its rows are drawn as one matrix
            ins, separate = separate, ()
        order = (*separate, *ins, *axes.outputs)
        maps = math.prod(shape[i] for i in separate)
        rows = math.prod(shape[i] for i in ins)
        columns = math.prod(shape[i] for i in axes.outputs) // axes.groups
        values = _orthogonal(maps * axes.groups, rows, columns, dtype, seed)
        # The outputs of the groups lie one after the other on the last axis.
        values = ops.reshape(values, (maps, axes.groups, rows, columns))
        values = ops.transpose(values, (0, 2, 1, 3))
        values = ops.reshape(values, [shape[i] for i in order])
        return self.gain * ops.transpose(
            values, [order.index(i) for i in range(len(shape))]
        )


@keras.saving.register_keras_serializable("tfdeep")
class DeltaOrthogonal(_GainedInitializer):
    """Makes a convolution start as an orthogonal map at every place of the image.

    Use it for very deep plain convolutional nets: with a suitable gain it has trained
    10,000 layers of tanh without normalization or shortcuts. The kernel is zero but at
    the middle of its window, where it is orthogonal:

        K[middle] K[middle]^T = gain^2 I,    K[elsewhere] = 0

    so that with `padding="same"` and no strides the length of the signal is kept
    exactly. It needs at least as many filters as channels.

    Args:
        gain: Finite float: the factor.
        seed: Int, or None. Layers that share the instance get values of their own.

    Raises:
        InvalidArgumentError: If the gain is not finite; when it draws, if the kernel is
            not that of a plain 1-D, 2-D or 3-D convolution, or has more channels than
            filters.

    Example:

    >>> kernel = tfdeep.initializers.DeltaOrthogonal(seed=1)((3, 3, 2, 2))
    >>> print(np.round(kernel[1, 1].numpy() @ kernel[1, 1].numpy().T, 3) + 0)
    [[1. 0.]
     [0. 1.]]

    Reference:
        Xiao et al., 2018, https://arxiv.org/abs/1806.05393 (section 2.4).
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        super().__init__(gain, seed)

    def draw(self, shape: tuple[int, ...], dtype: str, seed: int, owner: Owner) -> Any:
        rank = len(shape)
        window = tuple(range(rank - 2))
        plain = KernelAxes(window, (rank - 2,), (rank - 1,))
        # Called directly, the shape is taken for what this initializer is for.
        axes = axes_of(shape, owner) if owner.path else plain
        if rank not in (3, 4, 5) or axes != plain:
            raise self._refusal(
                "is for the kernels of plain convolutions.",
                shape,
                owner,
                "(*window, channels, filters) of a Conv1D, Conv2D or Conv3D without "
                "groups",
                "use `tfdeep.initializers.Orthogonal` here",
            )
        channels, filters = shape[-2:]
        if channels > filters:
            raise self._refusal(
                "cannot keep the length of a signal in fewer filters than channels.",
                shape,
                owner,
                f"at least {channels} filters",
                "use more filters, or `tfdeep.initializers.Orthogonal` here",
            )
        middle = self.gain * _orthogonal(1, channels, filters, dtype, seed)[0]
        before = [(size - 1) // 2 for size in shape[:-2]]  # as padding="same" has it
        after = [size - 1 - b for size, b in zip(shape[:-2], before, strict=True)]
        return ops.pad(
            ops.reshape(middle, (*[1] * len(before), channels, filters)),
            [*zip(before, after, strict=True), (0, 0), (0, 0)],
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["input_axes"], config["output_axes"]
        return config

    def _refusal(
        self, what: str, shape: Any, owner: Owner, expected: str, fix: str
    ) -> InvalidArgumentError:
        whose = f" of {a_type(owner.layer)}" if owner.layer else ""
        return InvalidArgumentError(
            explain(
                f"`DeltaOrthogonal` {what}",
                received=f"a kernel of shape {shape}{whose}",
                expected=expected,
                fix=fix,
            )
        )


def _orthogonal(count: int, rows: int, columns: int, dtype: str, seed: int) -> Any:
    """`count` matrices, uniform among those with orthonormal rows or columns."""
    long, short = max(rows, columns), min(rows, columns)
    normal = keras.random.normal((count, long, short), dtype=dtype, seed=seed)
    q, r = ops.qr(normal)
    # The signs that QR chooses are not random; those of R's diagonal undo them.
    diagonal = ops.diagonal(r, axis1=-2, axis2=-1)
    q = ops.where(ops.expand_dims(diagonal, -2) < 0, -q, q)
    return q if rows >= columns else ops.transpose(q, (0, 2, 1))
