"""``report.html``: a fit in one file that opens anywhere, offline: tables, charts, what was left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import charts, views
from analysis.card import fit_card
from analysis.fits import Parabola, Refused
from analysis.laws import Law
from analysis.page import Page, note, paragraph, subheading, table
from analysis.result import ConventionFit, Envelope, Estimate, FitResult, Isoflop, Optimum, Parametric
from analysis.text import SHORT_TITLES, count_text, estimate_text, flops_text
from analysis.views import interval_text, number_of
from trainer.files import write_whole

MOST_ROWS = 1000
"""Rows listed: a longer list would make the page slow."""
METHODS = {
    "envelope": "At each C, the lowest loss that any run's curve reaches late in its schedule; power laws through the "
    "sizes and token counts that reach it.",
    "isoflop": "At each budget, a parabola of loss in log N; power laws through the minima.",
    "parametric": "L(N, D) = E + A / N^alpha + B / D^beta, fitted by a Huber loss on log L, summed over rows; N* and "
    "D* minimise it at given C.",
}


def write_report(
    fit: FitResult, curves: pd.DataFrame | None, path: Path, laws: Sequence[Law] = (), title: str | None = None
) -> None:
    """Write the report of a fit to ``path``, whole.

    Parameters
    ----------
    curves
        The curves table of the source, for Approach 1's chart.
    laws
        Published laws to compare with, each in its own conventions.
    title
        Heading of the page; None names the source.

    Raises
    ------
    MachineFault
        If the disk is full or read-only.
    """
    write_whole(path, render_report(fit, curves, laws, title))


def render_report(
    fit: FitResult, curves: pd.DataFrame | None, laws: Sequence[Law] = (), title: str | None = None
) -> str:
    """The report's HTML; arguments as in :func:`write_report`."""
    page = Page(title or f"Scaling fit: {fit.source}", _lead(fit))
    _headline(page, fit)
    _frontier(page, fit, laws)
    _approaches(page, fit, curves)
    _backtest(page, fit)
    assumed = [subheading("Assumed about the source"), note(fit.notes, "plain")] if fit.notes else []
    page.section("Fit card", fit_card(fit), *assumed)
    _left_out(page, fit)
    _rows_used(page, fit)
    return page.render()


def _lead(fit: FitResult) -> str:
    rows = fit.primary.rows
    group = "".join(f"{name} = {value}; " for name, value in fit.group.items())
    return (
        f"{group}{number_of(len(rows), 'point')} fitted, {number_of(len(fit.excluded), 'row')} left out. "
        f"C from {flops_text(rows.flops.min())} to {flops_text(rows.flops.max())} FLOPs, "
        f"N from {count_text(rows.params.min())} to {count_text(rows.params.max())} parameters."
    )


def _headline(page: Page, fit: FitResult) -> None:
    level = interval_text(fit.interval.level)
    parts = [note(fit.warnings)] if fit.warnings else []
    parts.append(paragraph(f"N* ∝ C^a and D* ∝ C^b; in brackets the {level} interval ({fit.interval.method})."))
    for each in fit.by_convention:
        counts, unit = views.COUNTS.get(each.conventions.params, each.conventions.params), each.conventions.loss
        parts.append(subheading(f"N counts {counts} parameters"))
        exponents = [(SHORT_TITLES[name], *_exponents(approach)) for name, approach in each.approaches.items()]
        parts.append(table(("Approach", "a", "b"), exponents, "lrr"))
        optima = [row for name, approach in views.fitted(each).items() for row in _optima(name, approach.optima)]
        if optima:
            # By budget, then in Hoffmann's order: what the approaches say about one budget stands together.
            ordered = [row for _, row in sorted(optima, key=lambda at: at[0])]
            head = ("C, FLOPs", "Approach", "N*", "D*", "D* / N*", f"L*, {unit}")
            parts.append(table(head, ordered, "llrrrr", tall=len(ordered) > 24))
    page.section("Results", *parts)


def _exponents(approach: Envelope | Isoflop | Parametric | Refused) -> tuple[str, str]:
    if isinstance(approach, Refused):
        return "refused", "refused"
    return estimate_text(approach.a), estimate_text(approach.b)


def _optima(name: str, optima: Sequence[Optimum]) -> list[tuple[float, tuple[str, ...]]]:
    def ratio(n: Estimate, d: Estimate) -> str:
        return f"{d.value / n.value:.3g}" if n.value and d.value else "–"

    return [
        (
            at.budget,
            (
                flops_text(at.budget),
                SHORT_TITLES[name],
                estimate_text(at.n_opt, count_text),
                estimate_text(at.d_opt, count_text),
                ratio(at.n_opt, at.d_opt),
                estimate_text(at.loss_opt),
            ),
        )
        for at in optima
    ]


def _frontier(page: Page, fit: FitResult, laws: Sequence[Law]) -> None:
    primary = fit.primary
    if not views.fitted(primary):
        page.section("Frontier", paragraph("No approach could be fitted, so there is no frontier to show."))
        return
    caption = (
        "Compute-optimal parameters (left) and tokens (right) against training FLOPs: lines are the fitted laws, bands "
        f"their {interval_text(fit.interval.level)} intervals. Right of the vertical line, the largest C fitted, they "
        "are extrapolated."
    )
    caption += " Dotted lines are published laws, in their own counting of N and C." if laws else ""
    page.section("Frontier", page.charts("frontier", charts.frontier(primary, fit.interval.level, laws), caption))


def _approaches(page: Page, fit: FitResult, curves: pd.DataFrame | None) -> None:
    primary = fit.primary
    for name, approach in primary.approaches.items():
        parts = [paragraph(METHODS[name])]
        if isinstance(approach, Refused):
            parts += [note([f"Refused: {approach.reason}"]), _budgets(primary, approach.parabolas)]
        elif isinstance(approach, Envelope):
            parts.append(_envelope(page, fit, approach, curves))
        elif isinstance(approach, Isoflop):
            figures = charts.isoflop(primary, approach, fit.interval.level)
            parts += [page.charts(name, figures, ISOFLOP_CAPTION), _budgets(primary, approach.fit.parabolas)]
        else:
            parts += [_coefficients(approach), _parametric(page, fit, approach)]
        page.section(views.TITLES[name].replace(", ", ": "), *parts)


ISOFLOP_CAPTION = (
    "Left: loss against N at each budget, coloured by C, with the parabolas and their minima (diamonds); points of "
    "budgets that were not used are hollow. Middle and right: the minima against C, and the power laws through them."
)


def _envelope(page: Page, fit: FitResult, approach: Envelope, curves: pd.DataFrame | None) -> str:
    figures = charts.envelope(fit.primary, approach, curves, fit.interval.level)
    one = approach.fit
    caption = (
        "Left: loss against FLOPs of each run, coloured by N, thinned for drawing; black dots are the envelope. Middle "
        f"and right: who holds it, against C, and the power laws. {one.runs_touching} of {one.runs} runs are lowest "
        f"somewhere; rows before {100 * one.tail:g} % of a run's schedule do not count."
    )
    return page.charts("envelope", figures, caption)


def _parametric(page: Page, fit: FitResult, approach: Parametric) -> str:
    caption = (
        "Left: contours of the fitted loss in the (C, N) plane, the points coloured by their measured loss, and the "
        "efficient frontier. Middle: the fitted loss along budgets, with the points there. Right: residuals against C."
    )
    return page.charts("parametric", charts.parametric(fit.primary, approach, fit.interval.level), caption)


def _coefficients(approach: Parametric) -> str:
    names = ("E", "A", "B", "alpha", "beta")
    head = ("", *names)
    estimates = [getattr(approach, name) for name in names]
    rows = [
        ("fitted", *(_significant(at.value) for at in estimates)),
        ("low", *(_significant(at.low) for at in estimates)),
        ("high", *(_significant(at.high) for at in estimates)),
    ]
    return table(head, rows, "lrrrrr")


def _significant(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _budgets(fit: ConventionFit, parabolas: Sequence[Parabola]) -> str:
    if not parabolas:
        return ""
    rows = [
        (
            flops_text(at.budget),
            str(len(at.rows)),
            count_text(at.n_opt) if at.n_opt is not None else "–",
            at.refused or "used",
        )
        for at in parabolas
    ]
    return table(("Budget C, FLOPs", "Points", "Minimum at N", "Verdict"), rows, "lrrw", tall=len(rows) > 15)


def _backtest(page: Page, fit: FitResult) -> None:
    test = fit.backtest
    if isinstance(test, Refused):
        page.section("Backtest", note([f"Not possible: {test.reason}"], "plain"))
        return
    level, side = interval_text(test.level), "high" if test.bias > 0 else "low"
    text = (
        f"Approach 3 fitted without the largest budget ({flops_text(test.budget)} FLOPs), then asked for the "
        f"{test.rows} losses there. {100 * test.coverage:.0f} % of them lie in its {level} prediction interval, "
        f"{100 * test.coverage_parameters:.0f} % in the interval from the parameters alone. Predictions are off by "
        f"{100 * test.error:.2g} % (root mean square), on average {abs(100 * test.bias):.2g} % too {side}."
    )
    caption = (
        f"Predicted against measured loss of the held-out points, with {level} prediction intervals. "
        "On the line they agree."
    )
    page.section(
        "Backtest", paragraph(text), page.charts("backtest", [charts.backtest(test, fit.primary.conventions)], caption)
    )


def _left_out(page: Page, fit: FitResult) -> None:
    reasons: dict[str, list[str]] = {}
    for out in fit.excluded:
        reasons.setdefault(out.reason, []).append(out.row)
    if not reasons:
        page.section("Rows left out", paragraph("None: every row of the source was used."))
        return
    rows = [(reason, f"{len(names):,}", ", ".join(names)) for reason, names in reasons.items()]
    page.section("Rows left out", table(("Reason", "Rows", "Which"), rows, "wrw", tall=len(fit.excluded) > 60))


def _rows_used(page: Page, fit: FitResult) -> None:
    rows, law = fit.primary.rows, fit.primary.parametric
    order = np.lexsort((rows.params, rows.flops))[:MOST_ROWS]
    head = ["Point", "N", "D", "C, FLOPs", f"L, {fit.primary.conventions.loss}"]
    columns = [
        [rows.point_id[i] for i in order],
        [count_text(rows.params[i]) for i in order],
        [count_text(rows.tokens[i]) for i in order],
        [flops_text(rows.flops[i]) for i in order],
        [f"{rows.loss[i]:.4f}" for i in order],
    ]
    if isinstance(law, Parametric):
        percent = views.residual_percent(law)
        head.append("residual, %")
        columns.append([f"{percent[i]:+.2f}" for i in order])
    shown = (
        f"The {len(order):,} rows of least C, of {len(rows):,}; points.csv has all."
        if len(order) < len(rows)
        else "By rising C."
    )
    listing = table(head, zip(*columns, strict=True), "l" + "r" * (len(head) - 1), tall=True)
    page.section("Rows used", paragraph(shown), listing)
