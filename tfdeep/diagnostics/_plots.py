"""Figures of recorded numbers."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdeep._core._explain import explain
from tfdeep._keras import _layer_facts
from tfdeep._quantities import BY_NAME, Quantity, update_ratio
from tfdeep.diagnostics._finding import KINDS, Finding
from tfdeep.diagnostics._monitor_report import History
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._run_file import Run
from tfdeep.diagnostics.rules import _measures
from tfdeep.errors import MissingDependencyError

# A line of the figures has at most so many points, a heat map so many columns.
_BINS = 240

_FEW = 10  # points that are drawn as they are

_MOST_NAMES = 12  # lines in a legend
_MOST_TICKS = 20  # layers named beside a heat map
_LONGEST_NAME = 30  # letters

# Update norms of a net that trains well are about a thousandth of the weight norms.
_USUAL_RATIOS = (1e-4, 1e-2)

_COLORS = {"critical": "#d1242f", "warning": "#e08a00"}
# One shape a kind, the same in every figure; your own rules share the last.
_MARKERS = dict(zip(KINDS, itertools.cycle("ovsD^P*X<>dphH"), strict=False))
_OWN_MARKER = (4, 1, 0)  # a star of four points


def plot_gradient_norms(
    history: History,
    title: str = "Gradient norms",
    steps: np.ndarray | None = None,
) -> Any:
    """Draws the gradient norm of each layer's kernel over the steps.

    Layers run from dark (near the input) to light (near the output), so that a
    gradient that shrinks or grows with depth shows as an ordered fan. Thin lines are
    the steps, thick ones their running median.

    Args:
        history: `GradientMonitor.history`. Biases are left out.
        title: Title of the figure.
        steps: The numbers of the steps, if not every step is there, as of a long run:
            `GradientMonitor.recording.steps`. None counts what is there.

    Returns:
        A `matplotlib.figure.Figure`; `figure.savefig("norms.png")` writes it.

    Raises:
        MissingDependencyError: If matplotlib is not installed.

    Example:

    >>> history = {"hidden1/kernel": {"norm": np.array([2.0, 1.0, 0.5])}}
    >>> figure = tfdeep.diagnostics.plot_gradient_norms(history)
    >>> figure.savefig(tmp_path / "norms.png")
    """
    Figure = figure_class()
    from matplotlib import colormaps

    kernels = {p: r for p, r in history.items() if p.split("/")[-1] != "bias"}
    shown = kernels or history
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, max(len(shown), 1)))
    for shade, (path, recorded) in zip(shades, shown.items(), strict=True):
        norm = np.where(np.isfinite(recorded["norm"]), recorded["norm"], np.nan)
        label = path if len(shown) <= 20 else None
        x = np.arange(len(norm)) if steps is None else steps
        axes.plot(x, norm, color=shade, linewidth=0.5, alpha=0.4)
        axes.plot(x, _running_median(norm), color=shade, linewidth=1.5, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("kept step" if steps is None else "step")
    axes.set_title(title)
    axes.grid(True, which="major", alpha=0.3)
    if len(shown) <= 20:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _running_median(values: np.ndarray) -> np.ndarray:
    """The median of each value and its neighbors, a fortieth of all on either side."""
    reach = max(len(values) // 40, 1)
    padded = np.pad(values.astype(float), reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    known = ~np.isnan(windows).all(axis=1)
    median = np.full(len(values), np.nan)
    median[known] = np.nanmedian(windows[known], axis=1)
    return median


def plot_run(
    run: Recording | Run, findings: Sequence[Finding] = (), title: str = ""
) -> Any:
    """Draws a run on one page: norms, layers by steps, updates, loss, dead units.

    Lines run from dark (near the input) to light (near the output). Thin lines show
    the steps, thick ones their running median. Dead and saturated units are drawn of
    activations that have them, where they were looked for.

    Args:
        run: `GradientMonitor.recording`, or a run that was read from its file.
        findings: What the rules found; marked where it was first seen. Of a run that
            was read from its file, its own findings, if none are given.
        title: Title of the figure.

    Returns:
        A `matplotlib.figure.Figure`; `figure.savefig("run.png")` writes it.

    Raises:
        MissingDependencyError: If matplotlib is not installed.

    Example:

    >>> recording = tfdeep.diagnostics.Recording(["hidden1/kernel"])
    >>> recording.extend({"norm": np.array([[2.0], [1.0], [0.5]])})
    >>> figure = tfdeep.diagnostics.plot_run(recording)
    >>> figure.savefig(tmp_path / "run.png")
    """
    Figure = figure_class()
    if isinstance(run, Run):
        findings = findings or run.findings
        run = run.recording
    panels = [draw_norms, draw_heat_map, draw_updates, draw_loss]
    if has_units(run):
        panels.append(draw_units)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(15, 4.75 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    places = [grid[i // 2, i % 2] for i in range(len(panels))]
    if len(panels) % 2:
        places[-1] = grid[-1, :]
    axes = [figure.add_subplot(place) for place in places]
    for draw, panel in zip(panels, axes, strict=True):
        draw(panel, run, findings)
    if title:
        figure.suptitle(title)
    return figure


def heat_map_png(
    recording: Recording, findings: Sequence[Finding] = ()
) -> bytes | None:
    """The heat map of a run as a PNG; None without matplotlib or anything to draw."""
    if importlib.util.find_spec("matplotlib") is None or not len(recording.steps):
        return None
    if not _rows(recording):
        return None
    figure = figure_of(draw_heat_map, recording, findings)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


Draw = Callable[[Any, Recording, Sequence[Finding]], None]


def figure_of(
    draw: Draw, recording: Recording, findings: Sequence[Finding] = ()
) -> Any:
    """One panel as a figure of its own."""
    height = 4.2
    if draw is draw_heat_map:
        height = min(max(4.2, 1.6 + 0.16 * len(_rows(recording))), 9.0)
    figure = figure_class()(figsize=(9, height), layout="constrained")
    draw(figure.subplots(), recording, findings)
    return figure


# The panels.


def draw_norms(axes: Any, recording: Recording, findings: Sequence[Finding]) -> None:
    """Gradient norm of each kernel over the steps."""
    rows = _rows(recording)
    steps = recording.steps
    broken: list[int] = []
    for row, shade in zip(rows, _shades(len(rows)), strict=True):
        norm = recording["norm"][:, row.column]
        broken += steps[np.isinf(norm)].tolist()
        norm = np.where(norm > 0, norm, np.nan)
        label = _label(rows, row)
        _draw_line(axes, steps, norm, shade, label, len(rows) > _MOST_NAMES)
    _finish_scale(axes, BY_NAME["norm"])
    if broken:
        axes.plot(
            sorted(set(broken)),
            [0.985] * len(set(broken)),
            "x",
            color=_COLORS["critical"],
            transform=axes.get_xaxis_transform(),
            label="NaN or infinite",
            markersize=5,
        )
    _finish(axes, recording, "Gradient norm of each layer", len(rows), bool(broken))


def draw_heat_map(axes: Any, recording: Recording, findings: Sequence[Finding]) -> None:
    """Gradient norm by layer and step; findings where they were first seen."""
    from matplotlib import colormaps

    rows = _rows(recording)
    title = "Gradient norm, layers by steps"
    if not rows or not len(recording.steps):
        _finish(axes, recording, title, 0)
        return
    edges = _edges(recording)
    columns = [row.column for row in rows]
    table = np.array(
        [
            _binned_norm(recording.steps, recording["norm"][:, column], edges)
            for column in columns
        ]
    )
    is_broken = np.isposinf(table)
    with np.errstate(divide="ignore"):
        table = np.log10(table)
    finite = table[np.isfinite(table)]
    low, high = (
        (float(x) for x in np.percentile(finite, [1, 99])) if len(finite) else (-1, 1)
    )
    if high - low < 1:  # do not blow up noise
        low, high = (low + high) / 2 - 0.5, (low + high) / 2 + 0.5
    table[is_broken] = np.inf
    # Separate colors for infinity and for exactly zero.
    table = np.where(np.isfinite(table), np.clip(table, low, high), table)
    colors = colormaps["viridis"].with_extremes(
        bad="#e6e6e6", under="black", over=_COLORS["critical"]
    )
    image = axes.pcolormesh(
        edges,
        np.arange(len(rows) + 1) - 0.5,
        np.ma.masked_invalid(np.clip(table, -1e9, 1e9)),
        cmap=colors,
        vmin=low,
        vmax=high,
        rasterized=True,
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _name_rows(axes, rows)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.015, aspect=30)
    bar.set_label("log10 of the L2 norm")
    bar.outline.set_visible(False)
    _mark_findings(axes, recording, rows, findings)
    notes = [title]
    if is_broken.any():
        notes.append("red: NaN or infinite")
    if (table == -np.inf).any():
        notes.append("black: zero")
    axes.set_title("; ".join(notes))
    axes.set_xlabel("step")


def draw_updates(axes: Any, recording: Recording, findings: Sequence[Finding]) -> None:
    """Update norm over weight norm of each kernel, where it was measured."""
    rows = _rows(recording)
    ratios = update_ratio(recording)
    if ratios is not None:
        ratios = np.where(ratios > 0, ratios, np.nan)
        for row, shade in zip(rows, _shades(len(rows)), strict=True):
            ratio = ratios[:, row.column]
            label = _label(rows, row)
            steps = recording.measured_steps
            _draw_line(axes, steps, ratio, shade, label, len(rows) > _MOST_NAMES)
    low, high = _USUAL_RATIOS
    axes.axhspan(low, high, color="#2da44e", alpha=0.1, linewidth=0)
    axes.annotate(
        "usual",
        (0.995, low),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color="#1a7f37",
        fontsize="small",
        bbox={"color": "white", "alpha": 0.75, "pad": 1},
        zorder=5,
    )
    _finish_scale(axes, BY_NAME["update_ratio"])
    # The usual range stays in sight.
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, low / 2), max(top, high * 2))
    _finish(axes, recording, "Size of the updates", len(rows))


def has_units(recording: Recording) -> bool:
    """Whether dead or saturated units were looked for."""
    return any(np.isfinite(values).any() for _, _, values in _unit_lines(recording))


def draw_units(axes: Any, recording: Recording, findings: Sequence[Finding]) -> None:
    """Fractions of dead units, and of saturated outputs, of each layer."""
    from matplotlib.lines import Line2D

    lines = [line for line in _unit_lines(recording) if np.isfinite(line[2]).any()]
    names = list(dict.fromkeys(name for name, _, _ in lines))
    shades = dict(zip(names, _shades(len(names)), strict=True))
    labelled = set()
    for name, style, values in lines:
        steps = recording.measured_steps
        label = None
        if len(names) <= _MOST_NAMES and name not in labelled:
            label = _short(name)
            labelled.add(name)
        x, y = _binned(steps, values, _edges(recording))
        width = 1.4 if len(names) <= _MOST_NAMES else 0.9
        axes.plot(x, y, style, color=shades[name], linewidth=width, label=label)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("fraction")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    styles = {style for _, style, _ in lines}
    kinds = {"-": "dead units", "--": "saturated outputs"}
    title = " and ".join(kinds[style] for style in kinds if style in styles)
    _finish(axes, recording, title.capitalize() or "Dead units", len(names))
    if len(styles) > 1:
        handles = [
            Line2D([], [], color="#555555", linestyle=style, label=kinds[style])
            for style in kinds
        ]
        first = axes.get_legend()
        axes.legend(handles=handles, loc="upper left", fontsize="small", frameon=False)
        if first is not None:
            axes.add_artist(first)


def draw_loss(axes: Any, recording: Recording, findings: Sequence[Finding]) -> None:
    """The loss of each step's batch."""
    _finish_scale(axes, BY_NAME["loss"])
    if "loss" in recording:
        loss = recording["loss"][:, 0]
        _draw_line(axes, recording.steps, loss, "#31688e", None)
        known = loss[np.isfinite(loss)]
        if len(known) and known.min() > 0 and known.max() > 100 * known.min():
            axes.set_yscale("log")
    _finish(axes, recording, "Loss of each step", 0)


# Shared by the panels.


@dataclasses.dataclass(frozen=True)
class _Row:
    """A weight that a figure shows: its layer, its name and its column."""

    layer: str
    name: str
    column: int


def _rows(recording: Recording) -> list[_Row]:
    """The kernels from the input to the output; without any, all variables."""
    if "norm" not in recording:
        return []
    rows = []
    for layer in recording.layers:
        for kernel, name in (
            (layer.kernel, layer.path),
            (layer.recurrent_kernel, f"{layer.path}, recurrent"),
        ):
            column = recording.column(kernel)
            if column is not None:
                rows.append(_Row(layer.path, name, column))
    if rows:
        return rows
    variables = list(enumerate(recording.variables))
    kernels = [(i, v) for i, v in variables if v.rpartition("/")[2] != "bias"]
    return [_Row(v.rpartition("/")[0], v, i) for i, v in kernels or variables]


def _unit_lines(recording: Recording) -> list[tuple[str, str, np.ndarray]]:
    """By layer, a line style and the fraction at the measured steps."""
    lines = []
    for i, layer in enumerate(recording.layers):
        lines.append((layer.path, "-", _dead(recording, i)))
        if _layer_facts.activation(layer.activation).saturates:
            flat = _layer_column(recording, "flat_fraction", i)
            lines.append((layer.path, "--", flat))
    return lines


def _dead(recording: Recording, i: int) -> np.ndarray:
    """The fraction of a layer's dead units; NaN if its activation cannot die."""
    layer = recording.layers[i]
    own, silent = "inactive_fraction", "silent_fraction"
    activation = layer.activation
    if own not in recording:  # then that of a layer of its own is not seen
        activation = _measures.activation_of(recording, layer)
    facts = _layer_facts.activation(activation)
    if not (facts.can_die or facts.saturates):
        return np.full(len(recording.measured_steps), np.nan)
    dead = _layer_column(recording, own, i)
    column = recording.column(layer.bias)
    if np.isfinite(dead).any() or column is None or silent not in recording:
        return dead
    if _measures.is_normalized(recording, layer):
        return dead  # what a normalization takes away has no gradient either
    return recording[silent][:, column]


def _layer_column(recording: Recording, quantity: str, i: int) -> np.ndarray:
    if quantity in recording and i < recording[quantity].shape[1]:
        return recording[quantity][:, i]
    return np.full(len(recording.measured_steps), np.nan)


def figure_class() -> Any:
    """The `Figure` of matplotlib, or an error that says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            explain(
                "The figure needs matplotlib, which is not installed.",
                received="import matplotlib failed",
                expected="the package `matplotlib` to be installed",
                fix="`pip install tfdeep[plots]`",
            )
        ) from error
    return Figure


def _shades(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.9, max(count, 1)))[:count]


def _short(name: str) -> str:
    """A name that fits beside a figure: its end, which says more than its beginning."""
    name = name.replace("$", r"\$")  # no formulas
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _label(rows: Sequence[_Row], row: _Row) -> str | None:
    return _short(row.name) if len(rows) <= _MOST_NAMES else None


def _edges(recording: Recording) -> np.ndarray:
    """The borders of the bins that a run's steps are drawn in."""
    steps = max(int(recording.steps[-1]) + 1, 1) if len(recording.steps) else 1
    # A long run keeps only some steps: bins must not be narrower than the gaps.
    gap = int(np.diff(recording.steps).max(initial=1))
    count = max(min(_BINS, steps // gap), 1)
    return np.linspace(0, steps, count + 1)


def _binned(
    steps: np.ndarray, values: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The median of the finite values in each bin that has any, and where it is."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    bins = np.searchsorted(edges, steps, side="right") - 1
    filled = np.unique(bins)
    starts = np.searchsorted(bins, filled)
    parts = zip(np.split(steps, starts[1:]), np.split(values, starts[1:]), strict=True)
    medians = [
        (part.mean(), np.median(of_part)) for part, of_part in parts if len(part)
    ]
    if not medians:
        return np.empty(0), np.empty(0)
    x, y = np.array(medians, float).T
    return x, y


def _binned_norm(steps: np.ndarray, norm: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The median norm in each bin; infinite if one in it is, NaN if unknown."""
    table = np.full(len(edges) - 1, np.nan)
    x, y = _binned(steps, norm, edges)
    table[np.searchsorted(edges, x, side="right") - 1] = y
    # A bin without a kept step looks like the one before it, if that has a value.
    bins = np.searchsorted(edges, steps, side="right") - 1
    for gap in np.setdiff1d(np.arange(len(table)), bins):
        table[gap] = table[gap - 1] if gap else np.nan
    table[bins[np.isinf(norm)]] = np.inf
    return table


def _draw_line(
    axes: Any,
    steps: np.ndarray,
    values: np.ndarray,
    shade: Any,
    label: str | None,
    is_one_of_many: bool = False,
) -> None:
    """Draws the steps thinly and their running median above it."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known].astype(float)
    if len(steps) < _FEW:
        axes.plot(steps, values, ".-", color=shade, linewidth=1.5, label=label)
        return
    x, y = _envelope(steps, values)
    alpha = 0.12 if is_one_of_many else 0.35
    # Below all thick lines, so that an SVG holds them as one picture.
    thin = {"linewidth": 0.5, "alpha": alpha, "zorder": 1.9, "rasterized": True}
    axes.plot(x, y, color=shade, **thin)
    if len(steps) > _BINS:
        edges = np.linspace(0, steps[-1] + 1, _BINS + 1)
        steps, values = _binned(steps, values, edges)
    median = _running_median(values)
    axes.plot(steps, median, color=shade, linewidth=1.5, label=label)


def _envelope(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer points: the smallest and the largest of each bin, so that spikes stay."""
    if len(steps) <= 4 * _BINS:
        return steps, values
    kept: list[int] = []
    borders = np.linspace(0, steps[-1] + 1, 2 * _BINS + 1)[1:-1]
    for part in np.split(np.arange(len(steps)), np.searchsorted(steps, borders)):
        if len(part):
            ends = part[values[part].argmin()], part[values[part].argmax()]
            kept += sorted({int(end) for end in ends})
    return steps[kept], values[kept]


def _finish_scale(axes: Any, quantity: Quantity) -> None:
    """Names the axis of a quantity, and makes it logarithmic if it is to be."""
    axes.set_ylabel(quantity.unit)
    if not quantity.is_log:
        return
    axes.set_yscale("log", nonpositive="mask")
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    values = np.concatenate([np.empty(0), *drawn])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values):
        low, high = np.log10(values.min()), np.log10(values.max())
        margin = max(0.05 * (high - low), 0.1)
        axes.set_ylim(10 ** (low - margin), 10 ** (high + margin))


def _finish(
    axes: Any, recording: Recording, title: str, lines: int, has_label: bool = False
) -> None:
    """Title, grid, and a legend if it is short enough to be read."""
    if 1 < _MOST_NAMES < lines:
        title += "; dark: near the input, light: near the output"
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    last = int(recording.steps[-1]) if len(recording.steps) else 0
    axes.set_xlim(-0.01 * max(last, 1), 1.01 * max(last, 1))
    is_readable = lines <= _MOST_NAMES or has_label
    if is_readable and axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
            fontsize="small",
            handlelength=1.2,
        )


def _name_rows(axes: Any, rows: Sequence[_Row]) -> None:
    stride = -(-len(rows) // _MOST_TICKS)
    ticks = list(range(0, len(rows), stride))
    last = len(rows) - 1
    if ticks[-1] != last:
        if last - ticks[-1] < stride:
            ticks.pop()
        ticks.append(last)
    axes.set_yticks(ticks, [_short(rows[i].name) for i in ticks], fontsize="small")
    axes.tick_params(axis="y", length=2)


def _mark_findings(
    axes: Any,
    recording: Recording,
    rows: Sequence[_Row],
    findings: Sequence[Finding],
) -> None:
    """A mark for each finding at its layer and first step, one shape a kind."""
    order = [layer.path for layer in recording.layers]
    place = {row.layer: i for i, row in reversed(list(enumerate(rows)))}
    last = max(recording.total_steps - 1, 1)
    named = set()
    for finding in findings:
        row = _row_of(finding.layer, order, place)
        label = None if finding.kind in named else finding.kind.replace("_", " ")
        named.add(finding.kind)
        axes.plot(
            [min(finding.first_step, last) + 0.5],
            [row],
            marker=_MARKERS.get(finding.kind, _OWN_MARKER),
            color=_COLORS.get(finding.severity, _COLORS["warning"]),
            markeredgecolor="white",
            markeredgewidth=1,
            markersize=8 if len(rows) <= 40 else 6,
            linestyle="none",
            label=label,
            clip_on=False,
            zorder=3,
        )
    if findings:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=min(len(named), 4),
            frameon=False,
            fontsize="small",
            title="Findings; red: critical, orange: warning",
            title_fontsize="small",
        )


def _row_of(layer: str, order: Sequence[str], place: dict[str, int]) -> float:
    """The row of a layer, of the nearest before it that has one, or the top edge."""
    if layer in place:
        return place[layer]
    if layer in order:
        for path in reversed(order[: order.index(layer)]):
            if path in place:
                return place[path]
    return -0.5
