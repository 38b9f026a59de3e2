"""A progress bar on standard error, where a person watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(
    title: str, total: int, show: bool | None
) -> Iterator[Callable[[int], None]]:
    """Shows how far something has come.

    Args:
        title: What is done.
        total: Number of steps in all.
        show: Whether to show it; None shows it in a terminal only.

    Yields:
        A function to call with the number of steps done since it was last called.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)
