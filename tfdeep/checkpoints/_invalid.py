"""The error for an argument that cannot work."""

from __future__ import annotations

from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError


def invalid(what: str, received: str, expected: str, fix: str) -> InvalidArgumentError:
    """The error for an argument that is met before anything is changed."""
    return InvalidArgumentError(
        explain(what, received, expected, f"{fix}; nothing was changed")
    )
