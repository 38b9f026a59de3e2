"""Recommends an activation, with the reason."""

from __future__ import annotations

import dataclasses

from tfdeep._core._arguments import one_of
from tfdeep._core._records import Record

_OUTPUTS = {
    "binary": ("sigmoid", "a yes or no is the probability of yes"),
    "classes": ("softmax", "one class of several: probabilities that add up to 1"),
    "numbers": ("linear", "numbers have no bounds to keep"),
}


@dataclasses.dataclass(frozen=True)
class ActivationAdvice(Record):
    """What `recommend_activation` advises.

    Attributes:
        activation: The activation, as Keras or tfdeep name it: the name of a
            function, or a layer such as `keras.layers.LeakyReLU()`.
        kernel_initializer: The initializer that fits it.
        reason: Why this one.
    """

    activation: str
    kernel_initializer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.activation} with {self.kernel_initializer}: {self.reason}"


def recommend_activation(
    output: str | None = None,
    overfitting: bool = False,
    large_dataset: bool = False,
    dead_units: bool = False,
    light_network: bool = False,
) -> ActivationAdvice:
    """Advises an activation for a layer, with the reason.

    Use it as a first choice, and measure the second one too. The rules, the first
    that holds:

    1. An output layer: sigmoid for yes or no, softmax for classes, none for numbers.
    2. The network overfits: RReLU, whose random slopes regularize.
    3. There are very many examples: PReLU, which learns its slopes (and overfits few
       examples).
    4. Units are dead: a leaky ReLU, which always has a gradient.
    5. The network is to be light, without the cost of batch normalization: ELU with He
       initialization, which keeps its outputs near mean 0 by itself.
    6. Else: ReLU, which is fast and saturates on one side only.

    Args:
        output: For an output layer, what it predicts: `"binary"`, `"classes"` or
            `"numbers"`. None for a hidden layer.
        overfitting: Whether the network overfits.
        large_dataset: Whether there are very many examples.
        dead_units: Whether many units put out 0 for every example;
            `tfdeep.diagnose` shows it.
        light_network: Whether the network is to do without batch normalization.

    Returns:
        An `ActivationAdvice`.

    Raises:
        InvalidArgumentError: If `output` is unknown.

    Example:

    >>> print(tfdeep.layers.recommend_activation())
    relu with he_normal: fast, and it saturates on one side only
    >>> tfdeep.layers.recommend_activation(overfitting=True).activation
    'tfdeep.layers.RReLU()'
    """
    if output is not None:
        choice = one_of(output, _OUTPUTS, "output", "recommend_activation")
        return ActivationAdvice(
            _OUTPUTS[choice][0], "glorot_uniform", _OUTPUTS[choice][1]
        )
    if overfitting:
        activation = "tfdeep.layers.RReLU()"
        reason = "the noise in its slopes regularizes, and no unit dies"
    elif large_dataset:
        activation = "keras.layers.PReLU()"
        reason = "it learns its slopes, for which there are examples enough"
    elif dead_units:
        activation = "keras.layers.LeakyReLU(negative_slope=0.01)"
        reason = "it has a gradient on both sides, so that no unit dies"
    elif light_network:
        activation = "elu"
        reason = (
            "its outputs are near mean 0 by itself, without the cost of batch "
            "normalization"
        )
    else:
        activation = "relu"
        reason = "fast, and it saturates on one side only"
    return ActivationAdvice(activation, "he_normal", reason)
