import dataclasses
import json

from tfdeep._core._records import Record, render_table, shorten


@dataclasses.dataclass(frozen=True)
class Inner:
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Outer(Record):
    parts: tuple[Inner, ...]


def test_a_record_turns_into_json():
    record = Outer((Inner((2, 3)), Inner(())))
    assert json.loads(record.to_json()) == {"parts": [{"shape": [2, 3]}, {"shape": []}]}


def test_a_notebook_shows_the_text_escaped():
    class Shown(Record):
        def __str__(self):
            return "a <b>\n  c & d"

    shown = Shown()._repr_html_()
    assert shown.startswith("<pre") and shown.endswith("</pre>")
    assert "a &lt;b&gt;\n  c &amp; d" in shown


def test_a_table_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = render_table(
        "title",
        ["name", "value"],
        [("a/very/long/" * 8, 1), ("[bold]not markup[/bold]", 2)],
        notes=["a note " * 20],
        align="lr",
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "[bold]not markup[/bold]" in text


def test_long_tables_are_shortened_in_the_middle():
    rows = [(i, "x") for i in range(100)]
    short = shorten(rows, 10)
    assert len(short) == 10
    assert short[0] == (0, "x")
    assert short[-1] == (99, "x")
    assert short[6] == ["... 91 more", ""]
    assert shorten(rows[:10], 10) == rows[:10]
