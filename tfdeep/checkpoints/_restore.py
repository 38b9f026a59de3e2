"""Restores chosen variables of a model from a file, all of them or none."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep._core._paths import ModelVariable, Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep.checkpoints._open import open as open_checkpoint
from tfdeep.checkpoints._plan import (
    Match,
    Mismatch,
    Rename,
    RestorePlan,
    Target,
    make_plan,
)
from tfdeep.checkpoints._reader import Reader
from tfdeep.errors import InvalidArgumentError, MismatchError

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class RestoreReport(Record):
    """What was restored, and what was not.

    Attributes:
        source: The file.
        format: What kind of file it is.
        integrity: "verified" if the file carries checksums, else "unverified".
        restored: The variables that were filled (with `dry_run`, that would be).
        missing: Paths of selected variables that the file has no tensor for.
        mismatched: Selected variables whose tensor does not fit.
        unused: Names of tensors that no selected variable wanted.
        dry_run: True if nothing was changed.
    """

    source: str
    format: str
    integrity: str
    restored: tuple[Match, ...]
    missing: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]
    dry_run: bool

    def __str__(self) -> str:
        done = "Would restore" if self.dry_run else "Restored"
        rows: list[Sequence[object]] = [
            (m.path, m.shape, m.dtype, m.source) for m in self.restored
        ]
        rows += [(path, "", "", "missing in the file") for path in self.missing]
        rows += [(m.path, "", "", f"does not fit: {m.reason}") for m in self.mismatched]
        notes = []
        if self.unused:
            notes.append(f"not used: {listing(self.unused, limit=6)}")
        return render_table(
            f"{done} {len(self.restored)} variables from {self.source}\n"
            f"({self.format}, {self.integrity})",
            ["variable", "shape", "dtype", "from"],
            shorten(rows, _MOST_ROWS),
            notes=notes,
        )


def restore(
    model: Any,
    source: str | os.PathLike[str],
    include: Patterns = None,
    exclude: Patterns = None,
    rename: Rename = None,
    dry_run: bool = False,
) -> RestoreReport:
    """Fills chosen variables of a model from a file of weights, or none at all.

    Use it to reuse pretrained layers. Variables are matched by the names of their
    layers and checked for shape, dtype and class of layer; position never decides. A
    selected variable that the file lacks or that does not fit is an error, which
    leaves every variable as it was.

    Args:
        model: A built model.
        source: A Keras 3 `.weights.h5` or `.keras` file, a TensorFlow checkpoint (TF1
            `Saver` or object-based) by its prefix, a directory that holds one, or a
            SavedModel directory. No code in it is run.
        include: A pattern or a list of patterns over the model's paths, such as
            `"hidden[123]"`; the variables to restore. None restores all.
        exclude: A pattern or a list of patterns; the variables to leave alone.
        rename: How names in the file become names of the model: a dict from regular
            expressions, which match leading whole components, to what replaces them
            (`{"encoder": ""}`, `{r"fc(\\d)": r"hidden\\1"}`), or a function of a name.
        dry_run: True to make the report, with what is missing and what does not fit,
            and change nothing.

    Returns:
        A `tfdeep.checkpoints.RestoreReport`, which prints as a table.

    Raises:
        SelectionError: If a pattern selects nothing.
        MismatchError: If a selected variable is missing in the file or does not fit.
            Its `report` lists all of them.
        ModelError: If the model has no weights yet.
        UnknownFormatError, CorruptFileError, UnsafeFileError: If the file cannot be
            read.

    Example:

    >>> source = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> source.save_weights(tmp_path / "net.weights.h5")
    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3, 3], num_outputs=5)
    >>> report = tfdeep.restore(model, tmp_path / "net.weights.h5", "hidden[12]")
    >>> [match.path for match in report.restored]
    ['hidden1/kernel', 'hidden1/bias', 'hidden2/kernel', 'hidden2/bias']
    """
    variables = _paths.model_variables(model)
    _check_unique(variables)
    chosen = set(_paths.select([v.path for v in variables], include, exclude))
    targets = [v for v in _targets(model, variables) if v.path in chosen]
    with open_checkpoint(source) as reader:
        plan = make_plan(targets, reader.variables, rename)
        report = _report(reader, plan, dry_run)
        if dry_run:
            return report
        if plan.missing or plan.mismatched:
            raise _mismatch(report, targets)
        values = {match.path: reader.read(match.source) for match in plan.matched}
    _assign({v.path: v.variable for v in variables}, values)
    return report


def _targets(model: Any, variables: Sequence[ModelVariable]) -> list[Target]:
    storage: dict[int, dict[int, str]] = {}
    targets = []
    for v in variables:
        if id(v.layer) not in storage:
            storage[id(v.layer)] = _storage_keys(v.layer)
        keys = storage[id(v.layer)]
        names = [v.path, v.variable.path]
        names.append(v.variable.path.removeprefix(f"{model.name}/"))
        if id(v.variable) in keys:
            names.append(f"{v.layer_path}/{keys[id(v.variable)]}".lstrip("/"))
        targets.append(
            Target(
                path=v.path,
                names=tuple(dict.fromkeys(names)),
                shape=tuple(v.variable.shape),
                dtype=str(v.variable.dtype),
                layer_class=type(v.layer).__name__,
                layer_variables=len(keys) or None,
            )
        )
    return targets


def _storage_keys(layer: Any) -> dict[int, str]:
    """The keys under which a layer saves its variables, by the variables' ids."""
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return {id(variable): key for key, variable in store.items()}


def _check_unique(variables: Sequence[ModelVariable]) -> None:
    count = collections.Counter(v.path for v in variables)
    repeated = [path for path, n in count.items() if n > 1]
    if repeated:
        raise InvalidArgumentError(
            explain(
                "Two variables of the model have the same path; a file cannot say "
                "which is meant.",
                received=listing(repeated),
                expected="a different path for each variable",
                fix="give the layers different names; nothing was changed",
            )
        )


def _report(reader: Reader, plan: RestorePlan, dry_run: bool) -> RestoreReport:
    return RestoreReport(
        source=reader.source,
        format=reader.format,
        integrity=reader.integrity,
        restored=plan.matched,
        missing=plan.missing,
        mismatched=plan.mismatched,
        unused=plan.unused,
        dry_run=dry_run,
    )


def _mismatch(report: RestoreReport, targets: Sequence[Target]) -> MismatchError:
    report = dataclasses.replace(report, dry_run=True)
    faults = [f"{m.path}: {m.reason}" for m in report.mismatched]
    faults += [f"{path}: missing in the file" for path in report.missing]
    near = [
        name
        for path in report.missing
        for name in _paths.nearest(path, report.unused, 2)
    ]
    hint = f"; names left in the file: {listing(dict.fromkeys(near))}" if near else ""
    return MismatchError(
        explain(
            f"{len(faults)} of {len(targets)} variables cannot be restored from "
            f"{report.source!r}.",
            received=listing(faults) + hint,
            expected="a tensor of the same name, shape and dtype for every selected "
            "variable",
            fix="narrow `include`, or use `exclude` or `rename`; `dry_run=True` shows "
            "the whole table; nothing was changed",
        ),
        report,
    )


def _assign(variables: dict[str, Any], values: dict[str, np.ndarray]) -> None:
    """Assigns all values, or puts back the old ones."""
    before = {path: variables[path].numpy() for path in values}
    try:
        for path, value in values.items():
            variables[path].assign(value)
    except BaseException:
        for path, value in before.items():
            variables[path].assign(value)
        raise
