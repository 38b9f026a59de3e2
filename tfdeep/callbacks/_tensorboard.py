"""Writes recorded numbers as TensorBoard scalars."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain
from tfdeep.errors import MissingDependencyError
from tfdeep.optimizers import Telemetry

# How many steps are written in full; from there on, each doubling of the step count
# adds as many points again.
_DENSE_STEPS = 512

_TAGS = {
    "norm": "gradient_norm",
    "clipped_norm": "gradient_norm_after_clipping",
    "largest_entry": "largest_gradient_entry",
    "update_ratio": "update_to_weight_ratio",
}


class ScalarWriter:
    """Writes one scalar a step, variable and quantity, ever more sparsely.

    Args:
        log_dir: Directory of the event files.

    Raises:
        MissingDependencyError: If tensorboard, which reads them, is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingDependencyError(
                explain(
                    "TensorBoard scalars were asked for, but tensorboard is not "
                    "installed.",
                    received=f"log_dir={os.fspath(log_dir)!r}",
                    expected="the package `tensorboard` to be installed",
                    fix="`pip install tfdeep[tensorboard]`, or leave `log_dir` out and "
                    "read `monitor.history`",
                )
            )
        self.log_dir = os.fspath(log_dir)
        self._writer: tf.summary.SummaryWriter | None = None

    def write(
        self, paths: Sequence[str], rows: dict[str, np.ndarray], first_step: int
    ) -> None:
        """Writes the rows of steps `first_step`, `first_step + 1`, ...

        Args:
            paths: The variables, one a column.
            rows: By quantity, an array of shape (steps, variables), as
                `StepRecorder.drain` returns it.
            first_step: The number of the first row's step.
        """
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self.log_dir)
        with self._writer.as_default():
            for i in range(max(map(len, rows.values()))):
                step = first_step + i
                if _is_written(step):
                    gradients = {n: x for n, x in rows.items() if n != "update_ratio"}
                    _write_row(gradients, i, paths, step)
                # An update is measured one row after its step, and rarely enough.
                _write_row({"update_ratio": rows["update_ratio"]}, i, paths, step - 1)
        self._writer.flush()

    def write_telemetry(self, telemetry: Sequence[Telemetry], step: int) -> None:
        """Writes what each optimizer wrapper has done by this step.

        Args:
            telemetry: One for each wrapper.
            step: The number of the last step.
        """
        if self._writer is None:
            return
        with self._writer.as_default(step):
            for wrapper in telemetry:
                values = {
                    "threshold": wrapper.threshold,
                    "clipped_fraction": wrapper.clipped_fraction,
                    "skipped_steps": wrapper.skipped_steps,
                }
                for name, value in values.items():
                    if np.isfinite(value):
                        tf.summary.scalar(f"optimizer/{wrapper.wrapper}/{name}", value)
        self._writer.flush()

    def close(self) -> None:
        """Ends the event file; the next write starts another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _write_row(
    rows: dict[str, np.ndarray], i: int, paths: Sequence[str], step: int
) -> None:
    """Writes row `i` of each quantity, without the values that are unknown."""
    points = [
        tf.compat.v1.Summary.Value(tag=f"{_TAGS[name]}/{path}", simple_value=value)
        for name, array in rows.items()
        for path, value in zip(paths, array[i] if i < len(array) else (), strict=False)
        if not np.isnan(value)
    ]
    if points:
        summary = tf.compat.v1.Summary(value=points)
        tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)


def _is_written(step: int) -> bool:
    """Whether a step is written: all early ones, then ever fewer."""
    stride = 1 << max((step // _DENSE_STEPS).bit_length() - 1, 0)
    return step % stride == 0
