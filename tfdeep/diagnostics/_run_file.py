"""The file of a monitored run: one JSON object a line, written as training goes on.

A run begins with a header, `{"run": 1, "tfdeep": ..., "variables": [...], "layers":
[...]}`. Lines that follow hold

* the row of a step, `{"step": 20, "loss": [0.5], "norm": [...], ...}`, with one number
  for each column; a quantity that was not measured at the step is left out,
* a finding, `{"finding": {...}}`,
* what the optimizer wrappers did, `{"telemetry": [...]}`,
* and at last the number of steps, `{"end": 1200}`.

It is strict JSON: `null` is NaN, `"inf"` infinity. Another fit appends another header.
Lines are written whole, so that a crash damages the last one at most.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfdeep import _quantities
from tfdeep._core._arguments import is_whole_number
from tfdeep._core._explain import explain, listing
from tfdeep._core._records import counted
from tfdeep._keras._architecture import LayerInfo
from tfdeep._keras._program import Output, Program
from tfdeep.diagnostics._finding import Finding
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.errors import CorruptFileError, InvalidArgumentError, UnknownFormatError

FILE_NAME = "tfdeep.jsonl"
_FORMAT = 1
_HEADER = b'{"run"'  # what a header's line begins with

# How many steps are written in full; from there on, each doubling of the step count
# adds as many again. What is measured in detail has a count of its own.
# A net of many weights has fewer, so that its files grow less than its weights do.
DENSE_STEPS, DENSE_MEASURED = 512, 128
_FEWEST_DENSE, _MANY_WEIGHTS = 64, 50

# A line that is damaged makes one of these as it is read.
_DAMAGE = (
    ArithmeticError,  # a number that is too large
    AttributeError,
    KeyError,
    RecursionError,  # lists in lists in lists
    TypeError,
    ValueError,
)
_MOST_STEPS = 2**53  # no run is longer; floats represent all steps up to here


def is_written(index: int, dense: int = DENSE_STEPS) -> bool:
    """Whether a step is written: all early ones, then ever fewer."""
    stride = 1 << max((index // dense).bit_length() - 1, 0)
    return index % stride == 0


class Thinning:
    """Chooses the steps of a run to be written.

    Args:
        weights: Number of variables that are recorded.
    """

    def __init__(self, weights: int = 0) -> None:
        share = 1
        while share * _MANY_WEIGHTS < weights and share < DENSE_STEPS // _FEWEST_DENSE:
            share *= 2
        self._dense = DENSE_STEPS // share
        self._dense_measured = DENSE_MEASURED // share
        self._measured = 0

    def choose(
        self, rows: Mapping[str, np.ndarray], first_step: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chooses among the next rows.

        Args:
            rows: By quantity, an array of shape (steps, columns).
            first_step: The number of the first row's step.

        Returns:
            Two masks: the rows whose norms are written, and those, measured in
            detail, whose details are.
        """
        count = len(next(iter(rows.values())))
        steps = range(first_step, first_step + count)
        chosen = [is_written(step, self._dense) for step in steps]
        measured = np.zeros(count, bool)
        for name, values in rows.items():
            if _quantities.is_measured(name):
                measured |= ~np.isnan(values).all(axis=1)
        detailed = np.zeros(count, bool)
        for row in np.flatnonzero(measured):
            detailed[row] = is_written(self._measured, self._dense_measured)
            self._measured += 1
        return np.array(chosen, bool), detailed


class RunFileWriter:
    """Appends a run to the file of its directory.

    The file is open only while something is written.

    Args:
        log_dir: Directory of the run.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(log_dir, FILE_NAME)
        self._is_first_row = True

    def begin(
        self,
        variables: Sequence[str],
        layers: Sequence[LayerInfo],
        outputs: int = 0,
    ) -> int:
        """Starts a run with these variables, layers and number of outputs.

        Returns:
            The number of this run in the file, from 1.
        """
        self._is_first_row = True
        runs, is_cut = 0, False
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    runs += line.startswith(_HEADER)
                    is_cut = not line.endswith(b"\n")
        header = {
            "run": _FORMAT,
            # The package itself imports this module.
            "tfdeep": str(getattr(sys.modules.get("tfdeep"), "__version__", "")),
            "variables": list(variables),
            "layers": [_plain(dataclasses.asdict(layer)) for layer in layers],
            "outputs": outputs,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if is_cut:
            with self.path.open("a") as file:
                file.write("\n")
        self._append([header])
        return runs + 1

    def write(
        self, rows: Mapping[str, np.ndarray], first_step: int, chosen: np.ndarray
    ) -> None:
        """Writes the chosen rows of steps `first_step`, `first_step + 1`, ..."""
        lines = []
        for row in np.flatnonzero(chosen):
            line: dict[str, Any] = {"step": first_step + int(row)}
            for name, values in rows.items():
                # The first row names every quantity, also what is never measured.
                is_named = self._is_first_row and values.shape[1]
                if is_named or not np.isnan(values[row]).all():
                    line[name] = [_number(value) for value in values[row].tolist()]
            self._is_first_row = False
            lines.append(line)
        self._append(lines)

    def write_findings(self, findings: Sequence[Finding]) -> None:
        """Writes what the rules found."""
        self._append([{"finding": _plain(finding.to_dict())} for finding in findings])

    def end(self, total_steps: int, telemetry: Sequence[Mapping[str, Any]]) -> None:
        """Ends the run."""
        lines: list[dict[str, Any]] = []
        if telemetry:
            lines.append({"telemetry": [_plain(dict(of_one)) for of_one in telemetry]})
        self._append([*lines, {"end": total_steps}])

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(
            json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"
            for line in lines
        )
        if text:
            # A header is recognized by how it begins.
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)


def _number(value: float) -> float | str | None:
    """A number as strict JSON, to five significant digits."""
    if math.isfinite(value):
        return float(f"{value:.5g}")
    if math.isnan(value):
        return None
    return "inf" if value > 0 else "-inf"


def _plain(value: Any) -> Any:
    """The same as strict JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return _number(float(value))
    if isinstance(value, np.integer):
        return int(value)
    return value


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it was read from its file.

    Attributes:
        path: The file.
        recording: The rows that the file holds.
        findings: What the rules found, in the order in which they did.
        telemetry: What each optimizer wrapper did, as `Telemetry.to_dict` gives it;
            and its `summary`, the same as text.
        runs: How many runs the file holds.
        is_complete: Whether the fit came to its end.
        notes: Remarks about the file, as text.
        tfdeep_version: The version of tfdeep that wrote it.
    """

    path: pathlib.Path
    recording: Recording
    findings: tuple[Finding, ...] = ()
    telemetry: tuple[dict[str, Any], ...] = ()
    runs: int = 1
    is_complete: bool = True
    notes: tuple[str, ...] = ()
    tfdeep_version: str = ""


def read_run(log_dir: str | os.PathLike[str], run: int | None = None) -> Run:
    """Reads a run that a `GradientMonitor(log_dir)` wrote.

    Args:
        log_dir: The monitor's `log_dir`.
        run: Integer > 0. Which of the fits into this directory, 1 for the first. None
            reads the last.

    Returns:
        A `Run`.

    Raises:
        InvalidArgumentError: If there is no such directory, or no such run in it.
        UnknownFormatError: If the file is not one that a monitor wrote, or a newer
            version of tfdeep did.
        CorruptFileError: If a line in the middle of the file is damaged.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[8, 8], num_outputs=2)
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> monitor = tfdeep.callbacks.GradientMonitor(log_dir=tmp_path)
    >>> x, y = np.random.normal(size=(32, 4)), np.zeros(32)
    >>> history = model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
    >>> run = tfdeep.diagnostics.read_run(tmp_path)
    >>> run.recording.variables[0], run.recording["norm"].shape
    ('hidden1/kernel', (4, 6))
    """
    path = _found(pathlib.Path(log_dir))
    lines = path.read_bytes().splitlines(keepends=True)
    is_cut = bool(lines) and not lines[-1].endswith(b"\n") and not _is_json(lines[-1])
    if is_cut:
        lines.pop()
    starts = [i for i, line in enumerate(lines) if line.startswith(_HEADER)]
    if not starts:
        raise UnknownFormatError(
            explain(
                "This is not the file of a monitored run.",
                received=f"{os.fspath(path)!r}, which contains no run",
                expected=f"a file {FILE_NAME} that `GradientMonitor(log_dir)` wrote",
                fix="give the `log_dir` of a monitor whose fit has begun",
            )
        )
    number = len(starts) if run is None else _checked_run(run, len(starts), path)
    start = starts[number - 1]
    if number < len(starts):
        lines = lines[: starts[number]]
        # The next run has ended a line that was cut short.
        is_cut = len(lines) > start + 1 and not _is_json(lines[-1])
        if is_cut:
            lines.pop()
    found = _Reader(path).read(lines, start)
    notes = []
    if len(starts) > 1:
        notes.append(
            f"This is run {number} of {len(starts)} in the file; `run` chooses another."
        )
    if is_cut:
        notes.append("The last line is cut short: the program ended while writing it.")
    if not found.is_complete:
        is_over = number < len(starts)
        still = "" if is_over else "is still running, or "
        notes.append(f"The fit {still}did not finish.")
    return dataclasses.replace(found, runs=len(starts), notes=tuple(notes))


def _checked_run(run: Any, runs: int, path: pathlib.Path) -> int:
    if is_whole_number(run) and 1 <= run <= runs:
        return int(run)
    raise InvalidArgumentError(
        explain(
            "The file has no such run.",
            received=f"run={run!r}; {os.fspath(path)!r} holds {counted(runs, 'run')}",
            expected="a whole number, 1 for the first run, or None for the last",
            fix="leave `run` out to read the last",
        )
    )


def _found(path: pathlib.Path) -> pathlib.Path:
    if path.is_file():
        return path
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    if not path.is_dir():
        received, fix = f"{os.fspath(path)!r}, which does not exist", "check the path"
    else:
        received = f"{os.fspath(path)!r}, which holds no {FILE_NAME}"
        fix = "train with `callbacks=[tfdeep.callbacks.GradientMonitor(log_dir)]`"
        below = sorted(os.fspath(p.parent) for p in path.glob(f"*/{FILE_NAME}"))
        if below:
            fix = f"give the directory of one run: {listing(below)}"
        later = re.fullmatch(r"fit_(\d+)", path.name)
        if later and (path.parent / FILE_NAME).is_file():
            received += " but what TensorBoard reads"
            number, above = int(later[1]), os.fspath(path.parent)
            fix = f"give {above!r} with `run={number}` (`--run {number}`)"
    raise InvalidArgumentError(
        explain(
            "There is no monitored run to read.",
            received=received,
            expected="the `log_dir` of a `GradientMonitor`",
            fix=fix,
        )
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class _Reader:
    """Reads the lines of one run."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def read(self, lines: Sequence[bytes], start: int) -> Run:
        steps: list[int] = []
        rows: list[dict[str, np.ndarray]] = []
        findings: list[Finding] = []
        telemetry: tuple[dict[str, Any], ...] = ()
        end: int | None = None
        header = self._header(lines[start], start)
        try:
            recording = _empty_recording(header)
        except _DAMAGE as error:
            raise self._damaged(start, error) from error
        for number in range(start + 1, len(lines)):
            try:
                line = dict(json.loads(lines[number]))
                if "step" in line:
                    step = _step(line.pop("step"))
                    if steps and step <= steps[-1]:
                        raise ValueError(f"step {step} comes after step {steps[-1]}")
                    row = _row(recording, line)
                    if not rows and not row:
                        raise ValueError("the first step has no quantities")
                    steps.append(step)
                    rows.append(row)
                elif "finding" in line:
                    findings.append(_finding(line["finding"]))
                elif "telemetry" in line:
                    telemetry = tuple(dict(of_one) for of_one in line["telemetry"])
                elif "end" in line:
                    end = _step(line["end"])
            except _DAMAGE as error:
                raise self._damaged(number, error) from error
        _fill(recording, steps, rows)
        if end is not None:
            recording.total_steps = max(end, recording.total_steps)
        return Run(
            path=self._path,
            recording=recording,
            findings=tuple(findings),
            telemetry=telemetry,
            is_complete=end is not None,
            tfdeep_version=str(header.get("tfdeep", "")),
        )

    def _header(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            header: dict[str, Any] = json.loads(line)
        except _DAMAGE as error:
            raise self._damaged(number, error) from error
        if header["run"] != _FORMAT:
            raise UnknownFormatError(
                explain(
                    "This version of tfdeep cannot read the run.",
                    received=f"{os.fspath(self._path)!r} in format {header['run']!r}, "
                    f"written by tfdeep {header.get('tfdeep', '?')}",
                    expected=f"format {_FORMAT}",
                    fix="`pip install --upgrade tfdeep`",
                )
            )
        return header

    def _damaged(self, number: int, error: Exception) -> CorruptFileError:
        return CorruptFileError(
            explain(
                "The file of the run is damaged.",
                received=f"{os.fspath(self._path)!r}, line {number + 1}: {error}",
                expected="one JSON object a line, as `GradientMonitor` writes it",
                fix="restore the file, or remove the damaged line",
            )
        )


def _step(value: Any) -> int:
    step = int(value)
    if not 0 <= step < _MOST_STEPS:
        raise ValueError(f"{value!r:.20} is not the number of a step")
    return step


def _row(recording: Recording, line: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The quantities of a step; those that a newer tfdeep added are left out."""
    row = {}
    for name, values in line.items():
        width = recording.width(name)
        if width is None:
            continue
        if len(values) != width:
            raise ValueError(f"{name!r} has {len(values)} numbers instead of {width}")
        numbers = [math.nan if value is None else float(value) for value in values]
        with np.errstate(over="raise"):
            row[name] = np.array(numbers, np.float32)
    return row


def _finding(values: Mapping[str, Any]) -> Finding:
    return Finding(
        kind=str(values["kind"]),
        layer=str(values["layer"]),
        severity=str(values["severity"]),
        first_step=_step(values["first_step"]),
        evidence=str(values["evidence"]),
        remedy=_remedy(values["remedy"]),
    )


def _remedy(values: Any) -> Remedy:
    if not isinstance(values, Mapping):
        return Remedy(str(values))
    change, layer = str(values.get("change", "look")), str(values.get("layer", ""))
    before, after = values.get("before"), values.get("after")
    return Remedy(str(values["text"]), change, layer, before, after)


# By the type of a field of `LayerInfo`, what makes a value of it from JSON.
_FROM_JSON: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "str | None": lambda value: None if value is None else str(value),
    "int": int,
    "float": lambda value: math.nan if value is None else float(value),
    "bool": bool,
    "tuple[str, ...]": lambda values: tuple(map(str, values)),
}


def _layer(values: Mapping[str, Any]) -> LayerInfo:
    """A layer of the header; fields of other versions of tfdeep are left out."""
    return LayerInfo(
        **{
            field.name: _FROM_JSON[str(field.type)](values[field.name])
            for field in dataclasses.fields(LayerInfo)
            if field.name in values
        }
    )


def _empty_recording(header: Mapping[str, Any]) -> Recording:
    return Recording(
        [str(path) for path in header["variables"]],
        [_layer(layer) for layer in header["layers"]],
        program=Program(outputs=(Output(),) * min(int(header.get("outputs", 0)), 1000)),
    )


def _fill(
    recording: Recording, steps: list[int], rows: list[dict[str, np.ndarray]]
) -> None:
    numbers = np.array(steps, np.int64)
    columns: dict[str, np.ndarray] = {}
    for i, row in enumerate(rows):
        for name, values in row.items():
            if name not in columns:
                columns[name] = np.full((len(rows), len(values)), np.nan, np.float32)
            columns[name][i] = values
    cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
    for part in np.split(np.arange(len(numbers)), cuts):
        if len(part):
            recording.extend(
                {name: values[part] for name, values in columns.items()},
                first_step=int(numbers[part[0]]),
            )
