"""Decides which tensor of a file goes into which variable of a model.

Pure: it sees names, shapes and dtypes, never values, never the model.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep.checkpoints._reader import TensorInfo
from tfdeep.errors import InvalidArgumentError, SelectionError

Rename = Mapping[str, str] | Callable[[str], str] | None


@dataclasses.dataclass(frozen=True)
class Target:
    """A variable of the model that wants values.

    Attributes:
        path: Its path in the model.
        names: The names it may have in a file, best first.
        shape: Its shape.
        dtype: Its dtype.
        layer_class: The class of its layer, `MultiHeadAttention`.
        layer_variables: How many variables its layer saves, or None if unknown.
    """

    path: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    layer_class: str
    layer_variables: int | None


@dataclasses.dataclass(frozen=True)
class Match:
    """A variable and the tensor that fits it.

    Attributes:
        path: The variable's path in the model.
        source: The tensor's name in the file.
        location: Where the file keeps it.
        shape: Their shape.
        dtype: Their dtype.
    """

    path: str
    source: str
    location: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A variable and the tensor of its name that does not fit it.

    Attributes:
        path: The variable's path in the model.
        source: The tensor's name in the file.
        reason: What differs, in words.
    """

    path: str
    source: str
    reason: str


@dataclasses.dataclass(frozen=True)
class RestorePlan:
    """What goes where.

    Attributes:
        matched: The pairs that fit.
        missing: Paths of variables that the file has no tensor for.
        mismatched: The pairs of one name that do not fit.
        unused: Names of tensors that no variable wants.
    """

    matched: tuple[Match, ...]
    missing: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]


def make_plan(
    targets: Sequence[Target], tensors: Sequence[TensorInfo], rename: Rename = None
) -> RestorePlan:
    """Matches variables and tensors by name, and checks that each pair fits.

    A file may have been written from inside a larger scope (`dnn/hidden1/kernel`, or
    `sequential_3/...`). If no name matches as it is, one prefix common to all the
    matches is looked for; two different prefixes that would do are an error.

    Args:
        targets: The variables to fill.
        tensors: What the file holds.
        rename: Regular expressions and what to put in place of the leading
            components of the file's names that they match, or a function of a name.

    Raises:
        InvalidArgumentError: If two tensors would get one name, or more than one
            prefix fits.
        SelectionError: If a pattern of `rename` matches no name.
    """
    by_name = _by_name(tensors, rename)
    prefix = _common_prefix(targets, by_name)
    matched, missing, mismatched = [], [], []
    used = set()
    for target in targets:
        names = [prefix + name for name in target.names]
        name = next((name for name in names if name in by_name), None)
        if name is None:
            missing.append(target.path)
            continue
        tensor = by_name[name]
        used.add(tensor.name)
        reason = _why_not(target, tensor)
        if reason is not None:
            mismatched.append(Mismatch(target.path, tensor.name, reason))
            continue
        matched.append(
            Match(target.path, tensor.name, tensor.location, tensor.shape, tensor.dtype)
        )
    unused = tuple(tensor.name for tensor in tensors if tensor.name not in used)
    return RestorePlan(tuple(matched), tuple(missing), tuple(mismatched), unused)


def _by_name(tensors: Sequence[TensorInfo], rename: Rename) -> dict[str, TensorInfo]:
    new_name = _renamer([tensor.name for tensor in tensors], rename)
    by_name: dict[str, TensorInfo] = {}
    for tensor in tensors:
        name = new_name(tensor.name)
        if name in by_name:
            raise InvalidArgumentError(
                explain(
                    f"Two tensors of the file would both be called {name!r}.",
                    received=f"{by_name[name].name!r} and {tensor.name!r}, "
                    f"rename={rename!r}",
                    expected="a different name for each tensor",
                    fix="make `rename` narrower; nothing was changed",
                )
            )
        by_name[name] = tensor
    return by_name


def _renamer(names: Sequence[str], rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return lambda name: name
    if callable(rename):
        return rename
    rules = [(_paths.compile_pattern(old), new) for old, new in rename.items()]
    for pattern, _ in rules:
        if not any(_paths.match_components(pattern, name) for name in names):
            near = listing(_paths.nearest(pattern.pattern, names))
            raise SelectionError(
                explain(
                    f"The pattern {pattern.pattern!r} of `rename` matches no name in "
                    "the file.",
                    received=f"{pattern.pattern!r} against {len(names)} tensors",
                    expected="a regular expression that matches whole components from "
                    "the start of a name",
                    fix=f"nearest names: {near}; nothing was changed",
                )
            )

    def renamed(name: str) -> str:
        for pattern, new in rules:
            match = _paths.match_components(pattern, name)
            if match is not None:
                return (match.expand(new) + name[match.end() :]).strip("/")
        return name

    return renamed


def _common_prefix(targets: Sequence[Target], by_name: Mapping[str, TensorInfo]) -> str:
    """What the file's names have in front of the model's: "" or "scope/"."""
    wanted = {name: target.path for target in targets for name in target.names}
    found: dict[str, set[str]] = collections.defaultdict(set)
    for name in by_name:
        start = 0
        while True:
            if name[start:] in wanted:
                found[name[:start]].add(wanted[name[start:]])
            start = name.find("/", start) + 1
            if start == 0:
                break
    if "" in found or not found:
        return ""
    most = max(len(paths) for paths in found.values())
    best = [prefix for prefix, paths in found.items() if len(paths) == most]
    if len(best) > 1:
        raise InvalidArgumentError(
            explain(
                "The file holds the model's names more than once.",
                received=f"{listing(sorted(found[best[0]]))} below each of "
                f"{listing(sorted(best))}",
                expected="one place in the file for each variable",
                fix=f"say which: `rename={{{best[0].rstrip('/')!r}: ''}}`; "
                "nothing was changed",
            )
        )
    return best[0]


def _why_not(target: Target, tensor: TensorInfo) -> str | None:
    """What keeps a tensor from going into a variable of its name, or None."""
    if not _may_be(tensor.layer_class, target.layer_class):
        # Tensors that are only numbered mean something else in another class.
        return (
            f"the file's layer is a {tensor.layer_class}, "
            f"the model's is a {target.layer_class}"
        )
    if (
        tensor.layer_variables is not None
        and tensor.layer_variables != target.layer_variables
    ):
        return (
            f"the file's layer has {tensor.layer_variables} variables, "
            f"the model's has {target.layer_variables}"
        )
    if tensor.shape != target.shape:
        return f"shape {tensor.shape} in the file, {target.shape} in the model"
    if tensor.dtype != target.dtype:
        return f"dtype {tensor.dtype} in the file, {target.dtype} in the model"
    return None


def _may_be(in_file: str | None, in_model: str) -> bool:
    """Whether `multi_head_attention` in a file may mean `MultiHeadAttention`."""
    return (
        in_file is None or in_file.replace("_", "") == in_model.replace("_", "").lower()
    )
