"""Would the fit have foretold the budgets beyond it? Cut at one budget after another, and compare with what came.

An interval from refits alone says where the law lies, not where a run will: a prediction interval needs the scatter of
the runs as well, and even so covers too little where the form fails. The measured coverage says how much too little.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.approaches import Surface, fit_approaches, fit_law
from analysis.config import FitConfig
from analysis.fitting.bootstrap import LEAST_REPLICATES, resample, scatter_of
from analysis.fitting.budgets import WIDEST_BUDGET, width
from analysis.fitting.curves import Curves
from analysis.fitting.isoflop import group_budgets
from analysis.fitting.values import Bools, IsoflopFit, ParametricFit, Refused, Rows, loss_of_laws
from analysis.frontier import estimates
from analysis.result import Approach, Backtest, ConventionFit, Envelope, Holdout, Isoflop, Parametric

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
        losses.append(_losses(found, fit.rows, ~kept, cut, quick))
        for name, held in _minima(found, fit, cut, quick.level).items():
            minima.setdefault(name, []).append(held)
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
    groups = [rows.flops[rows.budget == budget] for budget in rows.budgets]
    shared = sum(len(flops) for flops in groups if len(flops) >= LEAST_HELD and width(flops) <= WIDEST_BUDGET)
    if 2 * shared < len(rows) and np.ptp(np.log(rows.flops)) > np.log(WIDEST_BUDGET):
        cuts = np.unique(np.quantile(rows.flops, QUANTILES, method="lower"))
    else:
        cuts = np.array([flops.max() for flops in groups])
    return [float(cut) for cut in cuts if (rows.flops > cut).sum() >= LEAST_HELD]


def _refit(fit: ConventionFit, kept: Bools, curves: Curves, config: FitConfig) -> ConventionFit | Refused:
    """The same fit of the rows ``kept`` and the curves of their runs."""
    rows = fit.rows.take(np.flatnonzero(kept))
    rows = replace(rows, budget=group_budgets(rows.flops, config.budget_gap))
    law = fit_law(rows, config)
    if isinstance(law, Refused):
        return law
    if scatter_of(law.residuals, 5) is None:
        return Refused(reason=f"{len(rows)} rows do not show how losses scatter about a law with five parameters.")
    resamples = resample(rows, config.resample, config.replicates, config.seed, law.residuals)
    surface = Surface.of(rows, law, resamples)
    count = len(surface.replicates.values)
    if count < LEAST_REPLICATES:
        return Refused(reason=f"only {count} of {config.replicates} replicates gave a fit; intervals need more.")
    return fit_approaches(rows, curves.of_runs(rows.run_id), resamples, surface, fit.conventions, config)


def _losses(found: ConventionFit, rows: Rows, held: Bools, cut: float, config: FitConfig) -> Holdout:
    """Approach 3 on the losses of held-out rows."""
    assert isinstance(found.parametric, Parametric)
    law, theta = found.parametric.fit, found.parametric.replicates.values
    assert isinstance(law, ParametricFit)
    lines = loss_of_laws(theta[:, None], np.log(rows.params[held]), np.log(rows.tokens[held]))
    scatter = found.parametric.scatter["loss_opt"].draw(lines.shape, config.seed)
    tails = [(1 - config.level) / 2, (1 + config.level) / 2]
    inner, outer = np.quantile(lines, tails, axis=0), np.quantile(lines * np.exp(scatter), tails, axis=0)
    return Holdout(
        fitted_to=cut,
        rows=len(found.rows),
        flops=rows.flops[held],
        measured=rows.loss[held],
        predicted=law.loss(rows.params[held], rows.tokens[held]),
        low=outer[0],
        high=outer[1],
        law_low=inner[0],
        law_high=inner[1],
    )


def _minima(found: ConventionFit, fit: ConventionFit, cut: float, level: float) -> dict[str, Holdout]:
    """Each approach on the minima of the valleys beyond ``cut``; those without intervals are left out."""
    if not isinstance(fit.isoflop, Isoflop):
        return {}
    valleys = fit.isoflop.fit
    assert isinstance(valleys, IsoflopFit)
    beyond = [  # a budget is a mean, which may exceed its rows by rounding
        valley for valley in valleys.accepted if valley.budget > cut * (1 + 1e-9)
    ]
    if not beyond:
        return {}
    flops, measured = np.array([(at.budget, at.n_opt) for at in beyond], dtype=np.float64).T
    out: dict[str, Holdout] = {}
    for name, approach in found.approaches.items():
        if not isinstance(approach, Approach):
            continue
        assert isinstance(approach, Envelope | Isoflop | Parametric)
        told = [
            at.n_opt for at in estimates(approach.fit, found.cost, approach.replicates, approach.scatter, flops, level)
        ]
        if any(at.value is None or at.prediction is None for at in told):
            continue
        predicted, low, high, first, last = np.array(
            [(at.value, at.low, at.high, *(at.prediction or ())) for at in told], dtype=np.float64
        ).T
        out[name] = Holdout(
            fitted_to=cut,
            rows=len(found.rows),
            flops=flops,
            measured=measured,
            predicted=predicted,
            low=first,
            high=last,
            law_low=low,
            law_high=high,
        )
    return out
