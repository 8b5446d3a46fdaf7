"""A fit as the terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from analysis.fitting.values import Refused, RepeatedFit
from analysis.frontier import if_it_holds
from analysis.result import Approach, FitResult, Parametric
from analysis.text import SHORT_TITLES, count_text, estimate_text, flops_text, prediction_text
from sweeps.planning.probe import Best
from sweeps.terminal import print_json, say, stdout, table


def fit_json(fits: Sequence[FitResult], *, grouped: bool) -> None:
    """fit.json on stdout; a list of them for groups."""
    print_json([fit.to_dict() for fit in fits] if grouped else fits[0].to_dict())


def print_fit(fit: FitResult) -> None:
    """Exponents under each pair of conventions, optima per budget, and what to beware of."""
    level = f"{100 * fit.interval.level:g}%"
    shown = table("<approach", "<N counts", "<C counts", "<a: N* ~ C^a", "<b: D* ~ C^b", "<foretold", "<remark",
                  title=f"Exponents with {level} intervals; {len(fit.primary.rows)} points, "
                  f"{len(fit.excluded)} left out; foretold: held-out budgets inside prediction intervals")  # fmt: skip
    for under in fit.by_convention:
        counts = (under.conventions.params.replace("_", "-"), under.conventions.flops)
        for name, approach in under.approaches.items():
            if isinstance(approach, Refused):
                shown.add_row(SHORT_TITLES[name], *counts, "–", "–", "–", escape(f"refused: {approach.reason}"))
            else:
                foretold = coverage_text(fit, name) if under is fit.primary else "–"
                shown.add_row(SHORT_TITLES[name], *counts, *_exponents(approach), foretold, approach.remark)
    stdout().print(shown)
    first = fit.primary.conventions
    optima = table("budget", "<approach", "<N*", "<D*", "<loss", "<one more run's loss",
                   title=f"Compute-optimal at each budget: N counts {first.params.replace('_', '-')} parameters, "
                   f"C by the {first.flops} count")  # fmt: skip
    for name, approach in fit.primary.approaches.items():
        if not isinstance(approach, Approach) or not approach.quotable:
            continue
        for at in approach.optima:
            sizes = (estimate_text(one, count_text) for one in (at.n_opt, at.d_opt))
            cells = (*sizes, estimate_text(at.loss_opt), prediction_text(at.loss_opt))
            optima.add_row(flops_text(at.budget), SHORT_TITLES[name], *cells)
    stdout().print(optima)
    print_form(fit)
    print_backtest(fit)
    print_asked_for(fit)
    for note in fit.notes:
        say(f"note: {note}")
    for warning in fit.warnings:
        say(f"beware: {warning}")


def print_rates(best: Sequence[Best]) -> None:
    """The best learning rate of each size, and how far it moves over the sizes."""
    shown = table("N total", "D", "<other axes", "rates tried", "best rate", "loss", "<remark",
                  title="Best learning rate of each size (optim.lr, before what the rules make of it)")  # fmt: skip
    for one in best:
        remark = "at the edge of the rates tried: widen the axis" if one.edge else ""
        shown.add_row(count_text(one.params), count_text(one.tokens), escape(one.others), str(one.rates),
                      f"{one.rate:.3g}", f"{one.loss:.4f}", remark)  # fmt: skip
    stdout().print(shown)
    inside = [one for one in best if not one.edge]
    sizes = [one.params for one in inside]
    if len(set(sizes)) > 1:
        moved = max(one.rate for one in inside) / min(one.rate for one in inside)
        say(f"over a factor {max(sizes) / min(sizes):.3g} of N the best rate moves by a factor {moved:.3g}")


def print_form(fit: FitResult) -> None:
    """Whether the form of Approach 3's law fails, and what N* and L* would be if it may."""
    three = fit.primary.parametric
    if not isinstance(three, Parametric) or not three.quotable or three.form.worst is None:
        return
    worst = three.form.worst
    verdict = f"fails: {three.form.where}" if three.form.fails else (
        f"is not seen to fail (strongest hint: {worst.meaning}, p = {worst.adjusted:.2g})"
    )  # fmt: skip
    shown = table("C", "<N* if the form holds", "<N* if it may bend", "<loss if it may bend",
                  title=f"The form of Approach 3's law {verdict}")  # fmt: skip
    for held, bent in zip(if_it_holds(fit, three), three.if_bent, strict=True):
        cells = [estimate_text(one, count_text) for one in (held.n_opt, bent.n_opt)]
        shown.add_row(flops_text(bent.budget), *cells, estimate_text(bent.loss_opt))
    stdout().print(shown)


def coverage_text(fit: FitResult, name: str) -> str:
    """What of held-out budgets lay inside an approach's prediction intervals in the backtest."""
    if isinstance(fit.backtest, Refused):
        return "–"
    parts = {"N*": fit.backtest.coverage(name)}
    if name == "parametric":
        parts["loss"] = fit.backtest.coverage_of_losses()
    return ", ".join(f"{what} {inside}/{measured}" for what, (inside, measured) in parts.items() if measured) or "–"


def print_backtest(fit: FitResult) -> None:
    """How often intervals held what came, where the fit was cut at one budget after another."""
    test = fit.backtest
    if isinstance(test, Refused):
        stdout().print(escape(f"Backtest: not possible, {test.reason}"), soft_wrap=True)
        return
    shown = table("<foretold", "<fitted to", "<up to", "held out", "inside", "off by",
                  title=f"Backtest: what lay beyond, inside {100 * test.level:g}% prediction intervals")  # fmt: skip
    kinds = {"loss, 3 parametric": test.loss} | {f"N*, {SHORT_TITLES[name]}": held for name, held in test.n_opt.items()}
    for kind, held in kinds.items():
        for at in held:
            reach = f"{at.flops.max() / at.fitted_to:.3g}x that"
            inside = f"{100 * at.coverage:.0f}%"
            shown.add_row(
                kind, flops_text(at.fitted_to), reach, str(len(at.measured)), inside, f"{100 * at.error:.2g}%"
            )
    stdout().print(shown)


def print_asked_for(fit: FitResult) -> None:
    """Profile likelihoods, intervals of other bootstraps, and what repeated tokens are worth: where there are any."""
    three = fit.primary.parametric
    if isinstance(three, Parametric) and three.profiles:
        shown = table("<", "<bootstrap", "<profile likelihood", title="Approach 3, intervals by two methods")
        for name, found in three.profiles.items():
            other = three.a if name == "a" else getattr(three, name)
            shown.add_row(name, estimate_text(other, "{:.5g}".format), estimate_text(found.estimate, "{:.5g}".format))
        stdout().print(shown)
    if fit.compared:
        shown = table("<resampled", *(f"<a, {title}" for title in SHORT_TITLES.values()),
                      title="Intervals of a by what the bootstrap draws")  # fmt: skip
        for how, by_name in fit.compared.items():
            shown.add_row(how, *(estimate_text(by_name[name]) if name in by_name else "–" for name in SHORT_TITLES))
        stdout().print(shown)
    if isinstance(fit.repeated, RepeatedFit):
        worth = [f"{name} {estimate_text(at, '{:.3g}'.format)}" for name, at in
                 (("R_D*", fit.repeated.r_d), ("R_N*", fit.repeated.r_n))]  # fmt: skip
        stdout().print(f"Repeated data ({fit.repeated.rows} rows): {', '.join(worth)}", soft_wrap=True)
    elif isinstance(fit.repeated, Refused):
        stdout().print(escape(f"Repeated data: not fitted, {fit.repeated.reason}"), soft_wrap=True)


def _exponents(approach: Approach) -> tuple[str, str]:
    return (estimate_text(approach.a), estimate_text(approach.b)) if approach.quotable else ("–", "–")


def print_summary(fits: Sequence[FitResult]) -> None:
    """One line per group: exponents a under the primary convention."""
    keys = list(fits[0].group)
    shown = table(
        *(f"<{key}" for key in keys), "points", "left out", *(f"<a, {title}" for title in SHORT_TITLES.values())
    )
    for fit in fits:
        cells = [
            "–" if isinstance(found, Refused) else _exponents(found)[0] for found in fit.primary.approaches.values()
        ]
        values = [escape(fit.group[key]) for key in keys]
        shown.add_row(*values, str(len(fit.primary.rows)), str(len(fit.excluded)), *cells)
    stdout().print(shown)
