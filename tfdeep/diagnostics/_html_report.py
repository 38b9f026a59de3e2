"""Writes a run as one self-contained HTML page."""

from __future__ import annotations

import html
import importlib.util
import io
import math
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from tfdeep._core._records import counted, short_number
from tfdeep._quantities import update_ratio
from tfdeep.diagnostics import _plots
from tfdeep.diagnostics._causes import explained
from tfdeep.diagnostics._finding import KINDS, Finding, neighbors, severity_rank
from tfdeep.diagnostics._monitor_report import Judgment, judgment_of, judgment_text
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._run_file import Run, read_run
from tfdeep.diagnostics.rules._measures import largest, median

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2329; --soft: #5b6670;
  --line: #dfe3e7; --card: #f6f7f8; --critical: #b91c2b; --warning: #9a5b00;
  --good: #1a7f37; --code: #eceff1; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e4e8eb;
  --soft: #9aa5ae; --line: #30373d; --card: #1c2126; --critical: #ff7b84;
  --warning: #f0a93b; --good: #57c877; --code: #2a3137; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 62rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 44rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.finding { border: 1px solid var(--line); border-left: 4px solid var(--warning);
  border-radius: 6px; background: var(--card); padding: .8rem 1rem; margin: .7rem 0; }
.finding.critical { border-left-color: var(--critical); }
.finding .severity { color: var(--warning); font-weight: 600; }
.finding.critical .severity { color: var(--critical); }
.finding .where { font-weight: 400; overflow-wrap: anywhere; }
.finding p { overflow-wrap: anywhere; }
.well { border-left-color: var(--good); }
code { background: var(--code); border-radius: 3px; padding: .05em .3em;
  font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--soft); }
figure { margin: 1.2rem 0 2rem; }
.scroll { overflow-x: auto; }
figure .scroll { background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figure svg { display: block; width: 100%; min-width: 38rem; height: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 10rem; }
td.bad { color: var(--critical); font-weight: 600; }
footer { margin-top: 3rem; }
@media (max-width: 40rem) { body { padding: 1.2rem .8rem 3rem; } }
@media print { body { max-width: none; } .finding, figure { break-inside: avoid; } }
"""

_CAPTIONS: dict[_plots.Draw, str] = {
    _plots.draw_norms: "The L2 norm of each kernel's gradient, before clipping. Dark "
    "lines are near the input. Lines that lie far apart in order of depth mean a "
    "gradient that shrinks or grows from layer to layer.",
    _plots.draw_heat_map: "The same by layer and step, from the input at the top to "
    "the output. A mark is a finding, at the step where it was first seen: red if it "
    "is critical, orange if it is a warning.",
    _plots.draw_units: "Of activations that can die or saturate. Solid: the fraction "
    "of units that had no gradient, or were not active, for a while. Dashed: the "
    "fraction of outputs on which the activation is flat.",
    _plots.draw_updates: "How much a step changes the weights, against their size, at "
    "every tenth step, later every fiftieth. About a thousandth is usual.",
    _plots.draw_loss: "The loss of each step's batch. The thick line is the running "
    "median.",
}


def write_html_report(
    log_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    run: int | None = None,
) -> pathlib.Path:
    """Writes an HTML page of what a monitor recorded: findings, figures and a table.

    The page is one file without scripts, and loads nothing from the network.

    Args:
        log_dir: The `log_dir` of a `GradientMonitor`.
        output: The file to write. None writes `report.html` into `log_dir`, or
            `report_1.html` where `run=1` is given.
        run: Integer > 0. Which of the fits into this directory, 1 for the first. None
            shows the last.

    Returns:
        The path of the page.

    Raises:
        InvalidArgumentError: If there is no monitored run, or no such run, in
            `log_dir`.
        UnknownFormatError: If a newer version of tfdeep wrote it.
        CorruptFileError: If the file of the run is damaged.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[8, 8], num_outputs=2)
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> monitor = tfdeep.callbacks.GradientMonitor(log_dir=tmp_path)
    >>> x, y = np.random.normal(size=(32, 4)), np.zeros(32)
    >>> history = model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
    >>> page = tfdeep.diagnostics.write_html_report(tmp_path)
    >>> page.name
    'report.html'
    """
    found = read_run(log_dir, run)
    name = "report.html" if run is None else f"report_{run}.html"
    path = found.path.with_name(name) if output is None else pathlib.Path(output)
    page = render_html(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render_html(run: Run) -> str:
    """The page of a run."""
    recording = run.recording
    name = run.path.resolve().parent.name
    parts = [
        f"<h1>Training run {_text(name)}</h1>",
        f'<p class="soft">{_text(_summary(run))}</p>',
        *(f'<p class="soft">{_with_code(note)}</p>' for note in run.notes),
        "<h2>Findings</h2>",
        *_findings(run),
        "<h2>Figures</h2>",
        *_figures(run),
        "<h2>Weights</h2>",
        *_table(recording),
    ]
    if run.telemetry:
        parts += ["<h2>Optimizer wrappers</h2>", "<ul>"]
        for of_one in run.telemetry:
            words = of_one.get("summary", of_one.get("wrapper"))
            parts.append(f"<li>{_text(str(words))}</li>")
        parts.append("</ul>")
    parts.append(
        f'<footer class="soft">Written by tfdeep {_text(run.tfdeep_version)}.</footer>'
    )
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(name)}: training run</title>\n<style>{_CSS}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _with_code(text: str) -> str:
    """Escaped text in which `...` stands for code."""
    parts = _text(text).split("`")
    if len(parts) % 2 == 0:  # a backtick without its other
        return "`".join(parts)
    for i in range(1, len(parts), 2):
        parts[i] = f"<code>{parts[i]}</code>"
    return "".join(parts)


def _summary(run: Run) -> str:
    recording = run.recording
    parts = [
        counted(recording.total_steps, "step"),
        counted(len(recording.layers), "layer"),
        counted(len(recording.variables), "weight"),
    ]
    if "loss" in recording:
        loss = recording["loss"][:, 0]
        tenth = max(len(loss) // 10, 1)
        start, end = median(loss[:tenth]), median(loss[-tenth:])
        if math.isfinite(start) and math.isfinite(end):
            parts.append(f"loss {start:.4g} at the start, {end:.4g} at the end")
    return ", ".join(parts) + "."


# Findings.


def _findings(run: Run) -> list[str]:
    if not run.findings:
        if not len(run.recording.steps):
            return ["<p>No step was recorded.</p>"]
        steps = run.recording.total_steps
        if judgment_of(steps, has_rules=True) is not Judgment.DONE:
            return [f"<p>{judgment_text(Judgment.TOO_FEW_STEPS, steps)}</p>"]
        return [
            '<div class="finding well"><p>The rules found nothing wrong in the '
            f"{counted(run.recording.total_steps, 'step')} of this run.</p></div>"
        ]
    layers = [layer.path for layer in run.recording.layers]
    findings = explained(run.findings, layers)
    groups = group_findings(findings, run.recording)
    causes = [group for group in groups if group[0].explained_by is None]
    causes.sort(key=lambda group: findings.index(group[0]))
    cards, told = [], set()
    for group in causes:
        follow = [] if group[0].kind in told else group[0].explains
        told.add(group[0].kind)
        effects = [g for g in groups if g[0].explained_by and g[0].place in follow]
        cards.append(_finding(group, effects))
    return cards


def group_findings(
    findings: Sequence[Finding], recording: Recording
) -> list[list[Finding]]:
    """Findings of the same kind at neighboring layers.

    Critical findings come first, then those that were seen first.
    """
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    rank = {kind: i for i, kind in enumerate(KINDS)}

    def key(group: Sequence[Finding]) -> tuple[int, int, int, str]:
        first = group[0]
        return (
            min(severity_rank(finding) for finding in group),
            min(finding.first_step for finding in group),
            rank.get(first.kind, len(rank)),
            first.kind,
        )

    runs = [run for g in groups.values() for run in neighbors(g, recording.layers)]
    return sorted(runs, key=key)


def _finding(group: Sequence[Finding], effects: Sequence[list[Finding]] = ()) -> str:
    """The card of a cause, with what follows from it folded."""
    first = group[0]
    layers = list(dict.fromkeys(finding.layer for finding in group))
    where = f"<code>{_text(layers[0])}</code>" if layers[0] else "the net"
    if len(layers) > 1:
        where += f" to <code>{_text(layers[-1])}</code>, {len(layers)} layers"
    step = min(finding.first_step for finding in group)
    kind = first.kind.replace("_", " ").capitalize()
    severity = min(group, key=severity_rank).severity
    parts = [
        f'<div class="finding{" critical" if severity == "critical" else ""}">',
        f'<h3>{_text(kind)} <span class="where">at {where}</span></h3>',
        f'<p class="soft"><span class="severity">{_text(severity)}</span>, '
        f"since step {step:,}</p>",
    ]
    if len(group) == 1:
        parts.append(f"<p>{_with_code(first.evidence)}</p>")
    else:
        parts.append(
            f"<p><code>{_text(first.layer)}</code>: {_with_code(first.evidence)}</p>"
        )
        items = "".join(
            f"<li><code>{_text(finding.layer)}</code>: {_with_code(finding.evidence)}, "
            f"since step {finding.first_step:,}</li>"
            for finding in group
        )
        parts.append(
            f"<details><summary>Each layer</summary><ul>{items}</ul></details>"
        )
    for remedy in dict.fromkeys(str(finding.remedy) for finding in group):
        parts.append(f"<p><strong>Fix:</strong> {_with_code(remedy)}</p>")
    if effects:
        kinds = dict.fromkeys(effect[0].kind.replace("_", " ") for effect in effects)
        cards = "\n".join(_finding(effect) for effect in effects)
        parts.append(
            f"<details><summary>From it follows: {_text(', '.join(kinds))}</summary>"
            f"{cards}</details>"
        )
    parts.append("</div>")
    return "\n".join(parts)


# Figures.


def _figures(run: Run) -> list[str]:
    recording = run.recording
    if not len(recording.steps):
        return ["<p>Nothing was recorded.</p>"]
    if importlib.util.find_spec("matplotlib") is None:
        return [
            "<p>The figures need matplotlib, which is not installed: "
            "<code>pip install tfdeep[plots]</code></p>"
        ]
    parts: list[str] = []
    for draw, caption in _CAPTIONS.items():
        if draw is _plots.draw_units and not _plots.has_units(recording):
            continue
        figure = _plots.figure_of(draw, recording, run.findings)
        svg = _inline_svg(figure, f"figure{len(parts)}")
        parts.append(
            f'<figure><div class="scroll">{svg}</div>'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
    return parts


def _inline_svg(figure: object, name: str) -> str:
    """A figure as SVG to embed in an HTML page.

    Args:
        figure: A `matplotlib.figure.Figure`.
        name: Makes the ids in it unlike those of other figures in the page.
    """
    import matplotlib

    out = io.StringIO()
    settings = {"svg.hashsalt": name, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure.savefig(  # type: ignore[attr-defined]
            out, format="svg", dpi=140, metadata={"Date": None, "Creator": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # HTML knows the elements of SVG; without their namespaces, and without metadata,
    # no address is left in the page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    # The ids that matplotlib counts, and those that it makes of hashes.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    return svg.replace("url(#", f"url(#{name}-")


# The table of weights.


def _table(recording: Recording) -> list[str]:
    if "norm" not in recording or not len(recording.steps):
        return ["<p>Nothing was recorded.</p>"]
    header = (
        "<tr><th>weight</th><th>gradient norm,<br>start</th><th>end</th>"
        "<th>largest</th><th>clipped</th><th>update / weight</th>"
        "<th>NaN or infinite<br>since step</th></tr>"
    )
    rows = [_table_row(recording, i) for i in range(len(recording.variables))]
    return [
        '<p class="soft">Medians over the first and the last tenth of the steps; '
        "norms in units of the gradient, before clipping.</p>",
        f'<div class="scroll"><table><thead>{header}</thead><tbody>{"".join(rows)}'
        "</tbody></table></div>",
    ]


def _table_row(recording: Recording, column: int) -> str:
    steps = recording.steps
    norm = recording["norm"][:, column]
    first = steps < max(recording.total_steps / 10, 1)
    last = steps >= min(recording.total_steps * 0.9, steps[-1])
    clipped = math.nan
    known = ~np.isnan(norm)
    if "clipped_norm" in recording and known.any():
        with np.errstate(invalid="ignore"):
            # A float32 norm is good to about 1e-7, that in the file to 1e-5.
            is_clipped = recording["clipped_norm"][:, column] < norm * (1 - 1e-4)
        clipped = float(is_clipped[known].mean())
    ratio = math.nan
    ratios = update_ratio(recording)
    if ratios is not None:
        ratio = median(ratios[:, column])
    broken = steps[np.isinf(norm)]
    cells = [
        short_number(median(norm[first])),
        short_number(median(norm[last])),
        short_number(largest(norm)),
        "-" if math.isnan(clipped) else f"{clipped:.0%}",
        short_number(ratio),
    ]
    since = f'<td class="bad">{broken[0]:,}</td>' if len(broken) else "<td>-</td>"
    return (
        f"<tr><td>{_text(recording.variables[column])}</td>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + f"{since}</tr>"
    )
