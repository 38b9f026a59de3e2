"""Restores chosen variables of a model from a file, all of them or none."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, counted, render_table, shorten
from tfdeep.checkpoints._open import open as open_checkpoint
from tfdeep.checkpoints._plan import (
    Match,
    Mismatch,
    Rename,
    RestorePlan,
    Transform,
    make_plan,
)
from tfdeep.checkpoints._readers._limits import Limits, is_floating
from tfdeep.checkpoints._readers._reader import ALIGNMENT, Reader
from tfdeep.checkpoints._targets import entries_of, find_targets
from tfdeep.errors import InvalidArgumentError, MismatchError

_MOST_ROWS = 40
_THREADS = 2  # one reads while the other checks what it has read


@dataclasses.dataclass(frozen=True)
class Probe:
    """What the model made of a batch, before and after it was restored.

    Attributes:
        before: Its outputs before, one array each.
        after: Its outputs after.
    """

    before: tuple[np.ndarray, ...]
    after: tuple[np.ndarray, ...]

    @property
    def largest_change(self) -> float:
        """The largest absolute difference of an entry."""
        pairs = zip(self.before, self.after, strict=True)
        changes = [np.abs(np.subtract(a, b, dtype=np.float64)) for a, b in pairs]
        return max((float(change.max(initial=0)) for change in changes), default=0.0)


@dataclasses.dataclass(frozen=True)
class RestoreReport(Record):
    """What was restored, and what was not.

    It prints as a table. `to_json()` is a plan that `restore(plan=...)` follows.

    Attributes:
        source: The file.
        format: What kind of file it is.
        integrity: "verified" if the file carries checksums, else "unverified".
        restored: The variables that were filled (with `dry_run`, that would be).
        missing: Paths of selected variables that the file has no tensor for.
        mismatched: Selected variables whose tensor does not fit.
        unused: Names of tensors that no selected variable wanted.
        dry_run: True if nothing was changed.
        probe: What the model made of `probe=`, before and after; None without.
        failure: Why the call is refused (with `dry_run`, would be); else empty.
    """

    source: str
    format: str
    integrity: str
    restored: tuple[Match, ...]
    missing: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]
    dry_run: bool
    probe: Probe | None = None
    failure: str = ""

    @property
    def renamed(self) -> tuple[Match, ...]:
        """Those of `restored` whose name in the file was changed by `rename`."""
        return tuple(match for match in self.restored if match.renamed is not None)

    @property
    def transformed(self) -> tuple[Match, ...]:
        """Those of `restored` whose values are changed on their way."""
        return tuple(match for match in self.restored if match.note)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python values; of a probe, the largest change."""
        values = dataclasses.asdict(dataclasses.replace(self, probe=None))
        if self.probe is not None:
            values["probe"] = {"largest_change": self.probe.largest_change}
        return values

    def __str__(self) -> str:
        done = "Would restore" if self.dry_run else "Restored"
        done = f"{done} {counted(len(self.restored), 'variable')}"
        if self.failure:
            done = f"Would fail: {self.failure}"
        rows: list[Sequence[object]] = [
            (m.path, m.shape, m.dtype, f"{m.source} ({m.note})" if m.note else m.source)
            for m in self.restored
        ]
        rows += [(path, "", "", "missing in the file") for path in self.missing]
        rows += [(m.path, "", "", f"does not fit: {m.reason}") for m in self.mismatched]
        notes = []
        if self.unused:
            notes.append(f"not used: {listing(self.unused, limit=6)}")
        if self.probe is not None:
            change = self.probe.largest_change
            notes.append(f"outputs of the probe changed by up to {change:.3g}")
        return render_table(
            f"{done} from {self.source}\n({self.format}, {self.integrity})",
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
    transform: Transform = None,
    layout: str | None = None,
    on_missing: str = "error",
    on_mismatch: str = "error",
    min_restored: int = 1,
    cast: bool = False,
    optimizer: bool = False,
    allow_nonfinite: bool = False,
    probe: Any = None,
    plan: RestoreReport | str | None = None,
    dry_run: bool = False,
    limits: Limits | None = None,
    allow_remote: bool = False,
) -> RestoreReport:
    """Fills chosen variables of a model from a file of weights, or none at all.

    Use it to reuse pretrained layers. Variables are matched by the names of their
    layers and checked for shape, dtype and class of layer; position never decides. A
    selected variable that the file lacks or that does not fit is an error, which
    leaves every variable as it was.

    Args:
        model: A built model.
        source: A file or directory of weights, of any format that
            `tfdeep.checkpoints.open` reads. No code in it is run.
        include: A pattern or a list of patterns over the model's paths, such as
            `"hidden[123]"`; the variables to restore. None restores all.
        exclude: A pattern or a list of patterns; the variables to leave alone.
        rename: How names in the file become names of the model: a dict from regular
            expressions, which match leading whole components, to what replaces them
            (`{"encoder": ""}`, `{r"fc(\\d)": r"hidden\\1"}`), or a function of a name.
        transform: A dict from patterns over the model's paths to functions of an
            array, which make the values that fit from those in the file. Each is
            first called with ones of the same shape.
        layout: "torch" for a file that PyTorch's modules wrote: kernels are transposed,
            gates reordered, and names looked up as PyTorch spells them.
        on_missing: "error", or "skip" to leave alone, and report, selected variables
            that the file lacks.
        on_mismatch: The same for variables whose tensor does not fit.
        min_restored: At least so many variables must be filled.
        cast: Whether values may be converted to the variable's dtype, numbers to
            floating point numbers. What becomes infinite is an error.
        optimizer: Whether to fill the variables of the model's optimizer too: its
            moments, step counter and learning rate. They are called `optimizer/...` in
            patterns.
        allow_nonfinite: Whether NaN and infinity may be among the values.
        probe: A batch of inputs. The report says how the model's outputs changed.
        plan: A report of an earlier call, or its JSON: what goes where is taken from
            there, and must be possible as it stands.
        dry_run: True to make the report, with what is missing and what does not fit,
            and change nothing. No values are read.
        limits: The most that the file may declare; see `tfdeep.checkpoints.Limits`.
        allow_remote: Whether `source` may be a URL that `tf.io.gfile` reads. It is
            copied first.

    Returns:
        A `tfdeep.checkpoints.RestoreReport`, which prints as a table.

    Raises:
        SelectionError: If a pattern selects nothing.
        MismatchError: If a selected variable is missing in the file or does not fit.
            Its `report` lists all of them.
        ModelError: If the model has no weights yet.
        UnknownFormatError, CorruptFileError, UnsafeFileError, LimitError: If the file
            cannot be read.

    Example:

    >>> source = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> source.save_weights(tmp_path / "net.weights.h5")
    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3, 3], num_outputs=5)
    >>> report = tfdeep.restore(model, tmp_path / "net.weights.h5", "hidden[12]")
    >>> [match.path for match in report.restored]
    ['hidden1/kernel', 'hidden1/bias', 'hidden2/kernel', 'hidden2/bias']
    """
    _check_model(model, source)
    _check_choice("on_missing", on_missing)
    _check_choice("on_mismatch", on_mismatch)
    targets = find_targets(model, include, exclude, transform, layout, optimizer)
    separator = "." if layout == "torch" else "/"
    if plan is not None:
        _check_no_rename(rename)
        targets = targets.as_planned(plan, separator)
    with open_checkpoint(source, limits=limits, allow_remote=allow_remote) as reader:
        wanted = targets.for_tensors(reader.variables)
        made = make_plan(wanted, reader.variables, rename, separator, cast)
        if plan is not None:
            _check_followed(made, entries_of(plan, separator), separator)
        report = _report(reader, made, dry_run)
        skips = (on_missing == "skip", on_mismatch == "skip")
        if dry_run:
            failure = _failure(report, len(targets.wanted), skips, min_restored)
            return dataclasses.replace(report, failure=failure)
        _check(report, len(targets.wanted), skips, min_restored)
        values, unfit = _read(reader, made, allow_nonfinite)
    if unfit:
        unfit_paths = {mismatch.path for mismatch in unfit}
        report = dataclasses.replace(
            report,
            restored=tuple(m for m in report.restored if m.path not in unfit_paths),
            mismatched=report.mismatched + unfit,
        )
        _check(report, len(targets.wanted), skips, min_restored)
    if probe is None:
        _assign(targets.variables, values)
        return report
    before = _outputs(model, probe)
    _assign(targets.variables, values)
    return dataclasses.replace(report, probe=Probe(before, _outputs(model, probe)))


def _check_model(model: Any, source: Any) -> None:
    if isinstance(model, keras.layers.Layer):
        return
    swapped = isinstance(source, keras.layers.Layer)
    raise InvalidArgumentError(
        explain(
            "The first argument of `restore` must be a model.",
            received=f"model={model!r}",
            expected="a built Keras model, then the file",
            fix=f"{'swap the first two arguments: ' if swapped else ''}"
            "`tfdeep.restore(model, source)`; nothing was changed",
        )
    )


def _check_choice(name: str, value: str) -> None:
    if value not in ("error", "skip"):
        raise InvalidArgumentError(
            explain(
                f"`restore` does not know this `{name}`.",
                received=f"{name}={value!r}",
                expected='"error" or "skip"',
                fix=f'{name}="skip" leaves such variables alone and reports them; '
                "nothing was changed",
            )
        )


def _check_followed(
    made: RestorePlan, entries: Mapping[str, Any], separator: str
) -> None:
    """Raises if a variable would be filled otherwise than its plan says."""
    for match in made.matched:
        names = tuple(name.replace(separator, "/") for name in match.sources)
        planned, note = entries[match.path]
        if (names, match.note) != (planned, note):
            raise InvalidArgumentError(
                explain(
                    f"The plan for {match.path!r} cannot be followed.",
                    received=f"{' + '.join(names)} ({match.note or 'as it is'})",
                    expected=f"{' + '.join(planned)} ({note or 'as it is'})",
                    fix="pass the `layout`, `transform` and `cast` that the plan was "
                    "made with; nothing was changed",
                )
            )


def _check_no_rename(rename: Rename) -> None:
    if rename is not None:
        raise InvalidArgumentError(
            explain(
                "A plan says already which name goes where.",
                received="plan=... and rename=...",
                expected="one of them",
                fix="leave `rename` out; nothing was changed",
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


def _faults(report: RestoreReport, skips: tuple[bool, bool]) -> int:
    """How many variables cannot be restored and were not to be skipped."""
    skip_missing, skip_mismatched = skips
    missing = 0 if skip_missing else len(report.missing)
    return missing + (0 if skip_mismatched else len(report.mismatched))


def _failure(
    report: RestoreReport, wanted: int, skips: tuple[bool, bool], min_restored: int
) -> str:
    """Why the variables cannot be restored as asked; empty if they can."""
    faults = _faults(report, skips)
    if faults:
        return f"{faults} of {wanted} variables cannot be restored"
    if len(report.restored) < min_restored:
        return f"only {len(report.restored)} of {wanted} variables can be restored"
    return ""


def _check(
    report: RestoreReport, wanted: int, skips: tuple[bool, bool], min_restored: int
) -> None:
    """Raises if what cannot be restored was not to be skipped."""
    failure = _failure(report, wanted, skips, min_restored)
    if not failure:
        return
    report = dataclasses.replace(report, dry_run=True, failure=failure)
    mismatched = [f"{m.path}: {m.reason}" for m in report.mismatched]
    missing = [f"{path}: missing in the file" for path in report.missing]
    near = [
        name
        for path in report.missing
        for name in _paths.nearest(path, report.unused, 2)
    ]
    hint = f"; names left in the file: {listing(dict.fromkeys(near))}" if near else ""
    expected = "a tensor of the same name, shape and dtype for every selected variable"
    if not _faults(report, skips):
        expected = f"at least min_restored={min_restored}"
    raise MismatchError(
        explain(
            f"{failure[0].upper()}{failure[1:]} from {report.source!r}.",
            received=listing(mismatched + missing) + hint,
            expected=expected,
            fix=f"narrow `include`, or use {_remedies(report, skips)}; "
            "`dry_run=True` shows the whole table; nothing was changed",
        ),
        report,
    )


def _remedies(report: RestoreReport, skips: tuple[bool, bool]) -> str:
    """The arguments that can help with what is missing and what does not fit."""
    skip_missing, skip_mismatched = skips
    reasons = [mismatch.reason for mismatch in report.mismatched]
    helps = {
        "`exclude`": True,
        "`rename`": bool(report.missing),
        '`on_missing="skip"`': bool(report.missing) and not skip_missing,
        "`layout`": any(reason.startswith("shape") for reason in reasons),
        "`cast=True`": any("`cast=True`" in reason for reason in reasons),
        '`on_mismatch="skip"`': bool(reasons) and not skip_mismatched,
    }
    return " or ".join(argument for argument, can_help in helps.items() if can_help)


def _read(
    reader: Reader, plan: RestorePlan, allow_nonfinite: bool
) -> tuple[dict[str, Any], tuple[Mismatch, ...]]:
    """The values of the matched variables, and those that turn out not to fit."""
    values: dict[str, Any] = {}
    unfit = []
    for match, tensors in _read_ahead(reader, plan.matched):
        converter = plan.converters[match.path]
        reason = None
        try:
            made = converter(*tensors)
        except Exception as error:  # whatever a transform of the caller's raises
            reason = f"its values: {error}"
        else:
            if made.shape != match.shape or made.dtype.name != match.dtype:
                reason = f"made {made.dtype.name} {made.shape}"
            elif not allow_nonfinite and is_floating(made.dtype):
                count = _count_nonfinite(made)
                reason = f"{count} NaN or infinite values" if count else None
        if reason is None:
            is_ours = converter.transform is None
            values[match.path] = _without_copy(made) if is_ours else made
        else:
            unfit.append(Mismatch(match.path, match.source, reason))
    return values, tuple(unfit)


def _read_ahead(
    reader: Reader, matches: Sequence[Match]
) -> Iterator[tuple[Match, list[np.ndarray]]]:
    """The tensors of each match; while some are used, the next ones are read."""

    def read(match: Match) -> list[np.ndarray]:
        return [reader.read(name) for name in match.sources]

    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield from zip(matches, pool.map(read, matches), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _count_nonfinite(values: np.ndarray) -> int:
    # A sum shows each of them, and that of the squares is the fastest.
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype in (np.float32, np.float64) and values.flags.c_contiguous:
            total = np.vdot(values, values)
        else:
            total = values.sum(dtype=np.float32)
        if np.isfinite(total):
            return 0
    return int(values.size - np.count_nonzero(np.isfinite(values)))


def _without_copy(values: np.ndarray) -> Any:
    """A tensor in the memory of an array that nobody else has, if it can be one.

    The variable that takes the tensor copies it when it is first written to.
    """
    is_possible = (
        values.dtype.kind in "biufc"
        and values.flags.c_contiguous
        and values.flags.writeable
        and values.ctypes.data % ALIGNMENT == 0
    )
    if not is_possible:
        return values
    return tf.experimental.dlpack.from_dlpack(values.__dlpack__())


def _outputs(model: Any, batch: Any) -> tuple[np.ndarray, ...]:
    outputs = keras.tree.flatten(model(batch, training=False))
    return tuple(np.asarray(keras.ops.convert_to_numpy(output)) for output in outputs)


def _assign(variables: dict[str, Any], values: dict[str, Any]) -> None:
    """Assigns all values, or puts back the old ones."""
    # These share memory with the variables until those get other values.
    before = {path: tf.convert_to_tensor(variables[path].value) for path in values}
    try:
        for path in list(values):
            variables[path].assign(values.pop(path))
    except BaseException:
        for path, value in before.items():
            variables[path].assign(value)
        raise
