import html.parser
import importlib.util
import re

import numpy as np
import pytest

from tfdeep import cli
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics import Finding, Recording, write_html_report
from tfdeep.diagnostics._html_report import group_findings
from tfdeep.diagnostics._run_file import FILE_NAME, RunFileWriter

EVIL = "<script>alert('1')</script>&\"h"
VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """What a page holds; every element has to be closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def write(log_dir, findings=(), steps=40, telemetry=(), names=("a", EVIL, "c")):
    layers = [
        LayerInfo(name, "Dense", "relu", f"{name}/kernel", bias=f"{name}/bias")
        for name in names
    ]
    variables = [f"{name}/{last}" for name in names for last in ("kernel", "bias")]
    writer = RunFileWriter(log_dir)
    writer.begin(variables, layers)
    norm = np.linspace(8, 1, steps)[:, None] * np.ones(len(variables))
    norm[37:, 0] = np.inf
    due = (np.arange(steps) % 10 == 0)[:, None]
    rows = {
        "loss": np.linspace(3, 1, steps)[:, None],
        "norm": norm,
        "clipped_norm": np.minimum(norm, 5),
        "update_norm": np.where(due, 0.002, np.nan) * np.ones_like(norm),
        "weight_norm": np.where(due, 1.0, np.nan) * np.ones_like(norm),
        "silent_fraction": np.where(due, 0.5, np.nan) * np.ones_like(norm),
    }
    if steps:
        writer.write(rows, 0, np.ones(steps, bool))
    writer.write_findings(findings)
    writer.end(steps, telemetry)


def page(log_dir):
    text = write_html_report(log_dir).read_text(encoding="utf-8")
    return Page(text), text


FINDINGS = [
    Finding("loss_spike", "", "warning", 7, "loss 9 times its median", "clip"),
    Finding("dead_units", "a", "critical", 5, "6 of 8", "use `LeakyReLU`"),
    Finding("dead_units", EVIL, "critical", 3, "7 of 8 <b>", "use `LeakyReLU`"),
]


class TestThePage:
    def test_it_loads_nothing(self, tmp_path):
        write(tmp_path, FINDINGS)
        found, text = page(tmp_path)
        text = re.sub(r"data:image/png;base64,[\w+/=\s]*", "", text)
        assert not re.search(r"https?:|//[a-z]", text)
        tags = {tag for tag, _ in found.elements}
        assert not tags & {"script", "link", "iframe", "object", "img", "base"}
        for _, attributes in found.elements:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "xlink:href", "action"):
                target = attributes.get(name, "#")
                assert target.startswith(("#", "data:image/png;base64,"))
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)

    def test_it_escapes_what_users_wrote(self, tmp_path):
        write(tmp_path / EVIL.replace("/", "_"), FINDINGS)
        found, _ = page(tmp_path / EVIL.replace("/", "_"))
        assert ("b", {}) not in found.elements
        assert EVIL in found.text
        assert "7 of 8 <b>" in found.text

    def test_findings_come_first_and_neighbours_together(self, tmp_path):
        write(tmp_path, FINDINGS)
        found, _ = page(tmp_path)
        text = found.text
        assert f"Dead units at a to {EVIL}, 2 layers critical, since step 3" in text
        assert "Loss spike at the net warning, since step 7" in text
        assert text.index("Dead units at") < text.index("Loss spike at")
        assert text.index("Loss spike at") < text.index("Figures")
        assert text.count("Fix: use LeakyReLU") == 1
        assert "loss 9 times its median" in text

    def test_without_findings_it_says_so(self, tmp_path):
        write(tmp_path)
        found, _ = page(tmp_path)
        assert "40 steps are too few to judge: 50 are needed" in found.text

    def test_it_has_a_table_of_the_weights(self, tmp_path):
        write(tmp_path)
        found, text = page(tmp_path)
        rows = re.findall(r"<tr><td>(.*?)</td></tr>", text)
        cells = [re.split(r"</td><td(?: class=\"bad\")?>", row) for row in rows]
        assert len(cells) == 6
        assert cells[0] == ["a/kernel", "7.73", "1.54", "8", "50%", "0.002", "37"]
        assert cells[1] == ["a/bias", "7.73", "1.27", "8", "42%", "0.002", "-"]
        assert "loss 2.923 at the start, 1.077 at the end" in found.text

    def test_it_says_what_the_wrappers_did(self, tmp_path):
        clip = {"wrapper": "ClipByNorm", "summary": "ClipByNorm: 40 steps, <b>."}
        skip = {"wrapper": "SkipNonFinite", "summary": "SkipNonFinite: 3 skipped."}
        earlier = {"wrapper": "ClipByValue"}  # a file that holds no words
        write(tmp_path, telemetry=[clip, skip, earlier])
        found, _ = page(tmp_path)
        assert "ClipByValue" in found.text and "None" not in found.text
        assert "ClipByNorm: 40 steps, <b>." in found.text
        assert "SkipNonFinite: 3 skipped." in found.text

    def test_it_has_figures(self, tmp_path):
        pytest.importorskip("matplotlib")
        write(tmp_path, FINDINGS)
        found, _ = page(tmp_path)
        tags = [tag for tag, _ in found.elements]
        assert tags.count("svg") == tags.count("figcaption") == 5
        ids = [a["id"] for _, a in found.elements if "id" in a]
        assert len(set(ids)) == len(ids)
        used = {a["href"][1:] for t, a in found.elements if t == "use"}
        assert used <= set(ids)
        assert "red if it is critical, orange if it is a warning" in found.text
        for title in ("Gradient norm of each layer", "Dead units", "Size of the up"):
            assert title in found.text

    def test_without_matplotlib_it_has_none_and_says_so(self, tmp_path, monkeypatch):
        write(tmp_path)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        found, _ = page(tmp_path)
        assert "svg" not in {tag for tag, _ in found.elements}
        assert "pip install tfdeep[plots]" in found.text

    @pytest.mark.parametrize(
        ("steps", "words"), [(0, "0 steps,"), (1, "1 step,"), (2, "2 steps,")]
    )
    def test_of_a_short_run(self, tmp_path, steps, words):
        write(tmp_path, steps=steps, names=("a",))
        found, _ = page(tmp_path)
        assert words in found.text


def test_only_neighbours_are_grouped():
    def layer(path, kernel=True):
        return LayerInfo(path, "Dense", kernel=f"{path}/kernel" if kernel else None)

    def finding(path, kind="dead_units", severity="warning", step=1):
        return Finding(kind, path, severity, step, "", "")

    layers = [layer("a"), layer("relu", False), layer("b"), layer("c"), layer("d")]
    recording = Recording([], layers)
    findings = [
        finding("d"),
        finding("b"),
        finding("a"),
        finding("c", "stalled"),
        finding("", "stalled"),
        finding("b", "stalled", "critical"),
        finding("elsewhere", "of_the_future"),
    ]
    groups = group_findings(findings, recording)
    assert [[f.layer for f in group] for group in groups] == [
        ["b", "c"],
        ["a", "b"],
        ["d"],
        [""],
        ["elsewhere"],
    ]


def test_what_came_first_stands_first_on_the_page():
    findings = [
        Finding("dead_units", "a", "critical", 50, "", ""),
        Finding("dead_units", "b", "critical", 60, "", ""),
        Finding("poor_initialization", "c", "critical", 0, "", ""),
        Finding("input_scale", "a", "warning", 0, "", ""),
    ]
    recording = Recording(
        [], [LayerInfo(x, "Dense", kernel=f"{x}/kernel") for x in "abc"]
    )
    groups = group_findings(findings, recording)
    assert [[f.layer for f in group] for group in groups] == [["c"], ["a", "b"], ["a"]]


class TestTheCommand:
    def test_it_writes_the_page_and_says_where(self, tmp_path, capsys):
        write(tmp_path)
        assert cli.main(["report", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
        assert (tmp_path / "report.html").exists()

    def test_it_writes_elsewhere(self, tmp_path, capsys):
        write(tmp_path)
        output = tmp_path / "new" / "page.html"
        assert cli.main(["report", str(tmp_path), "--output", str(output)]) == 0
        assert output.exists()
        assert not (tmp_path / "report.html").exists()
        assert capsys.readouterr().out == f"{output}\n"

    def test_it_shows_an_earlier_run(self, tmp_path, capsys):
        write(tmp_path, steps=4)
        write(tmp_path, steps=2)
        assert cli.main(["report", str(tmp_path), "--run", "1"]) == 0
        path = tmp_path / "report_1.html"
        assert capsys.readouterr().out == f"{path}\n"
        page = path.read_text()
        assert "4 steps" in page
        assert "This is run 1 of 2 in the file; <code>run</code> chooses" in page
        assert cli.main(["report", str(tmp_path), "--run", "3"]) == cli.FAILED
        assert "holds 2 runs" in capsys.readouterr().err

    @pytest.mark.parametrize("content", [None, "words\n"])
    def test_bad_input_is_said_in_one_message(self, tmp_path, capsys, content):
        if content is not None:
            (tmp_path / FILE_NAME).write_text(content)
        assert cli.main(["report", str(tmp_path)]) == cli.FAILED
        said = capsys.readouterr()
        assert said.out == ""
        assert "Fix:" in said.err
        assert "Traceback" not in said.err
        assert not (tmp_path / "report.html").exists()

    def test_a_page_that_cannot_be_written_is_said(self, tmp_path, capsys):
        write(tmp_path)
        arguments = ["report", str(tmp_path), "--output", str(tmp_path)]
        assert cli.main(arguments) == cli.FAILED
        assert "Error" in capsys.readouterr().err
