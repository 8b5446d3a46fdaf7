"""Would the fit have foretold the budgets beyond it? Cut at one budget after another, and compare with what came.

An interval from refits alone says where the law lies, not where a run will: a prediction interval needs the scatter of
the runs as well, and even so covers too little where the form fails. The measured coverage says how much too little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.approaches import Surface, fit_approaches, fit_law
from analysis.config import FitConfig
from analysis.fitting.bootstrap import LEAST_REPLICATES, percentile, resample, scatter_of
from analysis.fitting.curves import Curves
from analysis.fitting.isoflop import group_budgets
from analysis.fitting.values import WIDEST_BUDGET, Bools, Estimate, Floats, IsoflopFit, Refused, Rows, loss_of_laws
from analysis.frontier import estimates
from analysis.result import Backtest, ConventionFit, Holdout

QUANTILES = np.linspace(0.5, 0.8, 4)
LEAST_HELD = 3  # rows, of which a share inside an interval says something
REPLICATES = 400
"""An origin's intervals need fewer than those that are quoted."""


def backtest(fit: ConventionFit, curves: Curves, config: FitConfig) -> Backtest | Refused:
    """Cut a fit's rows at several budgets in turn, refit what lies below, and foretell what lies above.

    Parameters
    ----------
    fit
        Of all rows: its valleys give the measured minima.
    curves
        As ``fit`` was made with.
    """
    if config.replicates < LEAST_REPLICATES:
        least = f"{LEAST_REPLICATES} or more are needed"
        return Refused(reason=f"{config.replicates} replicates are too few for intervals; {least}.")
    quick = replace(config, replicates=min(config.replicates, REPLICATES), profile=False)
    losses: list[Holdout] = []
    minima: dict[str, list[Holdout]] = {}
    why = "all rows lie at one budget, so none can be held out."
    cuts = _cuts(fit.rows)
    for cut in reversed(cuts):  # from the largest: the first that can be fitted leaves least out
        if len(losses) == config.origins:
            break
        kept = fit.rows.flops <= cut
        found = _refit(fit, kept, curves, quick)
        if isinstance(found, Refused):
            why = found.reason
            break
        held = _losses(found, fit.rows, ~kept, cut, quick.level)
        if held is None:
            why = "too many of its replicates fail for an interval."
            break
        losses.append(held)
        for name, told in _minima(found, fit.measured, cut, quick.level).items():
            minima.setdefault(name, []).append(told)
    if not losses:
        return Refused(reason=f"without the largest budget Approach 3 has too little to go on: {why}")
    return Backtest(
        level=config.level,
        loss=tuple(reversed(losses)),
        n_opt={name: tuple(reversed(held)) for name, held in minima.items()},
    )


def _cuts(rows: Rows) -> list[float]:
    """Values of C, rising, above each of which three rows or more lie.

    Budgets are never cut in two. Where most rows lie at no common budget, the cuts are quantiles of C.
    """
    cuts = np.array([rows.flops[rows.budget == budget].max() for budget in rows.budgets])
    shared = np.isin(rows.budget, rows.shared_budgets(LEAST_HELD)).mean()
    if shared < 0.5 and np.ptp(np.log(rows.flops)) > np.log(WIDEST_BUDGET):
        cuts = np.unique(np.quantile(rows.flops, QUANTILES, method="lower"))
    return [float(cut) for cut in cuts if (rows.flops > cut).sum() >= LEAST_HELD]


def _refit(fit: ConventionFit, kept: Bools, curves: Curves, config: FitConfig) -> ConventionFit | Refused:
    """The same fit of the rows ``kept`` and the curves of their runs."""
    rows = fit.rows.take(np.flatnonzero(kept))
    rows = replace(rows, budget=group_budgets(rows.flops, config.budget_gap))
    law = fit_law(rows, config)
    if isinstance(law, Refused):
        return law
    if scatter_of(law.residuals, law.free) is None:
        return Refused(reason=f"{len(rows)} rows do not show how losses scatter about the law.")
    resamples = resample(rows, config.resample, config.replicates, config.seed, law)
    surface = Surface.of(rows, law, resamples)
    count = len(surface.replicates.values)
    if count < LEAST_REPLICATES:
        return Refused(reason=f"only {count} of {config.replicates} replicates gave a fit; intervals need more.")
    return fit_approaches(rows, curves.of_runs(rows.run_id), resamples, surface, fit.conventions, config)


def _losses(found: ConventionFit, rows: Rows, held: Bools, cut: float, level: float) -> Holdout | None:
    """Approach 3 on the losses of held-out rows; None where it has no intervals."""
    three = found.parametric
    if isinstance(three, Refused):
        return None
    params, tokens = rows.params[held], rows.tokens[held]
    lines = loss_of_laws(three.replicates.values[:, None], np.log(params), np.log(tokens))
    told = [
        percentile(line, float(at), level, three.scatter["loss_opt"], three.replicates.failed)
        for line, at in zip(lines.T, three.fit.loss(params, tokens), strict=True)
    ]
    return _holdout(cut, len(found.rows), rows.flops[held], rows.loss[held], told)


def _minima(found: ConventionFit, valleys: IsoflopFit | Refused, cut: float, level: float) -> dict[str, Holdout]:
    """Each approach on the minima of the valleys beyond ``cut``; those without intervals are left out."""
    if isinstance(valleys, Refused):
        return {}
    # A budget is a mean, which may exceed its rows by rounding.
    beyond = [(at.budget, at.n_opt) for at in valleys.accepted if at.budget > cut * (1 + 1e-9)]
    if not beyond:
        return {}
    flops, measured = np.array(beyond, dtype=np.float64).T
    out: dict[str, Holdout] = {}
    for name, approach in found.approaches.items():
        if isinstance(approach, Refused):
            continue
        told = estimates(approach.fit, found.cost, approach.replicates, approach.scatter, flops, level)
        held = _holdout(cut, len(found.rows), flops, measured, [at.n_opt for at in told])
        if held is not None:
            out[name] = held
    return out


def _holdout(cut: float, rows: int, flops: Floats, measured: Floats, told: Sequence[Estimate]) -> Holdout | None:
    """What was told beside what was measured; None where an interval is missing."""
    if any(at.value is None or at.low is None or at.prediction is None for at in told):
        return None
    numbers = [(at.value, at.low, at.high, *(at.prediction or ())) for at in told]
    predicted, law_low, law_high, low, high = np.array(numbers, dtype=np.float64).T
    return Holdout(
        fitted_to=cut,
        rows=rows,
        flops=flops,
        measured=measured,
        predicted=predicted,
        low=low,
        high=high,
        law_low=law_low,
        law_high=law_high,
    )
