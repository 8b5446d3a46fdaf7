"""``report.html``: a fit in one file that opens anywhere, offline: tables, charts, what was left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.fitting.values import Refused
from analysis.laws.law import Law
from analysis.laws.models import published_models
from analysis.report import charts, evidence, numbers, views
from analysis.report.card import fit_card
from analysis.report.methods import approaches
from analysis.report.page import Page, first_screen, note, paragraph, subheading, table
from analysis.report.style import interval_text, number_of
from analysis.result import FitResult, Parametric
from analysis.text import count_text, flops_text
from trainer.files import write_whole

MOST_ROWS = 1000
"""Rows listed: a longer list would make the page slow."""


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
    _results(page, fit)
    _frontier(page, fit, laws)
    approaches(page, fit, curves)
    evidence.backtest(page, fit)
    evidence.compared(page, fit)
    evidence.repeated(page, fit)
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


def _results(page: Page, fit: FitResult) -> None:
    level = interval_text(fit.interval.level)
    exponents = paragraph(f"N* ∝ C^a and D* ∝ C^b, with {level} intervals.") + numbers.exponents(fit)
    warnings = note(fit.warnings) if fit.warnings else note(["Nothing to warn of."], "plain")
    optima = numbers.optima(fit)
    about = [
        f"In brackets {level} intervals: where the fitted law lies ({fit.interval.method}). “Measured”: where one more "
        f"measurement would fall with {level} probability, that of N* and D* by a valley of runs, that of L* by one "
        "run, if the form of the law holds there."
    ]
    if not isinstance(fit.backtest, Refused):
        about.append(
            f"Backtest: how much of what was held out lay inside its {level} prediction interval, N* of held-out "
            "budgets and losses of held-out runs; where that is less than stated, all intervals here are too narrow "
            "for extrapolation."
        )
    second = subheading("Compute-optimal at each budget") + optima if optima else ""
    page.section("Results", first_screen(exponents, warnings, second + "".join(map(paragraph, about))))


def _frontier(page: Page, fit: FitResult, laws: Sequence[Law]) -> None:
    primary, level = fit.primary, fit.interval.level
    if not views.fitted(primary):
        page.section("Frontier", paragraph("No approach could be fitted, so there is no frontier to show."))
        return
    caption = (
        "Compute-optimal parameters, tokens and loss against training FLOPs: lines are the fitted laws, bands their "
        f"{interval_text(level)} intervals. Right of the vertical line, the largest C fitted, they are extrapolated. "
        "L* of Approaches 1 and 2 is known within their budgets alone."
    )
    caption += " Dotted lines are published laws, in their own counting of N and C." if laws else ""
    keys = charts.keys(primary, laws)
    parts = [page.charts("frontier", charts.frontier(primary, level, laws), caption, keys)]
    if views.beside_models(primary, laws):
        caption = (
            "Dots are published models, with all their parameters and C = 6 N D; lines and bands as above, in this "
            f"fit's count of N ({primary.conventions.params.replace('_', '-')}) and C ({primary.conventions.flops}). "
            "A model above the line of N* is larger, and saw fewer tokens, than this fit finds best for its compute, "
            "if the fit holds that far and for that data. Point at a dot for its name and numbers."
        )
        panels = charts.beside_models(primary, level, laws, published_models())
        parts += [subheading("Beside published models"), page.charts("models", panels, caption, keys)]
    page.section("Frontier", *parts)


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
    listing = table(head, list(zip(*columns, strict=True)), "l" + "r" * (len(head) - 1), tall=True)
    page.section("Rows used", paragraph(shown), listing)
