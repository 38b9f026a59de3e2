"""Checks of arguments: each returns the value as a plain Python one, or raises.

`owner` is the function or class whose argument it is. NumPy scalars and arrays without
axes count as the numbers and flags that they hold. A bool is not a number.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any, NoReturn, TypeVar

import numpy as np

from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError

T = TypeVar("T")


def number(
    value: Any,
    argument: str,
    owner: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    unit: str = "",
    example: float = 1.0,
    fix: str = "",
) -> float:
    """Returns `value` as a float if it is finite and within the bounds.

    Args:
        value: What the caller gave.
        argument: The name of the argument.
        owner: Whose argument it is.
        above: The value must be greater.
        at_least: The value must not be smaller.
        at_most: The value must not be greater.
        below: The value must be smaller.
        unit: What the number counts, and what else the owner accepts, such as
            "steps, or None for all".
        example: A value that works.
        fix: What the caller can do; by default, to pass the example.

    Raises:
        InvalidArgumentError: If it is not such a number.

    >>> number(np.float32(0.5), "rate", "Dropout", at_least=0, below=1)
    0.5
    """
    plain = _plain(value)
    if (
        is_number(plain)
        and above < plain < below
        and at_least <= plain <= at_most
        and -_LARGEST <= plain <= _LARGEST
    ):
        return float(plain)
    bounds = _bounds(above, at_least, at_most, below)
    _refuse(value, argument, owner, "a finite number", bounds, unit, example, fix)


def whole_number(
    value: Any,
    argument: str,
    owner: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    unit: str = "",
    example: int = 1,
    fix: str = "",
) -> int:
    """Returns `value` as an int if it is whole and within the bounds.

    The arguments are those of `number`.

    Raises:
        InvalidArgumentError: If it is not such a number.

    >>> whole_number(np.int64(3), "steps", "Accumulate", above=1)
    3
    """
    plain = _plain(value)
    if is_whole_number(plain) and above < plain and at_least <= plain <= at_most:
        return int(plain)
    bounds = _bounds(above, at_least, at_most)
    _refuse(value, argument, owner, "a whole number", bounds, unit, example, fix)


def flag(value: Any, argument: str, owner: str, example: bool = True) -> bool:
    """Returns `value` as a bool if it is one.

    Raises:
        InvalidArgumentError: If it is anything else.

    >>> flag(np.True_, "shuffle", "cache_frozen")
    True
    """
    plain = _plain(value)
    if isinstance(plain, bool):
        return plain
    _refuse(value, argument, owner, "True or False", example=example)


def one_of(value: T, choices: Collection[T], argument: str, owner: str) -> T:
    """Returns `value` if it is one of the choices, the first of which is the example.

    Raises:
        InvalidArgumentError: If it is anything else.

    >>> one_of("sum", ("mean", "sum"), "reduction", "loss")
    'sum'
    """
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return value
    expected = f"one of {', '.join(map(repr, choices))}"
    _refuse(value, argument, owner, expected, example=next(iter(choices)))


def is_number(value: Any) -> bool:
    """Whether `value` is a real number and not a bool."""
    plain = _plain(value)
    return isinstance(plain, numbers.Real) and not isinstance(plain, bool)


def is_whole_number(value: Any) -> bool:
    """Whether `value` is an integer of Python or NumPy and not a bool."""
    plain = _plain(value)
    return isinstance(plain, numbers.Integral) and not isinstance(plain, bool)


_LARGEST = float(np.finfo("float64").max)


def _plain(value: Any) -> Any:
    """A NumPy scalar, or an array without axes, as a Python value."""
    is_scalar = isinstance(value, np.generic) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    )
    return value.item() if is_scalar else value


def _bounds(
    above: float,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> str:
    bounds = {">": above, ">=": at_least, "<=": at_most, "<": below}
    told = [f"{sign} {b:g}" for sign, b in bounds.items() if math.isfinite(b)]
    return " and ".join(told)


def _refuse(
    value: Any,
    argument: str,
    owner: str,
    kind: str,
    bounds: str = "",
    unit: str = "",
    example: Any = None,
    fix: str = "",
) -> NoReturn:
    raise InvalidArgumentError(
        explain(
            f"`{owner}` cannot work with this `{argument}`.",
            received=f"{argument}={value!r} ({type(value).__name__})",
            expected=f"{kind} {bounds}".strip() + (f", in {unit}" if unit else ""),
            fix=fix or f"pass, for example, `{argument}={example!r}`",
        )
    )
