"""Decides which tensors of a file go into which variable of a model.

Pure: it sees names, shapes and dtypes, never values, never the model.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep.checkpoints._readers._limits import dtype_of, is_floating
from tfdeep.checkpoints._readers._reader import TensorInfo
from tfdeep.checkpoints._torch_layout import Recipe
from tfdeep.errors import InvalidArgumentError, SelectionError

Rename = Mapping[str, str] | Callable[[str], str] | None
Transform = Mapping[str, Callable[[np.ndarray], Any]] | None


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
        slot: Its number among the optimizer's variables; None for a weight.
        recipes: What else it may be made of, in a file of another framework.
        transform: What to do to its values, as the caller asked.
    """

    path: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    layer_class: str
    layer_variables: int | None
    slot: int | None = None
    recipes: tuple[Recipe, ...] = ()
    transform: Callable[[np.ndarray], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Match:
    """A variable and what fills it.

    Attributes:
        path: The variable's path in the model.
        sources: The names of its tensors in the file; nearly always one.
        renamed: What `rename` made of the first of them, or None.
        shape: The variable's shape.
        dtype: The variable's dtype.
        note: What is done to the values on their way: "transposed", "cast from
            float64"; empty if nothing is.
    """

    path: str
    sources: tuple[str, ...]
    renamed: str | None
    shape: tuple[int, ...]
    dtype: str
    note: str

    @property
    def source(self) -> str:
        """The names of its tensors as one text."""
        return " + ".join(self.sources)


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A variable and what would fill it by name, but does not fit.

    Attributes:
        path: The variable's path in the model.
        source: The names of its tensors in the file.
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
        converters: By path, what turns the tensors of a match into the values of its
            variable.
    """

    matched: tuple[Match, ...]
    missing: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]
    converters: Mapping[str, Converter]


@dataclasses.dataclass(frozen=True)
class Converter:
    """Turns the tensors of a file into the values of a variable.

    Attributes:
        recipe: The layout to come from, if it is not that of the variable.
        transform: What the caller asked for.
        cast: The dtype to convert to, if it is not that of the file.
    """

    recipe: Recipe | None = None
    transform: Callable[[np.ndarray], Any] | None = None
    cast: np.dtype | None = None

    def __call__(self, *tensors: np.ndarray) -> np.ndarray:
        values = self.recipe.convert(*tensors) if self.recipe else tensors[0]
        if self.transform is not None:
            if not values.flags.writeable:  # it may work in place
                values = values.copy()
            values = np.asarray(self.transform(values))
        if self.cast is not None:
            with np.errstate(over="ignore"):
                values = values.astype(self.cast)
        return np.asarray(values)


def make_plan(
    targets: Sequence[Target],
    tensors: Sequence[TensorInfo],
    rename: Rename = None,
    separator: str = "/",
    cast: bool = False,
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
        separator: What the file's names have between components: "." in PyTorch.
        cast: Whether values may be converted to the variable's dtype.

    Raises:
        InvalidArgumentError: If two tensors would get one name, or more than one
            prefix fits.
        SelectionError: If a pattern of `rename` matches no name.
    """
    by_name = _by_name(tensors, rename, separator)
    targets = [_in_components(target, separator) for target in targets]
    prefix = _common_prefix(targets, by_name)
    matched, missing, mismatched = [], [], []
    converters = {}
    used: set[str] = set()
    filled: dict[str, str] = {}  # by the one tensor that fills it
    for target in targets:
        found = _find(target, by_name, prefix)
        if found is None:
            missing.append(target.path)
            continue
        names, recipe = found
        sources = [by_name[name] for name in names]
        used.update(tensor.name for tensor in sources)
        converter, notes = _converter(target, sources, recipe, cast)
        reason = _why_not(target, sources, converter)
        if recipe is None:
            first = filled.setdefault(names[0], target.path)
            if first != target.path:
                reason = f"{sources[0].name} fills {first}"
        if reason is not None:
            source = " + ".join(tensor.name for tensor in sources)
            mismatched.append(Mismatch(target.path, source, reason))
            continue
        converters[target.path] = converter
        plain = sources[0].name.replace(separator, "/")
        matched.append(
            Match(
                target.path,
                tuple(tensor.name for tensor in sources),
                names[0] if names[0] != plain else None,
                target.shape,
                target.dtype,
                ", ".join(notes),
            )
        )
    unused = tuple(tensor.name for tensor in tensors if tensor.name not in used)
    return RestorePlan(
        tuple(matched), tuple(missing), tuple(mismatched), unused, converters
    )


def _in_components(target: Target, separator: str) -> Target:
    """The target, looked for by names as `_by_name` writes those of the file."""
    return dataclasses.replace(
        target,
        names=tuple(name.replace(separator, "/") for name in target.names),
        recipes=tuple(
            dataclasses.replace(
                recipe,
                sources=tuple(n.replace(separator, "/") for n in recipe.sources),
            )
            for recipe in target.recipes
        ),
    )


def _find(
    target: Target, by_name: Mapping[str, TensorInfo], prefix: str
) -> tuple[list[str], Recipe | None] | None:
    """The names of what fills a variable, and how, if the file has all of it."""
    for recipe in target.recipes:
        names = [prefix + name for name in recipe.sources]
        if all(name in by_name for name in names):
            return names, recipe
    for name in target.names:
        if prefix + name in by_name:
            return [prefix + name], None
    return None


def _converter(
    target: Target, sources: Sequence[TensorInfo], recipe: Recipe | None, cast: bool
) -> tuple[Converter, list[str]]:
    notes = [recipe.note] if recipe is not None and recipe.note else []
    if target.transform is not None:
        notes.append("transformed")
    dtypes = {tensor.dtype for tensor in sources}
    to = None
    if cast and (target.transform is not None or dtypes != {target.dtype}):
        to = dtype_of("", target.path, target.dtype)
    if cast and dtypes != {target.dtype}:
        notes.append(f"cast from {', '.join(sorted(dtypes))}")
    return Converter(recipe, target.transform, to), notes


def _by_name(
    tensors: Sequence[TensorInfo], rename: Rename, separator: str
) -> dict[str, TensorInfo]:
    plain = [tensor.name.replace(separator, "/") for tensor in tensors]
    new_name = _renamer(plain, rename)
    by_name: dict[str, TensorInfo] = {}
    for tensor, plain_name in zip(tensors, plain, strict=True):
        name = new_name(plain_name)
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
    if not isinstance(rename, Mapping):
        raise InvalidArgumentError(
            explain(
                "`rename` is not of a kind that says how.",
                received=f"rename={rename!r}",
                expected="a dict of regular expressions, or a function of a name",
                fix='rename={"encoder": ""}; nothing was changed',
            )
        )
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
                return (_expanded(match, new) + name[match.end() :]).strip("/")
        return name

    return renamed


def _expanded(match: re.Match[str], new: str) -> str:
    try:
        return match.expand(new)
    except (re.error, IndexError, TypeError) as error:
        raise InvalidArgumentError(
            explain(
                f"`rename` cannot put this in the place of a name: {error}.",
                received=f"{match.re.pattern!r}: {new!r}",
                expected=r"text, with \1 for the first group of the pattern",
                fix="mend the replacement; nothing was changed",
            )
        ) from error


def _common_prefix(targets: Sequence[Target], by_name: Mapping[str, TensorInfo]) -> str:
    """What the file's names have in front of the model's: "" or "scope/"."""
    wanted = {
        name: target.path
        for target in targets
        for name in (*target.names, *(n for r in target.recipes for n in r.sources))
    }
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
    best += [
        prefix
        for prefix, paths in found.items()
        # An optimizer's variables stand below names of their own: `Adam/m/dnn/...`.
        if prefix not in best
        and paths & found[best[0]]
        and not prefix.endswith(best[0])
    ]
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


def _why_not(
    target: Target, sources: Sequence[TensorInfo], converter: Converter
) -> str | None:
    """What keeps tensors from going into a variable of their name, or None."""
    tensor = sources[0]
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
    shapes = ", ".join(str(tensor.shape) for tensor in sources)
    stand_in = _ones if converter.transform else _flat_ones
    try:
        uncast = dataclasses.replace(converter, cast=None)
        made = uncast(*(stand_in(tensor) for tensor in sources))
    except Exception as error:  # whatever a transform of the caller's raises
        return f"shape {shapes} in the file: {error}"
    if made.shape != target.shape:
        how = f", made {made.shape}" if str(made.shape) != shapes else ""
        return f"shape {shapes} in the file{how}, {target.shape} in the model"
    return _why_no_dtype(made.dtype, target, converter)


def _why_no_dtype(dtype: np.dtype, target: Target, converter: Converter) -> str | None:
    wanted = dtype_of("", target.path, target.dtype)
    if dtype == wanted:
        return None
    reason = f"dtype {dtype.name} in the file, {target.dtype} in the model"
    if not may_cast(dtype, wanted):
        return reason
    return None if converter.cast else f"{reason} (`cast=True` converts)"


def may_cast(dtype: np.dtype, wanted: np.dtype) -> bool:
    """Whether numbers of one dtype may be asked to become another's."""
    if is_floating(wanted):
        return is_floating(dtype) or dtype.kind in "iub"
    return bool(np.can_cast(dtype, wanted, "safe"))


def _ones(tensor: TensorInfo) -> np.ndarray:
    """What a tensor may look like to a function of the caller's."""
    return np.ones(tensor.shape, dtype_of("", tensor.name, tensor.dtype))


def _flat_ones(tensor: TensorInfo) -> np.ndarray:
    """The same, in no memory."""
    one = np.ones((), dtype_of("", tensor.name, tensor.dtype))
    return np.broadcast_to(one, tensor.shape)


def _may_be(in_file: str | None, in_model: str) -> bool:
    """Whether `multi_head_attention` in a file may mean `MultiHeadAttention`."""
    # Keras numbers equal layers: `block_1` is a second `Block`, or a `Block_1`.
    names = (in_model, re.sub(r"_?\d+$", "", in_model))
    return in_file is None or in_file.replace("_", "") in [
        name.replace("_", "").lower() for name in names
    ]
