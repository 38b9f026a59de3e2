"""Checks of arguments: what passes, what comes out, and what the error says."""

import fractions
import math

import numpy as np
import pytest

from tfdeep._core._arguments import flag, number, one_of, whole_number
from tfdeep.errors import InvalidArgumentError

NO_NUMBERS = [True, np.True_, "1", None, 1j, [1], np.ones(1), math.nan, math.inf]


@pytest.mark.parametrize(
    "value",
    [2, 2.0, np.float32(2), np.int8(2), np.array(2), np.array(2.0), np.float16(2),
     fractions.Fraction(2)],
    ids=repr,
)  # fmt: skip
def test_a_number_becomes_a_float(value):
    found = number(value, "rate", "Owner", above=0)
    assert type(found) is float and found == 2


@pytest.mark.parametrize("value", [*NO_NUMBERS, 10**400, -(10**400)], ids=str)
def test_what_is_no_finite_number(value):
    with pytest.raises(InvalidArgumentError, match="a finite number"):
        number(value, "rate", "Owner")


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ({"above": 0}, [1e-300, 5], [0, -1]),
        ({"at_least": 0}, [0, 5], [-1e-300]),
        ({"at_most": 1}, [1, -5], [1.0001]),
        ({"below": 1}, [0.9999, -5], [1, 2]),
        ({"at_least": 0, "below": 1}, [0, 0.5], [1, -1]),
    ],
    ids=str,
)
def test_the_bounds_of_a_number(bounds, inside, outside):
    for value in inside:
        assert number(value, "rate", "Owner", **bounds) == value
    for value in outside:
        with pytest.raises(InvalidArgumentError):
            number(value, "rate", "Owner", **bounds)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)], ids=repr)
def test_a_whole_number_becomes_an_int(value):
    found = whole_number(value, "steps", "Owner", above=0)
    assert type(found) is int and found == 3


@pytest.mark.parametrize("value", [*NO_NUMBERS, 3.0, np.float64(3), 0, -1], ids=str)
def test_what_is_no_whole_number(value):
    with pytest.raises(InvalidArgumentError, match="a whole number > 0, in steps"):
        whole_number(value, "steps", "Owner", above=0, unit="steps")


@pytest.mark.parametrize("value", [True, np.True_, np.array(True)], ids=repr)
def test_a_flag_becomes_a_bool(value):
    assert flag(value, "shuffle", "Owner") is True


@pytest.mark.parametrize("value", [1, 0, None, "yes", np.ones(2, bool)], ids=str)
def test_what_is_no_flag(value):
    with pytest.raises(InvalidArgumentError, match="True or False"):
        flag(value, "shuffle", "Owner")


@pytest.mark.parametrize("value", ["b", True, 1.0, None, [1], np.ones(2)], ids=str)
def test_one_of_compares_type_and_value(value):
    assert one_of(1, (1, "a"), "choice", "Owner") == 1
    with pytest.raises(InvalidArgumentError, match="one of 1, 'a'"):
        one_of(value, (1, "a"), "choice", "Owner")


def test_the_error_says_all_there_is_to_know():
    with pytest.raises(InvalidArgumentError) as error:
        number(2, "decay", "ZScoreClip", above=0, below=1, unit="a step", example=0.9)
    assert str(error.value) == (
        "`ZScoreClip` cannot work with this `decay`.\n"
        "  Received: decay=2 (int)\n"
        "  Expected: a finite number > 0 and < 1, in a step\n"
        "  Fix:      pass, for example, `decay=0.9`"
    )
    with pytest.raises(InvalidArgumentError, match="Fix:      count them"):
        whole_number(0, "branches", "Fixup", above=0, fix="count them")
