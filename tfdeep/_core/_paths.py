"""One rule for naming and picking the variables of a model.

A variable's path is the names of the layers around it, then its own name:
`hidden1/kernel`, `base/block2/conv/bias`. The model's own name is not part of it, so
the path is the same for a Sequential, a Functional and a subclassed model.

A pattern is a regular expression that must match whole path components from the
start: `hidden[123]` selects `hidden1/kernel` and not `hidden10/kernel`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from tfdeep._core._explain import a_type, explain, listing
from tfdeep.errors import SelectionError

Patterns = str | Sequence[str] | None


def select(
    paths: Sequence[str],
    include: Patterns = None,
    exclude: Patterns = None,
    what: str = "variable",
) -> list[str]:
    """The paths that `include` selects and `exclude` does not, in their order.

    Args:
        paths: The paths to choose from.
        include: A pattern or a list of them (a union). None selects everything.
        exclude: A pattern or a list of them. None excludes nothing.
        what: What the paths name, for the error message.

    Raises:
        SelectionError: If a pattern is not a regular expression or matches nothing,
            or if nothing is left.

    >>> select(["hidden1/kernel", "hidden10/kernel"], include="hidden[123]")
    ['hidden1/kernel']
    """
    chosen = set(paths) if include is None else _matching(paths, include, what)
    if exclude is not None:
        chosen -= _matching(paths, exclude, what)
    if not chosen:
        raise SelectionError(
            explain(
                f"No {what} is left to work on.",
                received=f"include={include!r}, exclude={exclude!r}",
                expected=f"at least one of the {len(paths)} {what}s to stay selected",
                fix="make `exclude` narrower; nothing was changed",
            )
        )
    return [path for path in paths if path in chosen]


def as_patterns(patterns: Patterns) -> list[str]:
    """A list of patterns from None, one pattern, or a sequence of them."""
    if patterns is None:
        return []
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        return [patterns]  # what is no pattern is met when it is compiled
    return list(patterns)


def compile_pattern(pattern: object) -> re.Pattern[str]:
    """Compiles one pattern, or says why it is none."""
    try:
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern is a string, not {a_type(pattern)}")
        return re.compile(pattern)
    except (TypeError, re.error) as error:
        raise SelectionError(
            explain(
                f"This is not a regular expression: {error}.",
                received=repr(pattern),
                expected="a regular expression over layer names, such as 'hidden[123]'",
                fix=f"{_remedy(pattern, error)}; nothing was changed",
            )
        ) from error


def _remedy(pattern: object, error: Exception) -> str:
    """How to make a pattern of what is none."""
    if not isinstance(pattern, str):
        name = getattr(pattern, "name", None)
        if isinstance(name, str):
            return f"pass its name, {name!r}"
        return "pass the name of a layer, as `layer.name`"
    reason = str(error)
    if "unterminated character set" in reason:
        return "close the bracket with ']', or write '\\\\[' for it"
    if "unterminated subpattern" in reason:
        return "close the parenthesis with ')', or write '\\\\(' for it"
    if "nothing to repeat" in reason and "*" in pattern:
        return f"any characters are '.*': {_without_glob(pattern)!r}"
    return "escape special characters with a backslash"


def match_components(pattern: re.Pattern[str], path: str) -> re.Match[str] | None:
    """Matches `pattern` against the leading whole components of `path`, most first."""
    end = len(path)
    while end > 0:
        match = pattern.fullmatch(path, 0, end)
        if match is not None:
            return match
        end = path.rfind("/", 0, end)
    return None


def _matching(paths: Sequence[str], patterns: Patterns, what: str) -> set[str]:
    selected: set[str] = set()
    for text in as_patterns(patterns):
        pattern = compile_pattern(text)
        matched = {path for path in paths if match_components(pattern, path)}
        if not matched:
            raise SelectionError(
                explain(
                    f"The pattern {text!r} selects no {what}.",
                    received=f"{text!r} against {len(paths)} {what}s",
                    expected="a regular expression that matches whole components from "
                    "the start of a path",
                    fix=f"{_hint(text, paths)}nearest names: "
                    f"{listing(nearest(text, paths))}; nothing was changed",
                )
            )
        selected |= matched
    return selected


def _hint(text: str, paths: Sequence[str]) -> str:
    """The pattern that was probably meant, if it selects something; else nothing."""
    whole = f"({text})" if "|" in text else text
    tries = [
        (_without_glob(text), "any characters are '.*': pass "),
        (f".*/{whole}", "a path begins with the names of its layers: pass "),
        (f"{whole}.*", "a name must match to its end: pass "),
    ]
    head, _, rest = text.partition("/")
    if rest and not any(path.startswith(f"{head}/") for path in paths):
        tries.insert(1, (rest, "leave out the model's name: "))
    for attempt, reason in tries:
        try:
            pattern = re.compile(attempt)
        except re.error:
            continue
        if any(match_components(pattern, path) for path in paths):
            return f"{reason}{attempt!r}; "
    return ""


def _without_glob(text: str) -> str:
    """The regular expression for a shell's pattern such as `hidden*`."""
    return re.sub(r"(?<![.\])\\])\*", ".*", text)


def nearest(text: str, paths: Iterable[str], limit: int = 5) -> list[str]:
    """The paths, or the layers around them, whose names look most like `text`."""
    names: dict[str, None] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            names.setdefault("/".join(parts[:depth]))
    close = difflib.get_close_matches(text, names, n=limit, cutoff=0.4)
    return close or list(names)[:limit]
