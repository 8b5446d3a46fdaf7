"""The terminal's live view of a sweep: budgets, the points that run with their losses so far, the fit, the cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.text import Text

from analysis.text import count_text, flops_text
from sweeps.config import Config
from sweeps.dispatch.state import PointState, State
from sweeps.paths import SweepFolder
from sweeps.render.status import COLOURS, WIDE, print_changes, summary_line
from sweeps.terminal import seconds, stderr, table
from sweeps.watch.overview import Overview, overview
from sweeps.watch.sofar import FEWEST, FitSoFar, SoFar

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24
BAR_WIDTH = 16
OTHER_LINES = 16
"""Of the view, beside budgets and running points."""


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Values as blocks, low to high on a logarithmic scale; of many, as many as fit, the last one kept."""
    good = [value for value in values if math.isfinite(value) and value > 0]
    if not good:
        return ""
    every = max(1, math.ceil(len(good) / width))
    logs = [math.log(value) for value in good[::-every][::-1]]
    low, span = min(logs), max(logs) - min(logs)
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1)) if span else 0] for value in logs)


def live_view(seen: Overview, *, width: int, rows: int) -> RenderableType:
    """The whole view in ``rows`` lines or a few more."""
    parts: list[RenderableType] = [_budgets(seen, width)]
    listed = [state for state in seen.states if state.state in (State.running, State.failed)]
    room = max(3, rows - len(seen.budgets) - OTHER_LINES)
    if listed:
        parts.append(_running(seen, listed[:room], width))
        if len(listed) > room:
            parts.append(Text(f"and {len(listed) - room} more", style="dim"))
    parts += [*_fit(seen.fit, fitting=seen.fitting), summary_line(seen.states)]
    if seen.price_per_hour:
        spent, planned = (hours * seen.price_per_hour for hours in (seen.spent_hours, seen.planned_hours))
        parts.append(f"price {spent:,.2f} of planned {planned:,.2f}")
    return Group(*parts)


def _budgets(seen: Overview, width: int) -> RenderableType:
    wide = width >= WIDE
    extra = ["best loss", "at N non-emb"] if wide else ["best loss"]
    shown = table("budget", "done", "<", "running", "failed", *extra, title=escape(seen.sweep))
    for budget in seen.budgets:
        best = "–" if budget.best_loss is None else f"{budget.best_loss:.4f}"
        cells = [best, count_text(budget.best_params)] if wide else [best]
        shown.add_row(
            flops_text(budget.flops),
            f"{budget.done}/{budget.points}",
            ProgressBar(total=1.0, completed=budget.progress, width=BAR_WIDTH),
            str(budget.running or ""),
            str(budget.failed or ""),
            *cells,
        )
    return shown


def _running(seen: Overview, states: Sequence[PointState], width: int) -> RenderableType:
    wide = width >= WIDE
    shown = table("<point", "done", "<loss so far", "loss", *(["tokens/s"] if wide else []), "ETA", "<cause")
    shown.columns[0].no_wrap = True
    for state in states:
        losses = [loss for _, loss in seen.curves.get(state.run_id, ())]
        speed = [count_text(state.tokens_per_second)] if wide else []
        shown.add_row(
            state.point_id,
            f"{state.progress:.0%}",
            sparkline(losses, SPARK_WIDTH if wide else SPARK_WIDTH // 2),
            "–" if state.loss is None else f"{state.loss:.4f}",
            *speed,
            seconds(state.eta_seconds),
            escape(state.cause or ""),
            style=COLOURS[state.state],
        )
    return shown


def _fit(fit: SoFar | None, *, fitting: bool) -> Iterator[RenderableType]:
    note = ", another is being made" if fitting else ""
    if fit is None:
        yield Text("the fit so far: being made" if fitting else f"the fit so far: from {FEWEST} done points on")
    elif fit.refused:
        yield Text(f"the fit so far: none, {fit.refused}", style="dim")
    else:
        shown = table("<approach", "<a: N* ~ C^a", "<b: D* ~ C^b", "<remark", title=f"of {fit.points} points{note}")
        for line in fit.lines:
            shown.add_row(line.approach, line.a, line.b, escape(line.remark))
        yield shown
    if fit is not None and fit.target:
        yield Text(f"target: {fit.target}")


@contextmanager
def live_overview(folder: SweepFolder, config: Config) -> Iterator[Callable[[Sequence[PointState]], None]]:
    """The view on stderr, redrawn in place; without a terminal, the summary line whenever a point changes state."""
    console = stderr()
    if not console.is_terminal:
        yield print_changes(console)
        return
    fits, price = FitSoFar(folder, config.fit, config), config.device.price_per_hour
    try:
        with Live(console=console, auto_refresh=False) as display:

            def show(states: Sequence[PointState]) -> None:
                fit = fits.of(states)
                seen = overview(folder, states, fit, fitting=fits.busy, price_per_hour=price)
                display.update(live_view(seen, width=console.width, rows=console.height), refresh=True)

            yield show
    finally:
        fits.close()
