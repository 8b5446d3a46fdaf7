"""What the user sees: results as tables or JSON on stdout, progress and remarks on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from analysis.text import count_text, flops_text
from sweeps.config import Format
from sweeps.paths import SweepFolder
from sweeps.points import Plan
from sweeps.state import ENDED, PointState, State
from trainer.files import json_text

if TYPE_CHECKING:
    from sweeps.reconcile import Submission  # status needs nothing of what submits

PIPE_WIDTH = 220
"""Columns of a table that no terminal limits."""

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


def show_plan(plan: Plan, form: Format, folder: SweepFolder) -> None:
    """The plan on stdout; where it was written and what was refused on stderr."""
    if form is Format.json:
        print_json(plan.to_dict(), levels=2)
    else:
        stdout().print(_plan_table(plan))
    say_refused(plan)
    say(f"written: {folder.plan_path} and plan.csv")


def say_refused(plan: Plan) -> None:
    """The points the design asked for that no run can be made of."""
    for refusal in plan.refused:
        budget = "" if refusal["budget"] is None else f" at {flops_text(refusal['budget'])} FLOPs"
        say(f"refused: {count_text(refusal['params_non_embedding'])} parameters{budget}: {refusal['reason']}")


def _plan_table(plan: Plan) -> RenderableType:
    loss = any(point.predicted_loss is not None for point in plan.points)
    price = any(point.price for point in plan.points)
    head = ["<point", "budget", "N non-emb", "N total", "L x d", "D", "D/N", "steps", "batch", "rate", "FLOPs", "off"]
    tail = ["loss"] * loss + ["devices", "memory", "time"] + ["price"] * price
    shown = table(*head, *tail, title=f"plan of {escape(plan.sweep)}: N in parameters, D and batch in tokens, "
                  "FLOPs by the matmul count, time and memory of one device")  # fmt: skip
    for point in plan.points:
        row, shape = point.row(), point.run.recipe.model
        cells = [
            point.point_id,
            flops_text(row["budget"]),
            count_text(shape.params_non_embedding),
            count_text(shape.params_total),
            f"{shape.layers}x{shape.d_model}",
            count_text(row["tokens"]),
            count_text(row["tokens"] / shape.params_total),
            str(row["steps"]),
            count_text(row["batch"]),
            f"{row['lr']:.2e}",
            flops_text(row["flops_matmul"]),
            "–" if point.budget_error is None else f"{point.budget_error:+.2%}",
        ]
        cells += ["–" if point.predicted_loss is None else f"{point.predicted_loss:.3f}"] * loss
        cells += [str(row["devices"]), f"{point.memory_gb:.2g} GB", seconds(point.hours * 3600)]
        cells += [f"{point.price:,.2f}"] * price
        shown.add_row(*cells)
    totals = plan.totals
    line = (
        f"{totals['points']} points, {count_text(totals['tokens'])} tokens, "
        f"{flops_text(totals['flops_matmul'])} FLOPs, {totals['device_hours']:.3g} device-hours"
    )
    return Group(shown, line + (f", price {totals['price']:,.2f}" if price else ""))


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


def remaining_seconds(states: Sequence[PointState]) -> float | None:
    """Until the sweep ends: what is left of the FLOPs at the speed of the points that run now."""
    speed = sum((s.tokens_per_second or 0.0) * s.flops_per_token for s in states)
    left = sum(s.flops * (1 - s.progress) for s in states if s.state not in ENDED)
    return left / speed if speed and left else None


@contextmanager
def live(folder: SweepFolder) -> Iterator[Callable[[Sequence[PointState]], None]]:
    """The states on stderr, redrawn in place; without a terminal, the summary line whenever a point changes state."""
    console = stderr()
    if not console.is_terminal:
        said: list[list[State]] = []

        def print_change(states: Sequence[PointState]) -> None:
            kinds = [state.state for state in states]
            if said[-1:] != [kinds]:
                said.append(kinds)
                console.print(summary_line(states), soft_wrap=True)

        yield print_change
        return
    rows = max(5, console.height - FRAME_LINES)
    with Live(console=console, auto_refresh=False) as display:
        yield lambda states: display.update(status_table(folder, states, most=rows, width=console.width), refresh=True)


@contextmanager
def progress_line() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr, gone when done: call it with what is being done and the share (0 to 1) that is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task: list[Any] = []

        def report(message: str, share: float) -> None:
            if not task:
                task.append(bar.add_task(message, total=1.0))
            bar.update(task[0], description=message, completed=share)

        yield report
