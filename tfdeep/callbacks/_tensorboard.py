"""Writes a run for TensorBoard: scalars, a layout of them, a heat map, findings."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain
from tfdeep._quantities import (
    BY_NAME,
    EACH_STEP,
    QUANTITIES,
    Of,
    Quantity,
    update_ratio,
)
from tfdeep.diagnostics import Finding, Recording
from tfdeep.diagnostics._plots import heat_map_png
from tfdeep.errors import MissingDependencyError
from tfdeep.optimizers import Telemetry

# Written for every chosen step; all else where a step was measured in detail. The
# largest entry says little more than the norm: after the first steps it counts among
# the details, which keeps the files of a long run a fifth smaller.
_FIRST_STEPS = 64

_TELEMETRY = {
    "clipped_fraction": "Steps clipped",
    "threshold": "Threshold",
    "skipped_steps": "Steps skipped",
}


class TensorBoardWriter:
    """Writes the event files of a run, which a run begins and `close` ends.

    Args:
        log_dir: Directory of the event files.

    Raises:
        MissingDependencyError: If tensorboard, which reads them, is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingDependencyError(
                explain(
                    "TensorBoard scalars were requested, but tensorboard is not "
                    "installed.",
                    received=f"log_dir={os.fspath(log_dir)!r}",
                    expected="the package `tensorboard` to be installed",
                    fix="`pip install tfdeep[tensorboard]`, or leave `log_dir` out and "
                    "read `monitor.history`",
                )
            )
        self._log_dir = os.fspath(log_dir)
        self._variables: Sequence[str] = ()
        self._layers: Sequence[str] = ()
        self._writer: tf.summary.SummaryWriter | None = None
        self._last_step = 0

    def begin(
        self,
        log_dir: str | os.PathLike[str],
        variables: Sequence[str],
        layers: Sequence[str],
    ) -> None:
        """Starts a run; its first row starts the event file.

        Args:
            log_dir: Directory of the event files.
            variables: Paths of the variables, one a column.
            layers: Paths of the layers, one a column.
        """
        self.close()
        self._log_dir = os.fspath(log_dir)
        self._variables = variables
        self._layers = layers
        self._last_step = 0

    def write(
        self,
        rows: Mapping[str, np.ndarray],
        first_step: int,
        each: np.ndarray,
        detailed: np.ndarray,
    ) -> None:
        """Writes the rows of steps `first_step`, `first_step + 1`, ...

        Args:
            rows: By quantity, an array of shape (steps, columns), as
                `StepRecorder.drain` returns it; NaN is not written.
            first_step: The number of the first row's step.
            each: Mask of the rows whose norms are written.
            detailed: Mask of the rows whose details are.
        """
        rows = dict(rows)
        ratio = update_ratio(rows)
        if ratio is not None:
            rows["update_ratio"] = ratio
        tags = self._tags(rows)
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._log_dir)
            with self._writer.as_default():
                _write(_layout(rows, self._variables), 0)
        with self._writer.as_default():
            for i in np.flatnonzero(each | detailed):
                step = first_step + int(i)
                early = each[i] and step < _FIRST_STEPS
                points = [
                    tf.compat.v1.Summary.Value(tag=tag, simple_value=value)
                    for name, names in tags.items()
                    if (each[i] if name in EACH_STEP else detailed[i] or early)
                    for tag, value in zip(names, rows[name][i].tolist(), strict=False)
                    if value == value  # not NaN
                ]
                if points:
                    _write(tf.compat.v1.Summary(value=points), step)
        self._last_step = first_step + len(each) - 1
        self._writer.flush()

    def _tags(self, rows: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        """The tags of each quantity that has a page, one tag a column."""
        columns = {Of.VARIABLE: self._variables, Of.LAYER: self._layers}
        tags = {}
        for name in rows:
            quantity = BY_NAME.get(name)
            if quantity is None or not quantity.page:
                continue
            if quantity.of is Of.NET:
                tags[name] = [quantity.tag]
            else:
                tags[name] = [f"{quantity.tag}/{c}" for c in columns[quantity.of]]
        return tags

    def write_findings(self, findings: Sequence[Finding]) -> None:
        """Writes all that the rules have found so far, as a text."""
        if self._writer is None:
            return
        text = "\n".join(
            f"* **{finding.kind}** at {_code(finding.layer or 'the net')}, "
            f"{finding.severity}, since step {finding.first_step}: "
            f"{_escaped(finding.evidence)}. Fix: {_escaped(str(finding.remedy))}"
            for finding in findings
        )
        with self._writer.as_default(self._last_step):
            tf.summary.text("findings", text)
        self._writer.flush()

    def write_telemetry(self, telemetry: Sequence[Telemetry], step: int) -> None:
        """Writes what each optimizer wrapper has done by this step.

        Args:
            telemetry: One for each wrapper, from the outside in. The second of the
                same class is numbered.
            step: The number of the last step.
        """
        if self._writer is None:
            return
        names = _numbered(wrapper.wrapper for wrapper in telemetry)
        points = [
            tf.compat.v1.Summary.Value(
                tag=f"optimizer/{name}/{quantity}",
                simple_value=float(getattr(wrapper, quantity)),
            )
            for name, wrapper in zip(names, telemetry, strict=True)
            for quantity in _TELEMETRY
            if np.isfinite(getattr(wrapper, quantity))
        ]
        if points:
            with self._writer.as_default():
                _write(tf.compat.v1.Summary(value=points), step)
            self._writer.flush()

    def write_histograms(self, gradients: Mapping[str, np.ndarray], step: int) -> None:
        """Writes the distribution of each gradient's finite entries.

        Args:
            gradients: The gradients by the path of their variable.
            step: The number of the step.
        """
        if self._writer is None:
            return
        with self._writer.as_default(step):
            for path, gradient in gradients.items():
                entries = np.asarray(gradient, np.float32).ravel()
                entries = entries[np.isfinite(entries)]
                if len(entries):
                    tf.summary.histogram(f"gradient/{path}", entries)
        self._writer.flush()

    def write_heat_map(self, recording: Recording, findings: Sequence[Finding]) -> None:
        """Writes the gradient norms of the run by layer and step, as an image.

        It needs matplotlib; without it, nothing is written.
        """
        if self._writer is None:
            return
        png = heat_map_png(recording, findings)
        if png is not None:
            with self._writer.as_default(self._last_step):
                image = tf.io.decode_png(png, channels=3)
                tf.summary.image("gradient_norm_by_layer", image[tf.newaxis])

    def close(self) -> None:
        """Ends the event file; the next write starts another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _write(summary: Any, step: int) -> None:
    tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)


def _numbered(names: Iterable[str]) -> list[str]:
    """The names, where the second of the same is numbered, and so on."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return numbered


def _layout(rows: Mapping[str, np.ndarray], variables: Sequence[str]) -> Any:
    """The custom scalars: one chart holds all layers of one quantity."""
    from tensorboard.plugins.custom_scalar import layout_pb2, summary

    def chart(title: str, pattern: str) -> Any:
        lines = layout_pb2.MultilineChartContent(tag=[pattern])
        return layout_pb2.Chart(title=title, multiline=lines)

    shown = [
        quantity
        for quantity in QUANTITIES
        if quantity.page and quantity.name in rows and rows[quantity.name].shape[1]
    ]
    pages: dict[str, list[Any]] = {}
    for quantity in shown:
        charts = [chart(*c) for c in _charts(quantity, _groups(variables))]
        pages.setdefault(quantity.page, []).extend(charts)
    pages.setdefault("Optimizer", []).extend(
        chart(title, f"^optimizer/.+/{name}$") for name, title in _TELEMETRY.items()
    )
    categories = [
        layout_pb2.Category(title=page, chart=charts, closed=page != "Gradients")
        for page, charts in pages.items()
    ]
    return summary.pb(layout_pb2.Layout(category=categories))


def _charts(
    quantity: Quantity, groups: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """The title of each chart of a quantity, and the pattern of its tags."""
    if quantity.of is Of.NET:
        yield quantity.label, f"^{quantity.tag}$"
    elif quantity.of is Of.LAYER:
        yield quantity.label, f"^{quantity.tag}/"
    else:
        for group, names in groups.items():
            if quantity.name == "silent_fraction" and group != "biases":
                continue
            ends = "|".join(map(re.escape, names))
            pattern = f"^{quantity.tag}/(?:.+/)?(?:{ends})$"
            yield f"{quantity.label}, {group}", pattern


def _groups(variables: Sequence[str]) -> dict[str, list[str]]:
    """The last names of the variables, by what they do in their layers."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(path.rpartition("/")[2] for path in variables):
        group = "kernels"
        if "bias" in name:
            group = "biases"
        elif name in ("gamma", "beta", "scale"):
            group = "scales and offsets"
        groups.setdefault(group, []).append(name)
    return dict(sorted(groups.items(), key=lambda item: item[0] != "kernels"))


def _code(text: str) -> str:
    """Text as code in Markdown."""
    return f"`{text.replace('`', chr(39))}`"


def _escaped(text: str) -> str:
    """Text that Markdown leaves as it is, apart from code in backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its other
        parts = [text.replace("`", "'")]
    for i in range(0, len(parts), 2):
        marked = re.sub(r"([\\*_{}\[\]#|])", r"\\\1", parts[i])
        parts[i] = marked.replace("&", "&amp;").replace("<", "&lt;")
    return "`".join(parts)
