"""A fit as the terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from analysis.fits import Refused
from analysis.predict import Prediction
from analysis.result import Approach, FitResult, Parametric
from analysis.text import SHORT_TITLES, count_text, estimate_text, flops_text
from sweeps.render import print_json, say, stdout, table


def fit_json(fits: Sequence[FitResult], *, grouped: bool) -> None:
    """fit.json on stdout; a list of them for groups."""
    print_json([fit.to_dict() for fit in fits] if grouped else fits[0].to_dict())


def print_fit(fit: FitResult) -> None:
    """Exponents under each N convention, optima per budget, and what to beware of."""
    level = f"{100 * fit.interval.level:g}%"
    shown = table("<approach", "<N counts", "<a: N* ~ C^a", "<b: D* ~ C^b", "<remark",
                  title=f"Exponents with {level} intervals; C by the {fit.primary.conventions.flops} count, "
                  f"{len(fit.primary.rows)} points, {len(fit.excluded)} left out")  # fmt: skip
    for under in fit.by_convention:
        for name, approach in under.approaches.items():
            counts = under.conventions.params.replace("_", "-")
            if isinstance(approach, Refused):
                shown.add_row(SHORT_TITLES[name], counts, "–", "–", escape(f"refused: {approach.reason}"))
            else:
                shown.add_row(SHORT_TITLES[name], counts, *_exponents(approach), remark(approach))
    stdout().print(shown)
    optima = table("budget", "<approach", "<N counts", "<N*", "<D*", "<loss", title="Compute-optimal at each budget")
    for under in fit.by_convention:
        for name, approach in under.approaches.items():
            if not isinstance(approach, Approach) or not quotable(approach):
                continue
            for at in approach.optima:
                counts = under.conventions.params.replace("_", "-")
                sizes = (estimate_text(one, count_text) for one in (at.n_opt, at.d_opt))
                optima.add_row(flops_text(at.budget), SHORT_TITLES[name], counts, *sizes, estimate_text(at.loss_opt))
    stdout().print(optima)
    for warning in fit.warnings:
        say(f"beware: {warning}")


def remark(approach: Approach) -> str:
    """What keeps an approach's numbers from being quoted."""
    if not isinstance(approach, Parametric):
        return ""
    certificate = approach.fit.certificate
    if not certificate.converged:
        return f"did not converge: relative gradient {certificate.gradient_norm:.1g}"
    return f"not determined: {', '.join(certificate.unidentified)}" if certificate.unidentified else ""


def quotable(approach: Approach) -> bool:
    """Whether the approach found its optimum, so that its numbers mean something."""
    return not isinstance(approach, Parametric) or approach.fit.certificate.converged


def _exponents(approach: Approach) -> tuple[str, str]:
    return (estimate_text(approach.a), estimate_text(approach.b)) if quotable(approach) else ("–", "–")


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


def print_predictions(predictions: Sequence[Prediction]) -> None:
    """What each law or approach says."""
    first = predictions[0].conventions
    shown = table("<by", "<C", "<N*", "<D*", "<D*/N*", "<loss",
                  title=f"N counts {first.params.replace('_', '-')} parameters, C by the {first.flops} count, "
                  f"loss in {escape(first.loss)}")  # fmt: skip
    for p in predictions:
        ratio = None if not (p.tokens.value and p.params.value) else p.tokens.value / p.params.value
        sizes = (estimate_text(one, count_text) for one in (p.params, p.tokens))
        flops, loss = estimate_text(p.flops, flops_text), estimate_text(p.loss)
        shown.add_row(SHORT_TITLES.get(p.by, p.by), flops, *sizes, count_text(ratio), loss)
    stdout().print(shown)
    for statement in dict.fromkeys(p.statement for p in predictions):
        stdout().print(escape(statement), soft_wrap=True)
