"""Writes a run to its directory, for TensorBoard and for `tfdeep report`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from tfdeep.callbacks._tensorboard import TensorBoardWriter
from tfdeep.diagnostics import Finding, Recording
from tfdeep.diagnostics._run_file import RunFileWriter, Thinning
from tfdeep.optimizers import Telemetry


class RunWriter:
    """Passes what a monitor recorded to each of the writers.

    Every step is written at first, then ever fewer, and of large nets fewer still. The
    first run of a directory has its event files there, each later one in a directory
    `fit_2`, `fit_3`, ... below: TensorBoard would draw the steps of two runs as one
    line that jumps back.

    Args:
        log_dir: Directory of the run.

    Raises:
        MissingDependencyError: If tensorboard is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = os.fspath(log_dir)
        self._file = RunFileWriter(log_dir)
        self._events = TensorBoardWriter(log_dir)
        self._recording: Recording | None = None
        self._findings: list[Finding] = []
        self._telemetry: Sequence[Telemetry] = ()
        self._thinning = Thinning()
        self._held: tuple[dict[str, np.ndarray], int] | None = None

    def begin(self, recording: Recording) -> None:
        """Starts a run with the variables and layers of a recording.

        Args:
            recording: The recording of the run, which is filled while it goes on.
        """
        self._events.close()  # a fit that failed has not ended its files
        self._recording = recording
        self._findings = []
        self._telemetry = ()
        self._thinning = Thinning(len(recording.variables))
        self._held = None
        outputs = len(recording.program.outputs)
        run = self._file.begin(recording.variables, recording.layers, outputs)
        log_dir = self.log_dir
        if run > 1:
            log_dir = os.path.join(log_dir, f"fit_{run}")
        self._events.begin(
            log_dir, recording.variables, [layer.path for layer in recording.layers]
        )

    def write(self, rows: dict[str, np.ndarray], first_step: int) -> None:
        """Writes the rows of steps `first_step`, `first_step + 1`, ..."""
        each, detailed = self._thinning.choose(rows, first_step)
        if not len(each):
            return
        self._events.write(rows, first_step, each, detailed)
        self._file.write(rows, first_step, each | detailed)
        self._held = None
        if not each[-1] and not detailed[-1]:  # the last row of a run is always kept
            last = {name: values[-1:] for name, values in rows.items()}
            self._held = last, first_step + len(each) - 1

    def write_findings(self, findings: Sequence[Finding]) -> None:
        """Writes what the rules have found since the last call."""
        if findings:
            self._findings += findings
            self._file.write_findings(findings)
            self._events.write_findings(self._findings)

    def write_telemetry(self, telemetry: Sequence[Telemetry], step: int) -> None:
        """Writes what each optimizer wrapper has done by a step."""
        self._telemetry = telemetry
        self._events.write_telemetry(telemetry, step)

    def write_histograms(self, gradients: Mapping[str, np.ndarray], step: int) -> None:
        """Writes the distributions of whole gradients at a step.

        Args:
            gradients: The gradients by the path of their variable.
            step: The number of the step.
        """
        self._events.write_histograms(gradients, step)

    def close(self) -> None:
        """Ends the files of the run."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        if self._held is not None:
            rows, step = self._held
            last = np.array([True])
            self._events.write(rows, step, last, last)
            self._file.write(rows, step, last)
            self._held = None
        telemetry = [{**one.to_dict(), "summary": f"{one}."} for one in self._telemetry]
        self._file.end(recording.total_steps, telemetry)
        self._events.write_heat_map(recording, self._findings)
        self._events.close()
