"""The report's tables of numbers, as plain text: exponents, optima, coefficients, budgets, windows, backtest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from analysis.fitting.values import BudgetValley, Estimate, Refused, RepeatedFit
from analysis.frontier import if_it_holds
from analysis.planning.lackoffit import LackOfFit
from analysis.report import style, views
from analysis.report.page import Cell, table
from analysis.result import Backtest, FitResult, Holdout, Isoflop, Optimum, Parametric, once
from analysis.text import SHORT_TITLES, count_text, estimate_text, flops_text, prediction_text

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
ENDS = (("fitted", "value"), ("low", "low"), ("high", "high"))
TALL = 20
"""Rows of a table from which on it scrolls."""


def exponents(fit: FitResult) -> str:
    """A and b under each pair of conventions, with what the backtest measured beside the first pair's."""
    rows: list[Sequence[Cell] | str] = []
    for under in fit.by_convention:
        counts = style.COUNTS.get(under.conventions.params, under.conventions.params)
        rows.append(f"N counts {counts} parameters, C is {under.conventions.flops}")
        first = under.conventions == fit.primary.conventions
        for name, at in under.approaches.items():
            if isinstance(at, Refused):
                rows.append((SHORT_TITLES[name], f"refused: {at.reason}"))
            elif not at.quotable:
                rows.append((SHORT_TITLES[name], at.remark))
            else:
                remark = at.remark
                title: Cell = (SHORT_TITLES[name], remark) if remark else SHORT_TITLES[name]
                rows.append((title, estimate_text(at.a), estimate_text(at.b), _held(fit, name) if first else "–"))
    return table(("Approach", "a", "b", "Backtest: inside"), rows, "lrrl", tall=len(rows) > TALL)


def optima(fit: FitResult) -> str:
    """N*, D* and L* of the first conventions at stated budgets; "" where no approach is fitted."""
    by_budget: dict[float, list[tuple[str, Optimum]]] = {}
    for name, approach in views.fitted(fit.primary).items():
        for at in approach.optima:
            by_budget.setdefault(at.budget, []).append((name, at))
    rows: list[Sequence[Cell] | str] = []
    for budget in sorted(by_budget):
        rows.append(f"C = {flops_text(budget)}")
        rows += [(SHORT_TITLES[name], *_optimum(at)) for name, at in by_budget[budget]]
    head = ("Approach", "N*", "D*", "D* / N*", ("L*", fit.primary.conventions.loss))
    return table(head, rows, "lrrrr", tall=len(rows) > TALL) if rows else ""


def coefficients(approach: Parametric) -> str:
    """E, A, B, alpha and beta with their intervals."""
    estimates = [getattr(approach, name) for name in COEFFICIENTS]
    rows = [(label, *(_significant(getattr(at, end)) for at in estimates)) for label, end in ENDS]
    return table(("", *COEFFICIENTS), rows, "lrrrrr")


def form_tests(tests: LackOfFit) -> str:
    """Each way in which the law's form could fail, and the evidence."""
    rows = [
        (each.name.replace("_", " "), f"{each.statistic:+.2f}", f"{each.p:.2g}", f"{each.adjusted:.2g}", each.meaning)
        for each in tests.extensions
        if np.isfinite(each.p)
    ]
    return table(("Test", "statistic", "p", "p, corrected", "what it would mean"), rows, "lrrrw")


def if_bent(fit: FitResult, approach: Parametric) -> str:
    """N* and L* trusting the law's form, and not."""
    rows = [
        (flops_text(bent.budget), *(estimate_text(one, count_text) for one in (held.n_opt, bent.n_opt)),
         *(estimate_text(one) for one in (held.loss_opt, bent.loss_opt)))
        for held, bent in zip(if_it_holds(fit, approach), approach.if_bent, strict=True)
    ]  # fmt: skip
    head = ("C, FLOPs", "N* if the form holds", "N* if it may bend", "L* if the form holds", "L* if it may bend")
    return table(head, rows, "rrrrr", tall=len(rows) > TALL)


def budgets(valleys: Sequence[BudgetValley], approach: Isoflop | None) -> str:
    """What became of each budget of Approach 2; "" where there is none."""
    if not valleys:
        return ""
    bias = {}
    if approach is not None and approach.fit.bias is not None:
        bias = {at.budget: value for at, value in zip(approach.fit.accepted, approach.fit.bias, strict=True)}
    lost = approach.lost if approach is not None else {}
    rows = [
        (
            flops_text(at.budget),
            str(len(at.rows)),
            count_text(at.n_opt),
            _percent(np.expm1(bias[at.budget]), "+") if at.budget in bias else "–",
            f"{100 * lost[at.budget]:.2g} %" if at.budget in lost else "–",
            at.refused or "used",
        )
        for at in valleys
    ]
    head = ("Budget C, FLOPs", "Points", "Minimum at N", "Bias of N*", "Replicates without", "Verdict")
    return table(head, rows, "lrrrrw", tall=len(rows) > 15)


def windows(approach: Isoflop) -> str:
    """Exponents of Approach 2 by how far from each budget's best size counts; "" where there is no sweep."""
    rows = [
        (
            "all" if at.factor is None else f"within {at.factor:g} times",
            "–" if at.a is None else f"{at.a:.3f}",
            "–" if at.b is None else f"{at.b:.3f}",
            str(at.budgets),
        )
        for at in approach.windows
    ]
    return table(("Sizes", "a", "b", "Usable budgets"), rows, "lrrr") if rows else ""


def backtest(test: Backtest) -> str:
    """Each origin: what was foretold, how far out, how well."""
    rows: list[Sequence[Cell] | str] = []
    for name, held in views.foretold(test).items():
        rows.append("Loss, Approach 3" if name == "loss" else f"N*, {style.TITLES[name]}")
        rows += [_origin(at) for at in held]
        if len(held) > 1:
            each = once(held)
            shares = (_share(inside, each.measured) for inside in (each.inside, each.law_inside))
            rows.append(("all, each once", "", f"{each.measured:,}", "", *shares, "", ""))
    head = ("Fitted to C", "Rows", "Held out", "Reach", "Inside", "Inside, law alone", "Off by", "Bias")
    return table(head, rows, "lrrrrrrr")


def compared(fit: FitResult) -> str:
    """A by approach under every way to resample."""
    rows = [
        (how, *(estimate_text(found[name]) if name in found else "–" for name in SHORT_TITLES))
        for how, found in fit.compared.items()
    ]
    return table(("What is drawn", *(f"a, {title}" for title in SHORT_TITLES.values())), rows, "lrrr")


def repeated(found: RepeatedFit) -> str:
    """R_D* and R_N*, and the law of fresh tokens that they rest on."""
    law = found.law
    rows = [
        ("R_D*, of tokens", estimate_text(found.r_d, "{:.3g}".format)),
        ("R_N*, of parameters", estimate_text(found.r_n, "{:.3g}".format)),
        *((f"{name}, fresh tokens", _significant(getattr(law, name))) for name in COEFFICIENTS),
    ]
    return table(("", "fitted"), rows, "lr")


def _held(fit: FitResult, name: str) -> Cell:
    """How many of the held-out minima, and losses, lay in an approach's prediction intervals."""
    test = fit.backtest
    if isinstance(test, Refused):
        return "not tested"
    inside, count = test.coverage(name)
    minima = f"N* {_share(inside, count)}" if count else ""
    if name != "parametric":
        return minima or "not tested"
    losses = f"L {_share(*test.coverage_of_losses())}"
    return (minima, losses) if minima else losses


def _share(inside: int, count: int) -> str:
    return f"{inside} of {count} ({100 * inside / count:.0f} %)"


def _optimum(at: Optimum) -> Iterator[Cell]:
    def cell(estimate: Estimate, text: Callable[[float], str]) -> Cell:
        whole = estimate_text(estimate, text)
        return whole if estimate.prediction is None else (whole, f"measured: {prediction_text(estimate, text)}")

    yield cell(at.n_opt, count_text)
    yield cell(at.d_opt, count_text)
    yield f"{at.d_opt.value / at.n_opt.value:.3g}" if at.n_opt.value and at.d_opt.value else "–"
    yield cell(at.loss_opt, "{:.3f}".format)


def _origin(at: Holdout) -> tuple[str, ...]:
    return (
        flops_text(at.fitted_to),
        f"{at.rows:,}",
        f"{len(at.measured):,}",
        f"{count_text(at.flops.max() / at.fitted_to)}×",
        f"{100 * at.coverage:.0f} %",
        f"{100 * at.law_coverage:.0f} %",
        _percent(np.expm1(at.error)),
        _percent(np.expm1(at.bias), "+"),
    )


def _percent(share: float, sign: str = "") -> str:
    """Two digits, or whole percents; with ``sign`` "+" also what is positive has one."""
    digits = ".0f" if abs(share) >= 0.995 else ".2g"  # 170 %, not 1.7e+02 %
    return f"{100 * share:{sign}{digits}} %"


def _significant(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
