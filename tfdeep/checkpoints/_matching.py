"""Decides which tensors of a file go into which variable of a model.

It sees names, shapes and dtypes, never values, and never the model.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfdeep._core._explain import listing
from tfdeep.checkpoints._invalid import invalid
from tfdeep.checkpoints._names import Rename, by_path
from tfdeep.checkpoints._readers._tensors import TensorInfo, is_floating, numpy_dtype
from tfdeep.checkpoints._report import Match, Mismatch, MismatchKind, Steps
from tfdeep.checkpoints._torch_layout import Conversion, Recipe

Transform = Mapping[str, Callable[[np.ndarray], Any]] | None


@dataclasses.dataclass(frozen=True)
class Target:
    """A variable of the model to fill.

    `names` are the paths that its tensor may have in a file, best first; `recipes` say
    what else it may be made of, in a file of another framework. `layer_variables` is
    how many variables its layer saves, if known; `slot` is its number among the
    variables of the optimizer.
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
class Matching:
    """What goes where, and the converter of each match by its path."""

    matched: tuple[Match, ...]
    missing: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]
    converters: Mapping[str, Converter]


@dataclasses.dataclass(frozen=True)
class Converter:
    """Turns the tensors of a file into the values of a variable.

    It changes the layout by `recipe`, applies the caller's `transform`, and converts to
    the dtype `cast`, each if it is given.
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


def match_by_name(
    targets: Sequence[Target],
    tensors: Sequence[TensorInfo],
    rename: Rename = None,
    cast: bool = False,
) -> Matching:
    """Matches variables and tensors by name, and checks that each pair fits.

    A file may have been written from inside a larger scope (`dnn/hidden1/kernel`, or
    `sequential_3/...`). If no name matches as it is, one prefix common to all the
    matches is looked for; two different prefixes that would do are an error.

    Args:
        targets: The variables to fill.
        tensors: What the file holds.
        rename: Regular expressions and what to put in place of the leading
            components of the file's names that they match, or a function of a name.
        cast: Whether values may be converted to the variable's dtype.

    Raises:
        InvalidArgumentError: If two tensors would get one name, or more than one
            prefix fits.
        SelectionError: If a pattern of `rename` matches no name.
    """
    tensor_at = by_path(tensors, rename)
    prefix = _common_prefix(targets, tensor_at)
    matched, missing, mismatched = [], [], []
    converters = {}
    used: set[str] = set()
    filled: dict[str, str] = {}  # by the one tensor that fills it
    for target in targets:
        found = _find(target, tensor_at, prefix)
        if found is None:
            missing.append(target.path)
            continue
        paths, recipe = found
        sources = [tensor_at[path] for path in paths]
        names = tuple(tensor.name for tensor in sources)
        used.update(names)
        converter, steps, note = _converter(target, sources, recipe, cast)
        misfit = _misfit(target, sources, converter)
        if recipe is None:
            first = filled.setdefault(paths[0], target.path)
            if first != target.path:
                misfit = MismatchKind.SHARED, names[0], first
        if misfit is not None:
            mismatched.append(Mismatch(target.path, " + ".join(names), *misfit))
            continue
        converters[target.path] = converter
        renamed = paths[0] if paths[0] != sources[0].path else None
        matched.append(
            Match(target.path, names, renamed, target.shape, target.dtype, steps, note)
        )
    unused = tuple(tensor.name for tensor in tensors if tensor.name not in used)
    return Matching(
        tuple(matched), tuple(missing), tuple(mismatched), unused, converters
    )


def _find(
    target: Target, tensor_at: Mapping[str, TensorInfo], prefix: str
) -> tuple[list[str], Recipe | None] | None:
    """The paths of what fills a variable, and how, if the file has all of it."""
    for recipe in target.recipes:
        paths = [prefix + path for path in recipe.sources]
        if all(path in tensor_at for path in paths):
            return paths, recipe
    for path in target.names:
        if prefix + path in tensor_at:
            return [prefix + path], None
    return None


def _converter(
    target: Target, sources: Sequence[TensorInfo], recipe: Recipe | None, cast: bool
) -> tuple[Converter, Steps, str]:
    """What is done to the values of a variable: as a function, and in words."""
    dtypes = {tensor.dtype for tensor in sources}
    cast_from = ", ".join(sorted(dtypes)) if cast and dtypes != {target.dtype} else ""
    may_change = cast_from or (cast and target.transform is not None)
    to = numpy_dtype(target.dtype) if may_change else None
    steps = Steps(
        conversion=recipe.conversion if recipe else Conversion.NONE,
        transformed=target.transform is not None,
        cast_from=cast_from,
    )
    notes = [recipe.note] if recipe and recipe.note else []
    if steps.transformed:
        notes.append("transformed")
    if cast_from:
        notes.append(f"cast from {cast_from}")
    return Converter(recipe, target.transform, to), steps, ", ".join(notes)


def _common_prefix(
    targets: Sequence[Target], tensor_at: Mapping[str, TensorInfo]
) -> str:
    """What the file's names have in front of the model's: "" or "scope/"."""
    wanted = {
        path: target.path
        for target in targets
        for path in (*target.names, *(s for r in target.recipes for s in r.sources))
    }
    found: dict[str, set[str]] = collections.defaultdict(set)
    for path in tensor_at:
        start = 0
        while True:
            if path[start:] in wanted:
                found[path[:start]].add(wanted[path[start:]])
            start = path.find("/", start) + 1
            if start == 0:
                break
    if "" in found or not found:
        return ""
    most = max(len(paths) for paths in found.values())
    best = [prefix for prefix, paths in found.items() if len(paths) == most]
    best += [
        prefix
        for prefix, paths in found.items()
        # An optimizer's variables are below prefixes of their own: `Adam/m/dnn/...`.
        if prefix not in best
        and paths & found[best[0]]
        and not prefix.endswith(best[0])
    ]
    if len(best) > 1:
        raise invalid(
            "The file holds the model's names more than once.",
            received=f"{listing(sorted(found[best[0]]))} below each of "
            f"{listing(sorted(best))}",
            expected="one place in the file for each variable",
            fix=f"choose one: `rename={{{best[0].rstrip('/')!r}: ''}}`",
        )
    return best[0]


_Misfit = tuple[MismatchKind, str, str]


def _misfit(
    target: Target, sources: Sequence[TensorInfo], converter: Converter
) -> _Misfit | None:
    """What keeps tensors from going into a variable of their name, or None."""
    tensor = sources[0]
    if not _may_be(tensor.layer_class, target.layer_class):
        # Tensors that are only numbered mean something else in another class.
        return MismatchKind.LAYER_CLASS, str(tensor.layer_class), target.layer_class
    if tensor.layer_variables not in (None, target.layer_variables):
        counts = str(tensor.layer_variables), str(target.layer_variables)
        return MismatchKind.LAYER_VARIABLES, *counts
    shapes = ", ".join(str(tensor.shape) for tensor in sources)
    stand_in = _ones if converter.transform else _flat_ones
    try:
        uncast = dataclasses.replace(converter, cast=None)
        made = uncast(*(stand_in(tensor) for tensor in sources))
    except Exception as error:  # whatever a transform of the caller's raises
        return MismatchKind.CONVERSION, shapes, str(error)
    if made.shape != target.shape:
        if str(made.shape) != shapes:
            shapes += f" (converted: {made.shape})"
        return MismatchKind.SHAPE, shapes, str(target.shape)
    wanted = numpy_dtype(target.dtype)
    if made.dtype == wanted or (converter.cast and may_cast(made.dtype, wanted)):
        return None
    can_help = may_cast(made.dtype, wanted)
    kind = MismatchKind.NEEDS_CAST if can_help else MismatchKind.DTYPE
    return kind, made.dtype.name, target.dtype


def may_cast(dtype: np.dtype, wanted: np.dtype) -> bool:
    """Whether `cast=True` converts numbers of one dtype to another."""
    if is_floating(wanted):
        return is_floating(dtype) or dtype.kind in "iub"
    return bool(np.can_cast(dtype, wanted, "safe"))


def _ones(tensor: TensorInfo) -> np.ndarray:
    """An array of a tensor's shape, for a function of the caller's to try."""
    return np.ones(tensor.shape, numpy_dtype(tensor.dtype))


def _flat_ones(tensor: TensorInfo) -> np.ndarray:
    """The same, in no memory."""
    one = np.ones((), numpy_dtype(tensor.dtype))
    return np.broadcast_to(one, tensor.shape)


def _may_be(in_file: str | None, in_model: str) -> bool:
    """Whether `multi_head_attention` in a file may mean `MultiHeadAttention`."""
    # Keras numbers equal layers: `block_1` is a second `Block`, or a `Block_1`.
    names = (in_model, re.sub(r"_?\d+$", "", in_model))
    return in_file is None or in_file.replace("_", "") in [
        name.replace("_", "").lower() for name in names
    ]
