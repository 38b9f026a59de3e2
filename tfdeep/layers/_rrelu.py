"""The randomized leaky rectifier."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from tfdeep._core._arguments import number, one_of
from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError
from tfdeep.layers._configured import ConfiguredLayer
from tfdeep.layers._uniform import coarse_uniform


@keras.saving.register_keras_serializable("tfdeep")
class RReLU(ConfiguredLayer):
    """A leaky ReLU that draws a slope for each element while training.

    Use it where a network with ReLU overfits or its units die: the noise in
    the slope regularizes, and no unit is ever without a gradient.

        y = x        for x >= 0
        y = a x      for x <  0,    a drawn for each element and each call

    While training, `draw="slope"` takes a ~ U(lower, upper), as PyTorch and
    tensorflow-addons do; `draw="divisor"` takes 1/a ~ U(1/upper, 1/lower), as the
    paper does (U(3, 8) with the default bounds). At inference the slope is fixed:

    | `inference` | slope | with the default bounds |
    |---|---|---|
    | `"mean"` | (lower + upper) / 2, as PyTorch and tensorflow-addons | 0.2292 |
    | `"paper"` | 2 / (1/lower + 1/upper), by the mean divisor | 1 / 5.5 = 0.1818 |
    | `"expected"` | the mean of the slopes that training draws | 0.2292; by divisor \
0.1962 |

    Args:
        lower: Float >= 0. The smallest slope.
        upper: Float >= `lower`. The largest slope.
        inference: `"mean"`, `"paper"` or `"expected"`: the slope at inference.
        draw: `"slope"` or `"divisor"`: what is drawn uniformly while training.
        seed: Integer, or None for a new random sequence in each run.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        Any.

    Output shape:
        That of the input.

    Raises:
        InvalidArgumentError: If the bounds are not 0 <= lower <= upper, or lower is 0
            where it divides, or a choice is unknown.

    Example:

    >>> layer = tfdeep.layers.RReLU(inference="paper")
    >>> print(layer(np.array([-5.5, 0.0, 2.0])).numpy())
    [-1.  0.  2.]
    >>> y = layer(-np.ones(1000), training=True).numpy()
    >>> bool(y.std() > 0 and (y >= -1 / 3).all() and (y <= -1 / 8).all())
    True

    Reference:
        Xu et al., 2015, https://arxiv.org/abs/1505.00853 (section 2.4).
    """

    arguments = ("lower", "upper", "inference", "draw", "seed")

    def __init__(
        self,
        lower: float = 1 / 8,
        upper: float = 1 / 3,
        inference: str = "mean",
        draw: str = "slope",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lower = number(lower, "lower", "RReLU", at_least=0, example=0.125)
        self.upper = number(upper, "upper", "RReLU", at_least=0, example=0.3333)
        choices = ("mean", "paper", "expected")
        self.inference = one_of(inference, choices, "inference", "RReLU")
        self.draw = one_of(draw, ("slope", "divisor"), "draw", "RReLU")
        divides = draw == "divisor" or inference == "paper"
        if self.lower > self.upper or (divides and self.lower == 0):
            raise InvalidArgumentError(
                explain(
                    "`RReLU` cannot draw slopes between these bounds.",
                    received=f"lower={lower!r}, upper={upper!r}, draw={draw!r}, "
                    f"inference={inference!r}",
                    expected="0 <= lower <= upper, and lower > 0 if slopes are drawn "
                    "or averaged as divisors",
                    fix="for example `lower=1/8, upper=1/3`",
                )
            )
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training:
            return ops.leaky_relu(inputs, self.inference_slope)
        return inputs * ops.where(inputs >= 0, 1, self._drawn(inputs))

    def _drawn(self, inputs: Any) -> Any:
        low, high = self.lower, self.upper
        if self.draw == "divisor":
            low, high = 1 / high, 1 / low
        shape = ops.shape(inputs)
        drawn = coarse_uniform(self.seed_generator, shape, low, high, inputs.dtype)
        return drawn if self.draw == "slope" else 1 / drawn

    @property
    def inference_slope(self) -> float:
        """The slope for negative inputs at inference."""
        if self.inference == "paper":
            return 2 / (1 / self.lower + 1 / self.upper)
        by_divisor = self.inference == "expected" and self.draw == "divisor"
        if by_divisor and self.lower < self.upper:
            spread = 1 / self.lower - 1 / self.upper
            return math.log(self.upper / self.lower) / spread
        return (self.lower + self.upper) / 2
