"""The terminal: results on stdout as tables or JSON, progress and remarks on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from trainer.files import json_text

PIPE_WIDTH = 220
"""Columns of a table that no terminal limits."""


def stdout() -> Console:
    """Where results go."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def stderr() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True, highlight=False)


def say(remark: str) -> None:
    """A remark beside the result."""
    stderr().print(escape(remark), soft_wrap=True)


def print_json(value: Any, levels: int | None = None) -> None:
    """A result for programs; ``levels`` as for :func:`trainer.files.json_text`."""
    sys.stdout.write(json_text(value, levels))


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; columns whose name begins with "<" are text, the others numbers."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        text = column.startswith("<")
        made.add_column(column.removeprefix("<"), justify="left" if text else "right", no_wrap=not text)
    return made


def seconds(value: float | None) -> str:
    """A duration with its two largest units."""
    if value is None:
        return "–"
    if value < 100:
        return f"{value:.0f}s" if value >= 10 else f"{value:.1f}s"
    minutes, hours = value / 60, value / 3600
    if minutes < 100:
        return f"{int(minutes)}m{int(value % 60):02d}s"
    return f"{int(hours)}h{int(minutes % 60):02d}m" if hours < 100 else f"{hours / 24:.1f}d"


@contextmanager
def progress_line() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr, gone when done: call it with what is being done and the share (0 to 1) that is.

    Where stderr is no terminal there is nothing.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task: list[Any] = []

        def report(message: str, share: float) -> None:
            if not task:
                task.append(bar.add_task(message, total=1.0))
            bar.update(task[0], description=message, completed=share)

        yield report
