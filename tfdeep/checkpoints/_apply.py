"""Carries out what was matched: reads and checks all values, then assigns them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep.checkpoints._matching import Converter, Matching
from tfdeep.checkpoints._readers._reader import ALIGNMENT, Reader
from tfdeep.checkpoints._readers._tensors import is_floating
from tfdeep.checkpoints._report import (
    Match,
    Mismatch,
    MismatchKind,
    Probe,
    RestoreReport,
)
from tfdeep.checkpoints._request import Request
from tfdeep.errors import MismatchError

_THREADS = 2  # one reads while the other checks what it has read


@dataclasses.dataclass(frozen=True)
class Restore:
    """A restore from an open file that is ready to be carried out."""

    request: Request
    reader: Reader
    matching: Matching
    variables: dict[str, Any]

    @classmethod
    @contextlib.contextmanager
    def opened(cls, request: Request) -> Iterator[Restore]:
        """Opens the file, and matches what was asked for and what it holds."""
        targets = request.targets()
        with request.open() as reader:
            matching = request.match(targets, reader)
            yield cls(request, reader, matching, targets.variables)

    def report(self) -> RestoreReport:
        """What would be done."""
        report = RestoreReport(
            source=self.reader.source,
            format=self.reader.format,
            integrity=self.reader.integrity,
            restored=self.matching.matched,
            missing=self.matching.missing,
            mismatched=self.matching.mismatched,
            unused=self.matching.unused,
            dry_run=True,
        )
        return dataclasses.replace(report, failure=self._failure(report))

    def apply(self, allow_nonfinite: bool, probe: Any) -> RestoreReport:
        """Fills all variables or none, and reports what was done."""
        report = self.report()
        self._check(report)
        values, unfit = self._read(allow_nonfinite)
        if unfit:
            restored = tuple(m for m in report.restored if m.path in values)
            report = dataclasses.replace(
                report, restored=restored, mismatched=report.mismatched + unfit
            )
            self._check(report)
        report = dataclasses.replace(report, dry_run=False)
        if probe is None:
            _assign(self.variables, values)
            return report
        model = self.request.model
        before = _outputs(model, probe)
        _assign(self.variables, values)
        return dataclasses.replace(report, probe=Probe(before, _outputs(model, probe)))

    def _faults(self, report: RestoreReport) -> int:
        """How many variables cannot be restored and are not to be skipped."""
        missing = len(report.missing) * (self.request.on_missing == "error")
        return missing + len(report.mismatched) * (self.request.on_mismatch == "error")

    def _failure(self, report: RestoreReport) -> str:
        """Why the variables cannot be restored as asked; empty if they can."""
        faults, restored = self._faults(report), len(report.restored)
        selected = restored + len(report.missing) + len(report.mismatched)
        if faults:
            return f"{faults} of {selected} variables cannot be restored"
        if restored < self.request.min_restored:
            return f"only {restored} of {selected} variables can be restored"
        return ""

    def _check(self, report: RestoreReport) -> None:
        """Raises if what cannot be restored is not to be skipped."""
        failure = self._failure(report)
        if not failure:
            return
        report = dataclasses.replace(report, failure=failure)
        mismatched = [f"{m.path}: {m.reason}" for m in report.mismatched]
        missing = [f"{path}: missing in the file" for path in report.missing]
        near = [
            name
            for path in report.missing
            for name in _paths.nearest(path, report.unused, 2)
        ]
        names = listing(dict.fromkeys(near))
        hint = f"; names left in the file: {names}" if near else ""
        expected = (
            "a tensor of the same name, shape and dtype for every selected variable"
        )
        if not self._faults(report):
            expected = f"at least min_restored={self.request.min_restored}"
        raise MismatchError(
            explain(
                f"{failure[0].upper()}{failure[1:]} from {report.source!r}.",
                received=listing(mismatched + missing) + hint,
                expected=expected,
                fix=f"narrow `include`, or use {self._remedies(report)}; "
                "`dry_run=True` shows the whole table; nothing was changed",
            ),
            report,
        )

    def _remedies(self, report: RestoreReport) -> str:
        """The arguments that can help with what is missing and what does not fit."""
        kinds = {mismatch.kind for mismatch in report.mismatched}
        shapes = {MismatchKind.SHAPE, MismatchKind.CONVERSION}
        helps = {
            "`exclude`": True,
            "`rename`": bool(report.missing),
            '`on_missing="skip"`': bool(report.missing)
            and self.request.on_missing == "error",
            "`layout`": bool(kinds & shapes),
            "`cast=True`": MismatchKind.NEEDS_CAST in kinds,
            '`on_mismatch="skip"`': bool(kinds) and self.request.on_mismatch == "error",
        }
        return " or ".join(argument for argument, can_help in helps.items() if can_help)

    def _read(
        self, allow_nonfinite: bool
    ) -> tuple[dict[str, Any], tuple[Mismatch, ...]]:
        """The values of the matched variables, and those that turn out not to fit."""
        values: dict[str, Any] = {}
        unfit = []
        for match, tensors in _read_ahead(self.reader, self.matching.matched):
            converter = self.matching.converters[match.path]
            made = _made(match, converter, tensors, allow_nonfinite)
            if isinstance(made, Mismatch):
                unfit.append(made)
            else:
                is_ours = converter.transform is None
                values[match.path] = _without_copy(made) if is_ours else made
        return values, tuple(unfit)


def _made(
    match: Match,
    converter: Converter,
    tensors: Sequence[np.ndarray],
    allow_nonfinite: bool,
) -> np.ndarray | Mismatch:
    """The values of a variable, or why they do not fit."""

    def unfit(kind: MismatchKind, found: object) -> Mismatch:
        return Mismatch(match.path, match.source, kind, str(found))

    try:
        made = converter(*tensors)
    except Exception as error:  # whatever a transform of the caller's raises
        return unfit(MismatchKind.VALUES, error)
    if made.shape != match.shape or made.dtype.name != match.dtype:
        return unfit(MismatchKind.VALUES, f"made {made.dtype.name} {made.shape}")
    if not allow_nonfinite and is_floating(made.dtype):
        count = _count_nonfinite(made)
        if count:
            return unfit(MismatchKind.NONFINITE, count)
    return made


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
    # Any of them makes a sum nonfinite, and the sum of the squares is the fastest.
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
