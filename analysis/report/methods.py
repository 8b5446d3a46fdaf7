"""The report's sections of the three approaches: how each works, what it found, what it rests on."""

from __future__ import annotations

import pandas as pd

from analysis.config import Form, Valley
from analysis.fitting.values import Refused
from analysis.report import charts, diagnostics, numbers
from analysis.report.page import Page, note, paragraph, subheading
from analysis.report.style import TITLES, interval_text
from analysis.result import Envelope, FitResult, Isoflop, Parametric
from analysis.text import estimate_text

METHODS = {
    "envelope": "At each C, the lowest loss that any run's curve reaches late in its schedule; power laws through the "
    "sizes and token counts that reach it.",
    "isoflop": "At each budget, a line through the losses in log N; power laws through the minima.",
    "parametric": "L(N, D) = E + A / N^alpha + B / D^beta, fitted to log L; N* and D* minimise it at given C.",
}
VALLEYS = {
    Valley.parabola: "a parabola",
    Valley.cubic: "a cubic",
    Valley.akima: "Akima's interpolation",
    Valley.surface: "the surface of Approach 3",
}
FORMS = {
    Form.free: "All five parameters are free.",
    Form.tied: "alpha and beta are held equal.",
    Form.fixed_E: "E is held at a given value.",
}


def approaches(page: Page, fit: FitResult, curves: pd.DataFrame | None) -> None:
    """A section for each approach, refused ones with their reason."""
    for name, approach in fit.primary.approaches.items():
        parts = [paragraph(METHODS[name])]
        if isinstance(approach, Refused):
            parts += [note([f"Refused: {approach.reason}"]), numbers.budgets(approach.valleys, None)]
        elif isinstance(approach, Envelope):
            parts.append(_envelope(page, fit, approach, curves))
        elif isinstance(approach, Isoflop):
            parts += _isoflop(page, fit, approach)
        else:
            parts += _parametric(page, fit, approach)
        page.section(TITLES[name].replace(", ", ": "), *parts)


def _envelope(page: Page, fit: FitResult, approach: Envelope, curves: pd.DataFrame | None) -> str:
    one = approach.fit
    caption = (
        f"Loss against FLOPs of each run, coloured by N, thinned for drawing; black dots are the envelope. Then who "
        f"holds it, against C, and the power laws with their intervals; the dotted line is a parabola in logs. "
        f"{one.runs_touching} of {one.runs} runs are lowest somewhere; rows before {100 * one.tail:g} % of a run's "
        "schedule do not count"
    )
    caption += f", nor do {one.undecayed} runs whose learning rate never decayed." if one.undecayed else "."
    text = f"Curvature of log N* in log C: {estimate_text(approach.curvature)}; a power law has 0."
    panels = charts.envelope(fit.primary, approach, curves, fit.interval.level)
    return paragraph(text) + page.charts("envelope", panels, caption)


def _isoflop(page: Page, fit: FitResult, approach: Isoflop) -> list[str]:
    at = approach.fit
    caption = (
        f"Loss against N at each budget, coloured by C, with the valleys ({VALLEYS[at.valley]}) and their minima "
        "(diamonds); points of budgets that were not used are hollow. Then the minima against C, the power laws "
        f"through them with their {interval_text(fit.interval.level)} intervals, and, paler, where one more minimum "
        "would fall."
    )
    panels = charts.isoflop(fit.primary, approach, fit.interval.level)
    parts = [page.charts("isoflop", panels, caption), numbers.budgets(at.valleys, approach)]
    if at.bias is not None:
        taken = "has been taken out of the power laws" if at.unbiased else "is left in: fit.unbias=true takes it out"
        parts.append(
            paragraph(
                "Bias is what the same sizes would give in excess of the true N*, without noise, were Approach 3's "
                f"surface the truth; it {taken}."
            )
        )
    sweep = numbers.windows(approach)
    if sweep:
        about = "Exponents when only the sizes near each budget's best one count."
        parts += [subheading("Window"), paragraph(about), sweep]
    return parts


def _parametric(page: Page, fit: FitResult, approach: Parametric) -> list[str]:
    primary, level = fit.primary, interval_text(fit.interval.level)
    remark = approach.remark
    parts = [note([f"Approach 3 {remark}."])] if remark else []
    parts += [paragraph(FORMS[approach.fit.form]), numbers.coefficients(approach)]
    caption = (
        "Contours of the fitted loss in the (C, N) plane, the points coloured by their measured loss, and the "
        "efficient frontier; then the fitted loss along budgets, with the points there."
    )
    parts.append(page.charts("parametric", charts.parametric(primary, approach, fit.interval.level), caption))
    about = "What the law leaves unexplained. A slope or a bend means that the form does not hold over the whole range."
    panels = diagnostics.residuals(primary, approach)
    parts += [subheading("Residuals"), page.charts("residuals", panels, about)]
    parts += _form(fit, approach)
    if approach.profiles:
        about = (
            "How much worse the best fit gets as one number is held; below the dotted line lies its "
            f"{level} interval. A curve that never crosses it leaves that end open."
        )
        panels = diagnostics.profiles(approach.profiles)
        parts += [subheading("Profile likelihoods"), page.charts("profiles", panels, about)]
    return parts


def _form(fit: FitResult, approach: Parametric) -> list[str]:
    """Whether the law's form fails, and where; and optima that do not trust it."""
    if approach.form.worst is None or not approach.quotable:
        return []
    level = interval_text(fit.interval.level)
    found = f"The form fails: {approach.form.where}." if approach.form.fails else "No test says that the form fails."
    about = (
        f"{found} Each test asks whether the residuals follow a term that the law lacks; p is corrected for the number "
        f"of tests. A bend too mild to be seen moves N* far out by more than its interval: the last two columns have "
        f"{level} intervals that hold if the law bends in any one of the ways tested."
    )
    heading = subheading("Does the form hold?")
    return [heading, paragraph(about), numbers.form_tests(approach.form), numbers.if_bent(fit, approach)]
