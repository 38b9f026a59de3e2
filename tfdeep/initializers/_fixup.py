"""Weights of residual branches that shrink with the depth of the net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfdeep._core._arguments import whole_number
from tfdeep.initializers._variance_scaling import VarianceScaling


@keras.saving.register_keras_serializable("tfdeep")
class Fixup(VarianceScaling):
    """Scales the layers of residual branches down by the number of branches.

    Use it for residual nets without normalization layers. Each branch adds to the
    signal, so with L branches of m layers a step of the optimizer would change the
    output of the net L times as much as meant. With

        std = L**(-1 / (2 m - 2)) * gain(activation) / sqrt(n)

    for all layers of a branch but the last, and zeros for the last layer of each
    branch and for the output layer, the change does not depend on the depth. The paper
    adds a scalar bias before each layer and a scalar factor to each branch.

    Args:
        num_branches: Int > 0: L, the residual branches of the whole net.
        layers_per_branch: Int > 1: m, the layers with weights in one branch.
        activation: What follows the layer, as in
            `tfdeep.initializers.VarianceScaling`.
        mode: "fan_in", "fan_out" or "fan_avg".
        distribution: "truncated_normal", "untruncated_normal" or "uniform".
        convention: Which `gain`.
        seed: Int, or None. Layers that share the instance get values of their own.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes of the kernel through which one input is seen.

    Raises:
        InvalidArgumentError: If an argument has no meaning.

    Example:

    >>> inner = tfdeep.initializers.Fixup(num_branches=16, layers_per_branch=2)
    >>> def branch(x):
    ...     y = keras.layers.Dense(64, "relu", kernel_initializer=inner)(x)
    ...     return keras.layers.Dense(64, kernel_initializer="zeros")(y)
    >>> round(inner.gain, 4)  # sqrt(2) / sqrt(16)
    0.3536

    Reference:
        Zhang et al., 2019, https://arxiv.org/abs/1901.09321 (section 3).
    """

    def __init__(
        self,
        num_branches: int,
        layers_per_branch: int = 2,
        activation: Any = "relu",
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        convention: str = "second_moment",
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            activation, mode, distribution, convention, seed, input_axes, output_axes
        )
        self.num_branches = whole_number(
            num_branches, "num_branches", "Fixup", above=0, example=16
        )
        self.layers_per_branch = whole_number(
            layers_per_branch,
            "layers_per_branch",
            "Fixup",
            above=1,
            fix="count the layers with weights in one branch; the only layer of a "
            'branch is its last layer, which starts with "zeros"',
        )
        self.gain *= self.num_branches ** (-1 / (2 * self.layers_per_branch - 2))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["num_branches"] = self.num_branches
        config["layers_per_branch"] = self.layers_per_branch
        return config
