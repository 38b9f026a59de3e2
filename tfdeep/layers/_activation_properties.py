"""What an activation function does to signals and gradients, found by measuring it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain
from tfdeep._core._records import Record, render_table
from tfdeep.errors import InvalidArgumentError

_STEP = 1e-3
_FAR = 1e6
_FLAT = 1e-8  # the slope of a logarithm is larger that far out


@dataclasses.dataclass(frozen=True)
class ActivationProperties(Record):
    """What `activation_properties` found.

    Attributes:
        name: The name of the function.
        is_linear: Whether it is one straight line. A network of such layers computes
            no more than one layer does.
        is_differentiable: Whether it has a slope everywhere, without a corner or jump.
        is_monotone: Whether it never falls, or never rises.
        is_identity_near_zero: Whether f(x) = x near 0: f(0) = 0, and slope 1 on both
            sides. Then signals keep their size if the initialization does.
        is_zero_centered: Whether its outputs have both signs. If not, all weights of
            a unit of the next layer get gradients of the same sign from an example.
        saturation: On how many sides the slope goes to 0: "none", "one-sided" or
            "two-sided".
        lower_bound: The smallest output; -inf if there is none.
        upper_bound: The largest output; inf if there is none.
        max_slope: The largest slope by size, between -10 and 10.
    """

    name: str
    is_linear: bool
    is_differentiable: bool
    is_monotone: bool
    is_identity_near_zero: bool
    is_zero_centered: bool
    saturation: str
    lower_bound: float
    upper_bound: float
    max_slope: float

    @property
    def is_bounded(self) -> bool:
        """Whether the outputs have a lower and an upper bound."""
        return bool(np.isfinite([self.lower_bound, self.upper_bound]).all())

    def __str__(self) -> str:
        yes = {True: "yes", False: "no"}
        rows = [
            ("linear", yes[self.is_linear]),
            ("differentiable", yes[self.is_differentiable]),
            ("monotone", yes[self.is_monotone]),
            ("identity near zero", yes[self.is_identity_near_zero]),
            ("zero-centered", yes[self.is_zero_centered]),
            ("saturation", self.saturation),
            ("range", f"{self.lower_bound:.4g} to {self.upper_bound:.4g}"),
            ("largest slope", f"{self.max_slope:.4g}"),
        ]
        return render_table(f"Activation {self.name}", ["property", "value"], rows)


def activation_properties(activation: Any) -> ActivationProperties:
    """Measures an activation function: corners, range, saturation, slopes.

    Use it to compare activations, also ones of your own: nothing is looked up by
    name. The function is computed between -10 and 10 in steps of 0.001, its slope
    by automatic differentiation, and both at -1e6 and 1e6.

    Args:
        activation: Name of a Keras activation, a function of one tensor, or a layer
            such as `keras.layers.LeakyReLU()`. It works element by element. A layer
            is measured as it works at inference.

    Returns:
        An `ActivationProperties`, which prints as a table.

    Raises:
        InvalidArgumentError: If an output depends on more than one input, as that of
            softmax does.

    Example:

    >>> found = tfdeep.layers.activation_properties("elu")
    >>> found.is_zero_centered, found.saturation, found.lower_bound, found.upper_bound
    (True, 'one-sided', -1.0, inf)
    """
    function = keras.activations.get(activation)
    # Half a step beside 0: at a corner there is no slope.
    x = np.arange(-10 + _STEP / 2, 10, _STEP)
    y, slope = _measured(function, x)
    _check_element_wise(function, x, y, activation)
    ends, end_slopes = _measured(function, np.array([-_FAR, _FAR]))
    largest = float(np.abs(slope).max())
    # Between neighbors, a slope without a corner and a curve without a jump.
    steepest = np.maximum(np.abs(slope[1:]), 1)
    has_corner = (np.abs(np.diff(slope)) > 0.01 * steepest).any()
    has_jump = np.abs(np.diff(y)).max() > 2 * _STEP * (largest + 0.01)
    middle = np.abs(x) < 2 * _STEP
    saturates = np.abs(end_slopes) < _FLAT
    lower, upper = _range(y, ends, saturates)
    return ActivationProperties(
        name=_name(function),
        is_linear=np.allclose(y, y[0] + slope[0] * (x - x[0]), atol=1e-4),
        is_differentiable=not (has_corner or has_jump),
        is_monotone=bool((np.diff(y) > -1e-6).all() or (np.diff(y) < 1e-6).all()),
        is_identity_near_zero=bool(
            (np.abs(slope[middle] - 1) < 0.01).all()
            and (np.abs(y[middle] - x[middle]) < 1e-4).all()
        ),
        is_zero_centered=lower < -1e-6 and upper > 1e-6,
        saturation=("none", "one-sided", "two-sided")[saturates.sum()],
        lower_bound=lower,
        upper_bound=upper,
        max_slope=largest,
    )


def _measured(function: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values and the slopes of a function."""
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.convert_to_tensor(function(x))
    slope = tape.gradient(y, x)
    slope = tf.zeros_like(x) if slope is None else slope
    return y.numpy().astype("float64"), slope.numpy().astype("float64")


def _range(y: np.ndarray, ends: np.ndarray, saturates: np.ndarray) -> list[float]:
    """The bounds of the outputs; infinite where an end is the farthest and goes on."""
    bounds = []
    for extreme, infinity in ((np.min, -np.inf), (np.max, np.inf)):
        bound = extreme(np.append(y, ends))
        goes_on = any((ends == bound) & ~saturates)
        bounds.append(float(infinity if goes_on else bound))
    return bounds


def _name(function: Any) -> str:
    name = getattr(function, "__name__", None) or getattr(function, "name", None)
    return str(name or type(function).__name__)


def _check_element_wise(
    function: Any, x: np.ndarray, y: np.ndarray, activation: Any
) -> None:
    some = slice(None, None, 1000)
    if y.shape == x.shape and np.allclose(
        _measured(function, x[some])[0], y[some], atol=1e-5
    ):
        return
    raise InvalidArgumentError(
        explain(
            "`activation_properties` cannot measure this function.",
            received=f"activation={activation!r}",
            expected="a function each of whose outputs depends on one input",
            fix="softmax and its like mix the units and have no such properties",
        )
    )
