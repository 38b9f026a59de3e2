"""Numbers and choices that a layer's constructor accepts."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError


def number(
    value: Any,
    argument: str,
    layer: str,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    example: float = 1.0,
) -> float:
    """Returns `value` as a float if it is finite and within the bounds."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and at_least <= value <= at_most:
        return float(value)
    bounds = [f">= {at_least:g}"] if at_least > -math.inf else []
    bounds += [f"<= {at_most:g}"] if at_most < math.inf else []
    raise InvalidArgumentError(
        explain(
            f"`{layer}` cannot work with this {argument}.",
            received=f"{argument}={value!r} ({type(value).__name__})",
            expected=" ".join(["a finite number", " and ".join(bounds)]).strip(),
            fix=f"pass for example `{argument}={example:g}`",
        )
    )


def whole_number(
    value: Any, argument: str, layer: str, at_least: int, example: int
) -> int:
    """Returns `value` as an int if it is whole and not below `at_least`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_whole and value >= at_least:
        return int(value)
    raise InvalidArgumentError(
        explain(
            f"`{layer}` cannot work with this {argument}.",
            received=f"{argument}={value!r} ({type(value).__name__})",
            expected=f"a whole number >= {at_least}",
            fix=f"pass for example `{argument}={example}`",
        )
    )


def one_of(choices: Collection[Any], value: Any, argument: str, layer: str) -> Any:
    """Returns `value` if it is one of the choices."""
    if value in choices:
        return value
    raise InvalidArgumentError(
        explain(
            f"`{layer}` knows no such {argument}.",
            received=f"{argument}={value!r}",
            expected=f"one of {', '.join(map(repr, choices))}",
            fix=f"pass for example `{argument}={next(iter(choices))!r}`",
        )
    )
