"""A forecast as the terminal shows it."""

from __future__ import annotations

import math

from rich.markup import escape

from analysis.fitting.values import Refused
from analysis.text import SHORT_TITLES, bias_text, count_text, error_text, estimate_text, flops_text, within_text
from sweeps.planning.forecast import Outlook
from sweeps.terminal import say, seconds, stdout, table

SHORT_LOSS = "{:.4g}".format


def show_forecast(outlook: Outlook) -> None:
    """Intervals by approach, what each budget costs and adds, and what all that rests on."""
    _approaches(outlook)
    _budgets(outlook)
    noise = outlook.noise
    freedom = f", {noise.freedom} degrees of freedom" if noise.freedom else ""
    say(f"prior: {outlook.prior.source}; noise of log loss: {noise.value:.3g} ({noise.source}{freedom})")
    if outlook.of > outlook.points:
        say(f"forecast of {outlook.points} of the {outlook.of} points: those that agree on all axes of the sweep")


def _approaches(outlook: Outlook) -> None:
    told = outlook.told
    shown = table("<approach", "<a: N* ~ C^a", "<b: D* ~ C^b", "C", "<N*", "<D*", "<loss", "<N* off by", "<loss off by",
                  title=f"Forecast: the median of fits and where {100 * told.level:g}% of them will lie, from "
                  f"{told.replicates} simulated sweeps, and by how much the median is off; N counts "
                  f"{outlook.prior.params.value.replace('_', '-')} parameters")  # fmt: skip
    for name, found in told.approaches.items():
        if isinstance(found, Refused):
            continue
        exponents = [estimate_text(found.a), estimate_text(found.b)]
        for at, *off in zip(found.optima, found.bias.n_opt, found.bias.loss_opt, strict=True):
            loss = estimate_text(at.loss_opt, SHORT_LOSS) if outlook.prior.level_known else "–"
            cells = [estimate_text(one, count_text) for one in (at.n_opt, at.d_opt)]
            shown.add_row(SHORT_TITLES[name], *exponents, flops_text(at.budget), *cells, loss, *map(bias_text, off))
            exponents = ["", ""]
    stdout().print(shown)
    for name, found in told.approaches.items():
        if isinstance(found, Refused):
            stdout().print(escape(f"{SHORT_TITLES[name]}: not fed by this design: {found.reason}"), soft_wrap=True)


def _budgets(outlook: Outlook) -> None:
    told = outlook.told
    far = flops_text(max(told.targets))
    head = ("budget", "points", "FLOPs", "of all", "time", "N* without it", "wider")
    shown = table(*head, title=f"What each budget costs, and adds: standard error of N* at {far} FLOPs, Approach 3")
    for at in told.budgets:
        wider = at.error / told.error if told.error > 0 else math.nan
        shown.add_row(
            flops_text(at.budget),
            str(at.points),
            flops_text(at.cost),
            f"{at.share:.1%}",
            seconds(outlook.hours[at.budget] * 3600),
            error_text(at.error),
            f"{wider:.2f}x" if math.isfinite(wider) else "open",
        )
    total = sum(at.cost for at in told.budgets)
    time = seconds(sum(outlook.hours.values()) * 3600)
    shown.add_row("all", str(outlook.points), flops_text(total), "100%", time, error_text(told.error), "")
    stdout().print(shown)
    worst = max(told.bent, key=lambda name: told.bent[name])
    bent = told.bent[worst]
    if bent > told.error:
        say(
            f"all this holds if the form of the law does: with {worst} left open, N* at {far} FLOPs would be known to "
            f"{within_text(bent)} (one standard error), not {within_text(told.error)}"
        )
