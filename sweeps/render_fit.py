"""A fit as the terminal shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.markup import escape

from analysis.predict import Prediction
from analysis.result import Approach, Estimate, FitResult, Refused
from analysis.text import count_text, flops_text
from sweeps.render import print_json, say, stdout, table

TITLES = {"envelope": "1 envelope", "isoflop": "2 isoFLOP", "parametric": "3 parametric"}
"""Hoffmann's numbers of the approaches."""


def fit_json(fits: Sequence[FitResult], *, grouped: bool) -> None:
    """fit.json on stdout; a list of them for groups."""
    print_json([fit.to_dict() for fit in fits] if grouped else fits[0].to_dict())


def print_fit(fit: FitResult) -> None:
    """Exponents under each N convention, optima per budget, and what to beware of."""
    level = f"{fit.interval.level:.0%}"
    shown = table("<approach", "<N counts", "<a: N* ~ C^a", "<b: D* ~ C^b", "<remark",
                  title=f"Exponents with {level} intervals; C by the {fit.primary.conventions.flops} count, "
                  f"{len(fit.primary.rows)} points, {len(fit.excluded)} left out")  # fmt: skip
    for under in fit.by_convention:
        for name, approach in under.approaches.items():
            counts = under.conventions.params.replace("_", "-")
            if isinstance(approach, Refused):
                shown.add_row(TITLES[name], counts, "–", "–", escape(f"refused: {approach.reason}"))
            else:
                shown.add_row(TITLES[name], counts, exponent(approach.a), exponent(approach.b), "")
    stdout().print(shown)
    optima = table("budget", "<approach", "<N counts", "<N*", "<D*", "<loss", title="Compute-optimal at each budget")
    for under in fit.by_convention:
        for name, approach in under.approaches.items():
            if not isinstance(approach, Approach):
                continue
            for at in approach.optima:
                counts = under.conventions.params.replace("_", "-")
                optima.add_row(flops_text(at.budget), TITLES[name], counts, interval(at.n_opt), interval(at.d_opt),
                               exponent(at.loss_opt))  # fmt: skip
    stdout().print(optima)
    for warning in fit.warnings:
        say(f"beware: {warning}")


def print_summary(fits: Sequence[FitResult]) -> None:
    """One line per group: exponents a under the primary convention."""
    keys = list(fits[0].group)
    shown = table(*(f"<{key}" for key in keys), "points", "left out", *(f"<a, {title}" for title in TITLES.values()))
    for fit in fits:
        cells = ["–" if isinstance(found, Refused) else exponent(found.a) for found in fit.primary.approaches.values()]
        values = [escape(fit.group[key]) for key in keys]
        shown.add_row(*values, str(len(fit.primary.rows)), str(len(fit.excluded)), *cells)
    stdout().print(shown)


def print_predictions(predictions: Sequence[Prediction]) -> None:
    """What each law or approach says."""
    first = predictions[0].conventions
    shown = table("<by", "<C", "<N*", "<D*", "<D*/N*", "<loss",
                  title=f"N counts {first.params.replace('_', '-')} parameters, C by the {first.flops} count, "
                  f"loss in {escape(first.loss)}")  # fmt: skip
    for p in predictions:
        ratio = None if not (p.tokens.value and p.params.value) else p.tokens.value / p.params.value
        shown.add_row(TITLES.get(p.by, p.by), interval(p.flops, flops_text), interval(p.params), interval(p.tokens),
                      count_text(ratio), exponent(p.loss))  # fmt: skip
    stdout().print(shown)
    for statement in dict.fromkeys(p.statement for p in predictions):
        stdout().print(escape(statement), soft_wrap=True)


def exponent(estimate: Estimate) -> str:
    """0.514 (0.492 to 0.543)."""
    return _with_interval(estimate, "{:.3f}".format)


def interval(estimate: Estimate, text: Callable[[float], str] = count_text) -> str:
    """65.4B (58.9B to 71B)."""
    return _with_interval(estimate, text)


def _with_interval(estimate: Estimate, text: Callable[[float], str]) -> str:
    if estimate.value is None:
        return "–"
    shown = text(estimate.value)
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} ({text(estimate.low)} to {text(estimate.high)})"
