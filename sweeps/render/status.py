"""The states of a sweep's points as the terminal shows them, and what a submission changed about them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from analysis.text import count_text, flops_text
from sweeps.config import Format
from sweeps.dispatch.state import PointState, State
from sweeps.paths import SweepFolder
from sweeps.terminal import PIPE_WIDTH, print_json, say, seconds, stderr, stdout, table
from sweeps.watch.overview import remaining_seconds
from trainer.story import read_mark

if TYPE_CHECKING:
    from sweeps.dispatch.reconcile import Submission  # status needs nothing of what submits

MANY = 200
"""Points from which on a table is plain."""
WIDE = 110
"""Columns of a terminal that shows every column of a table."""
FRAME_LINES = 8
"""Lines of a table beside its rows."""

COLOURS = {
    State.done: "green",
    State.running: "cyan",
    State.failed: "red",
    State.diverged: "yellow",
    State.queued: "",
    State.planned: "dim",
}


def show_submission(submission: Submission, form: Format | None) -> None:
    """What submit found and did; ``form`` None says it on stderr only."""
    if form is Format.json:
        print_json(
            {
                "submitted": list(submission.submitted),
                "jobs": [path.name for path in submission.jobs],
                "before": {state.value: submission.counts[state] for state in State},
                "left": list(submission.left),
            }
        )
    elif form is Format.table:
        for run_id in submission.submitted:
            sys.stdout.write(run_id + "\n")
    before = ", ".join(f"{submission.counts[state]} {state.value}" for state in State if submission.counts[state])
    say(f"found {before}; submitted {len(submission.submitted)} runs in {len(submission.jobs)} jobs")
    for state in submission.states:
        if state.state is State.failed and state.run_id not in submission.submitted:
            retry = "all" if state.kind == "other" else state.kind
            say(f"failed: {state.point_id}: {state.cause} (retry={retry} tries it again)")
    if submission.released:
        say(f"released {submission.released} tasks that SLURM held")
    say_left(submission.left)


def say_left(run_ids: Sequence[str]) -> None:
    """Report runs that left the config."""
    if run_ids:
        names = ", ".join(run_ids[:3]) + (", ..." if len(run_ids) > 3 else "")
        say(f"{len(run_ids)} runs on disk have left the config and are kept: {names}")


def say_untold(folder: SweepFolder, states: Sequence[PointState]) -> None:
    """Report runs that W&B did not take."""
    runs = dict.fromkeys(state.run_id for state in states if state.attempts)
    reasons = [why for run in runs if (why := read_mark(folder.run(run)).get("failed"))]
    if reasons:
        say(f"W&B did not take {len(reasons)} runs ({reasons[0]}); `isoflop sync` hands them in")


def show_status(
    folder: SweepFolder, states: Sequence[PointState], left: Sequence[str], form: Format, stale: str | None = None
) -> None:
    """The states on stdout; ``stale`` says why the scheduler could not be asked."""
    if form is Format.json:
        points = [state.to_dict() for state in states]
        print_json({"sweep": folder.name, "points": points, "left": list(left), "stale": stale}, levels=2)
    else:
        console = stdout()
        console.print(status_table(folder, states, width=console.width))
    say_left(left)


def status_table(
    folder: SweepFolder, states: Sequence[PointState], *, most: int | None = None, width: int = PIPE_WIDTH
) -> RenderableType:
    """Every point, and their sum; of more than ``most``, those that run or failed; on less width, fewer columns."""
    columns: list[tuple[str, bool, Callable[[PointState], str]]] = [
        ("<point", False, lambda state: state.point_id),
        ("budget", True, lambda state: flops_text(state.budget)),
        ("N non-emb", True, lambda state: count_text(state.params_non_embedding)),
        ("<state", False, lambda state: state.state.value),
        ("done", False, lambda state: f"{state.progress:.0%}"),
        ("loss", False, lambda state: "–" if state.loss is None else f"{state.loss:.4f}"),
        ("tokens/s", True, lambda state: count_text(state.tokens_per_second)),
        ("ETA", False, lambda state: seconds(state.eta_seconds)),
        ("spent", True, lambda state: seconds(state.spent_hours * 3600)),
        ("planned", True, lambda state: seconds(state.hours * 3600)),
        ("<cause", False, lambda state: escape(state.cause or "")),
    ]
    kept = [column for column in columns if width >= WIDE or not column[1]]
    if most is None and len(states) > MANY:
        return Group(_plain_table([(name, text) for name, _, text in kept], states), summary_line(states))
    shown = table(*(name for name, _, _ in kept), title=f"{escape(folder.name)} in {escape(str(folder.path))}")
    shown.columns[0].no_wrap = True
    if most is None or len(states) <= most:
        listed = list(states)
    else:
        listed = [state for state in states if state.state in (State.running, State.failed)][:most]
    for state in listed:
        shown.add_row(*(text(state) for _, _, text in kept), style=COLOURS[state.state])
    return Group(shown, summary_line(states))


def _plain_table(columns: Sequence[tuple[str, Callable[[PointState], str]]], states: Sequence[PointState]) -> Text:
    """Thousands of points in a moment: aligned, without colours."""
    rows = [
        [name.removeprefix("<") for name, _ in columns],
        *([text(state) for _, text in columns] for state in states),
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    sides = ["<" if name.startswith("<") else ">" for name, _ in columns]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return Text("\n".join(form.format(*row).rstrip() for row in rows), no_wrap=True, overflow="ignore")


def summary_line(states: Sequence[PointState]) -> str:
    """Counts, spent against planned, and how long it will still take."""
    counts = [(kind, sum(state.state is kind for state in states)) for kind in State]
    said = ", ".join(f"{number} {kind.value}" for kind, number in counts if number)
    spent, planned = sum(s.spent_hours for s in states) * 3600, sum(s.hours for s in states) * 3600
    eta = remaining_seconds(states)
    return f"{said}; spent {seconds(spent)} of planned {seconds(planned)}" + (f"; ETA {seconds(eta)}" if eta else "")


def print_changes(console: Console) -> Callable[[Sequence[PointState]], None]:
    """Shows states where there is no terminal: the summary line whenever a point changes state."""
    said: list[list[State]] = []

    def show(states: Sequence[PointState]) -> None:
        kinds = [state.state for state in states]
        if said[-1:] != [kinds]:
            said.append(kinds)
            console.print(summary_line(states), soft_wrap=True)

    return show


@contextmanager
def live(folder: SweepFolder) -> Iterator[Callable[[Sequence[PointState]], None]]:
    """The states on stderr, redrawn in place; without a terminal, the summary line whenever a point changes state."""
    console = stderr()
    if not console.is_terminal:
        yield print_changes(console)
        return
    rows = max(5, console.height - FRAME_LINES)
    with Live(console=console, auto_refresh=False) as display:
        yield lambda states: display.update(status_table(folder, states, most=rows, width=console.width), refresh=True)
