"""What verbs return: plain values that print as a table and turn into JSON."""

from __future__ import annotations

import dataclasses
import enum
import html
import io
import json
import math
import shutil
from collections.abc import Sequence
from typing import Any

from tfdeep._core._explain import printable


class Record:
    """Base of the frozen dataclasses that tfdeep's verbs return."""

    def to_dict(self) -> dict[str, Any]:
        """The record as plain Python values."""
        return dataclasses.asdict(self, dict_factory=_public)  # type: ignore[call-overload, no-any-return]

    def to_json(self, indent: int | None = 2) -> str:
        """The record as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def _repr_html_(self) -> str:
        """The record as a notebook shows it: its table, in letters of one width."""
        return f'<pre style="line-height: 1.2">{html.escape(str(self))}</pre>'


def _public(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in items
        if not name.startswith("_")
    }


def render_table(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    notes: Sequence[str] = (),
    align: str | None = None,
) -> str:
    """Renders a table that fits the terminal.

    Args:
        title: The line above the table.
        headers: One name a column.
        rows: The cells, one sequence a row.
        notes: Lines below the table.
        align: One letter a column: "l" or "r". Defaults to all "l".
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = min(max(shutil.get_terminal_size((80, 24)).columns, 60), 120)
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False)
    console.print(Text(title))
    if rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for header, side in zip(headers, align or "l" * len(headers), strict=True):
            table.add_column(
                Text(header),
                justify="right" if side == "r" else "left",
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(printable(str(cell))) for cell in row))
        console.print(table)
    for note in notes:
        console.print(Text(note))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def shorten(rows: Sequence[Sequence[object]], limit: int) -> list[Sequence[object]]:
    """Keeps the first and last rows of a long table and says how many are left out."""
    if len(rows) <= limit:
        return list(rows)
    head = limit * 2 // 3
    tail = limit - head - 1
    gap = [f"... {len(rows) - head - tail} more", *[""] * (len(rows[0]) - 1)]
    return [*rows[:head], gap, *rows[len(rows) - tail :]]


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things as text.

    >>> counted(1, "step"), counted(1_000, "step"), counted(2, "entry", "entries")
    ('1 step', '1,000 steps', '2 entries')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def short_number(value: float) -> str:
    """A number to three digits for a table; a dash for NaN.

    >>> short_number(0.00123456), short_number(float("nan"))
    ('0.00123', '-')
    """
    return "-" if math.isnan(value) else f"{value:.3g}"


def human_bytes(count: float) -> str:
    """A number of bytes as text.

    >>> human_bytes(1_536_000)
    '1.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
