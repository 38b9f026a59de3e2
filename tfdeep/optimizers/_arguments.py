"""Numbers that a wrapper's constructor accepts."""

from __future__ import annotations

import math
import numbers
from typing import Any

import keras

from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError


def number_above(
    lower: float,
    value: Any,
    argument: str,
    wrapper: str,
    unit: str,
    at_most: float = math.inf,
    example: float = 1.0,
) -> float:
    """Returns `value` as a float if it is finite and `lower < value <= at_most`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and lower < value <= at_most:
        return float(value)
    bounds = f"> {lower:g}" + (f" and <= {at_most:g}" if at_most < math.inf else "")
    raise InvalidArgumentError(
        explain(
            f"`{wrapper}` cannot work with this {argument}.",
            received=f"{argument}={value!r} ({type(value).__name__})",
            expected=f"a finite number {bounds}, in {unit}",
            fix=_fix(value, wrapper, f"{argument}={example:g}"),
        )
    )


def whole_number_above(
    lower: int, value: Any, argument: str, wrapper: str, unit: str, example: int
) -> int:
    """Returns `value` as an int if it is a whole number greater than `lower`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_whole and value > lower:
        return int(value)
    raise InvalidArgumentError(
        explain(
            f"`{wrapper}` cannot work with this {argument}.",
            received=f"{argument}={value!r} ({type(value).__name__})",
            expected=f"a whole number > {lower}, in {unit}",
            fix=_fix(value, wrapper, f"{argument}={example}"),
        )
    )


def _fix(value: Any, wrapper: str, example: str) -> str:
    if _is_optimizer(value):
        return f"the arguments are swapped: write `{wrapper}(optimizer, {example})`"
    return f"pass for example `{example}`, or leave the wrapper out"


def _is_optimizer(value: Any) -> bool:
    """Whether `value` is an optimizer or the name of one."""
    if isinstance(value, str):
        try:
            value = keras.optimizers.get(value)
        except ValueError:
            return False
    return isinstance(value, keras.optimizers.Optimizer)
