"""The report's sections of evidence beside the fit: backtest, ways to resample, repeated data."""

from __future__ import annotations

from analysis.fitting.values import Refused
from analysis.report import diagnostics, numbers
from analysis.report.page import Page, note, paragraph
from analysis.report.style import interval_text, number_of
from analysis.result import FitResult


def backtest(page: Page, fit: FitResult) -> None:
    """Fits to the smaller budgets against what came beyond them."""
    test = fit.backtest
    if isinstance(test, Refused):
        page.section("Backtest", note([f"Not possible: {test.reason}"], "plain"))
        return
    level = interval_text(test.level)
    about = (
        "The fit repeated on the budgets up to one, and another, and asked for what lies beyond: Approach 3 for the "
        f"losses, each approach for the minima. A {level} prediction interval should hold {level}; that of the law "
        "alone, without the scatter of runs, is no prediction interval and holds less."
    )
    caption = (
        f"Measured (diamonds) over predicted; bars are the {level} prediction intervals. Of very many held-out rows, "
        f"{diagnostics.MOST_HELD} for each origin are drawn."
    )
    panels = page.charts("backtest", diagnostics.backtest(test, fit.primary), caption, diagnostics.origin_keys(test))
    page.section("Backtest", paragraph(about), numbers.backtest(test), panels)


def compared(page: Page, fit: FitResult) -> None:
    """Intervals under every way to resample, where they were asked for."""
    if not fit.compared:
        return
    caption = "What a resample draws decides how wide an interval is; the subsample's are too narrow by construction."
    panels = page.charts("compared", diagnostics.compared(fit.compared), caption, diagnostics.approach_keys())
    page.section("Ways to resample", numbers.compared(fit), panels)


def repeated(page: Page, fit: FitResult) -> None:
    """What repeated tokens are worth, where rows repeat their data."""
    found, heading = fit.repeated, "Repeated data"
    if found is None:
        return
    if isinstance(found, Refused):
        page.section(heading, note([f"Not fitted: {found.reason}"], "plain"))
        return
    about = (
        f"{number_of(found.rows, 'row')} of {len(found.residuals):,} see data more than once. D tokens over U unique "
        "ones are worth U + U R_D* (1 − exp(−(D / U − 1) / R_D*)) fresh ones, and parameters beyond what U calls for "
        "saturate likewise with R_N* (Muennighoff et al. 2023, equations 5 and 6). "
        f"{found.starts_agreeing} of {found.starts} starts ended at the best objective, {found.objective:.6g}."
    )
    panels = diagnostics.repeated(found)
    caption = (
        "The dotted line is what fresh tokens are worth. Residuals: one dot for each row, those included that the "
        "other fits leave out for their repetitions."
    )
    charts = page.charts("repeated", panels, caption)
    page.section(heading, paragraph(about), numbers.repeated(found), charts)
