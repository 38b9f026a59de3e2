"""Residual branches that are left out at random."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfdeep._core._arguments import number, one_of
from tfdeep._core._explain import explain
from tfdeep.errors import ModelError
from tfdeep.layers._configured import ConfiguredLayer
from tfdeep.layers._uniform import uniform


@keras.saving.register_keras_serializable("tfdeep")
class StochasticDepth(ConfiguredLayer):
    """Adds a residual branch to its shortcut, or leaves it out at random.

    Use it in place of `keras.layers.Add` in very deep residual networks: training
    sees networks of many depths, and gradients find short ways. With p the
    probability that a branch survives:

        y = shortcut + b * residual,    b ~ Bernoulli(p)    while training
        y = shortcut + p * residual                         at inference

    Other programs call it drop path and scale by 1/p while training instead, which
    is the same up to a constant factor of the branch.

    Args:
        survival_probability: Float in [0, 1]. The paper lets it fall linearly from 1
            at the first block to 0.5 at the last.
        per: `"batch"`: one draw for the whole batch, as in the paper and in
            tensorflow-addons; `"example"`: one for each example, which is less noisy.
        seed: Integer, or None for a new random sequence in each run.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: A list `[shortcut, residual]` of two tensors of the same shape.

    Output shape:
        That of the shortcut.

    Raises:
        InvalidArgumentError: If the probability is not in [0, 1] or `per` is unknown.
        ModelError: If it is not called on two tensors of the same shape.

    Example:

    >>> layer = tfdeep.layers.StochasticDepth(survival_probability=0.75)
    >>> print(layer([np.array([[1.0]]), np.array([[4.0]])]).numpy())
    [[4.]]

    Reference:
        Huang et al., 2016, https://arxiv.org/abs/1603.09382 (equations 2 to 5).
    """

    arguments = ("survival_probability", "per", "seed")

    def __init__(
        self,
        survival_probability: float = 0.5,
        per: str = "batch",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.survival_probability = number(
            survival_probability,
            "survival_probability",
            "StochasticDepth",
            at_least=0,
            at_most=1,
            example=0.8,
        )
        self.per = one_of(per, ("batch", "example"), "per", "StochasticDepth")
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        _check(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        shortcut, residual = inputs
        share = self._drawn(residual) if training else self.survival_probability
        return shortcut + share * residual

    def _drawn(self, residual: Any) -> Any:
        examples = ops.shape(residual)[0] if self.per == "example" else 1
        shape = (examples, *[1] * (len(residual.shape) - 1))
        drawn = uniform(self.seed_generator, shape, 0, 1, "float32")
        return ops.cast(drawn < self.survival_probability, residual.dtype)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return mask[0] if mask else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        _check(input_shape)
        return input_shape[0]


def _check(shapes: Any) -> None:
    are_two = len(shapes) == 2 and all(isinstance(s, tuple | list) for s in shapes)
    if are_two and len(shapes[0]) == len(shapes[1]):
        pairs = zip(*shapes, strict=True)
        if all(a is None or b is None or a == b for a, b in pairs):
            return
    raise ModelError(
        explain(
            "`StochasticDepth` cannot add these inputs.",
            received=f"inputs of shape {shapes}",
            expected="a list [shortcut, residual] of two tensors of the same shape",
            fix="call it as `layer([x, block(x)])`, and project x if block changes its "
            "shape",
        )
    )
