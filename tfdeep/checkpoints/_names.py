"""How files name their tensors, and how `rename` changes those names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep.checkpoints._invalid import invalid
from tfdeep.checkpoints._readers._tensors import TensorInfo, path_of
from tfdeep.errors import SelectionError

Rename = Mapping[str, str] | Callable[[str], str] | None


def pattern_over_paths(pattern: str) -> str:
    r"""A regular expression over names with dots, as one over paths.

    A dot that stands for itself, as `\.` or in a set, becomes the separator "/".

    >>> pattern_over_paths(r"layer(\d)\.conv[.\w]+")
    'layer(\\d)/conv[/\\w]+'
    """
    translated, in_set = "", False
    for token in re.findall(r"\\.|.", pattern, re.DOTALL):
        in_set = token == "[" or (in_set and token != "]")
        is_dot = token == r"\." or (token == "." and in_set)
        translated += "/" if is_dot else token
    return translated


def by_path(tensors: Sequence[TensorInfo], rename: Rename) -> dict[str, TensorInfo]:
    """The tensors of a file by the paths that `rename` gives them.

    Raises:
        InvalidArgumentError: If `rename` cannot work, or two tensors get one path.
        SelectionError: If a pattern of `rename` matches no name.
    """
    new_path = _renamer([tensor.path for tensor in tensors], rename)
    found: dict[str, TensorInfo] = {}
    for tensor in tensors:
        path = new_path(tensor.path)
        if path in found:
            raise invalid(
                f"Two tensors of the file would both be called {path!r}.",
                received=f"{found[path].name!r} and {tensor.name!r}, rename={rename!r}",
                expected="a different name for each tensor",
                fix="make `rename` narrower",
            )
        found[path] = tensor
    return found


def _renamer(paths: Sequence[str], rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return lambda path: path
    if callable(rename):
        return lambda path: _checked_path(rename(path), f"rename({path!r})")
    if not isinstance(rename, Mapping):
        raise invalid(
            "`rename` is neither a dict nor a function.",
            received=f"rename={rename!r}",
            expected="a dict of regular expressions, or a function of a name",
            fix='rename={"encoder": ""}',
        )
    rules = [(_compiled(old, paths), new) for old, new in rename.items()]

    def renamed(path: str) -> str:
        for pattern, new in rules:
            match = _paths.match_components(pattern, path)
            if match is not None:
                rest = path[match.end() :]
                return path_of(_expanded(match, new) + rest).strip("/")
        return path

    return renamed


def _compiled(old: str, paths: Sequence[str]) -> re.Pattern[str]:
    _paths.compile_pattern(old)  # which explains what is wrong with it
    pattern = re.compile(pattern_over_paths(old))
    if any(_paths.match_components(pattern, path) for path in paths):
        return pattern
    raise SelectionError(
        explain(
            f"The pattern {old!r} of `rename` matches no name in the file.",
            received=f"{old!r} against {len(paths)} tensors",
            expected="a regular expression that matches whole components from the "
            "start of a name",
            fix=f"nearest names: {listing(_paths.nearest(old, paths))}; nothing was "
            "changed",
        )
    )


def _checked_path(name: object, call: str) -> str:
    if isinstance(name, str):
        return path_of(name)
    raise invalid(
        "`rename` returned something other than a name.",
        received=f"{name!r} from {call}",
        expected="a string",
        fix="return the name itself to leave it as it is",
    )


def _expanded(match: re.Match[str], new: str) -> str:
    try:
        return match.expand(new)
    except (re.error, IndexError, TypeError) as error:
        raise invalid(
            f"`rename` has a replacement that cannot be used: {error}.",
            received=f"{match.re.pattern!r}: {new!r}",
            expected=r"text, with \1 for the first group of the pattern",
            fix="correct the replacement",
        ) from error
