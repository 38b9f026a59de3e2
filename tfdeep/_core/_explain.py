"""The one shape of tfdeep's error messages."""

from __future__ import annotations

import re
from collections.abc import Iterable


def explain(what: str, received: str, expected: str, fix: str) -> str:
    """Renders an error message that says what went wrong and how to fix it.

    Args:
        what: One sentence: what happened, in which context.
        received: What the caller gave, as plain Python values.
        expected: What would have worked.
        fix: What the caller can do now.

    Returns:
        The four parts, one a line.

    >>> print(explain("Cannot clip.", "clip_norm=-1", "a number > 0", "clip_norm=1.0"))
    Cannot clip.
      Received: clip_norm=-1
      Expected: a number > 0
      Fix:      clip_norm=1.0
    """
    return f"{what}\n  Received: {received}\n  Expected: {expected}\n  Fix:      {fix}"


def printable(text: str) -> str:
    """Text with control characters escaped: a terminal would obey them.

    >>> print(printable("a\\x1b[2Jb"))
    a\\x1b[2Jb
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def listing(items: Iterable[object], limit: int = 5) -> str:
    """Names at most `limit` items and says how many more there are.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = [printable(str(item)) for item in items]
    shown = ", ".join(names[:limit])
    if len(names) > limit:
        return f"{shown} and {len(names) - limit} more"
    return shown or "none"


def a_type(value: object) -> str:
    """The name of the type of `value` with its article.

    >>> a_type(3), a_type("3")
    ('an int', 'a str')
    """
    name = type(value).__name__
    vowel = re.match("[AEIOaeio]|nd|[FHLMNRSX][A-Z]", name)  # ndarray, LSTM
    return f"{'an' if vowel else 'a'} {name}"
