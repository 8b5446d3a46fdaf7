"""Would the fit have foretold the largest budget? Approach 3 without it, against the losses it then reached."""

from __future__ import annotations

import numpy as np

from analysis.bootstrap import LEAST_REPLICATES, groups_drawn, resample
from analysis.config import FitConfig
from analysis.fits import Bools, Floats, Refused, loss_of_laws
from analysis.parametric import fit_parametric, refit_parametric
from analysis.result import Backtest, Rows


def backtest(rows: Rows, config: FitConfig) -> Backtest | Refused:
    """Hold out the largest budget (the top quarter of C where budgets have fewer than three rows) and predict it.

    An interval from the parameters alone says where the law lies, not where a run will: to be a prediction interval it
    needs the scatter of the runs, so residuals are resampled as well.
    """
    held = _held_out(rows)
    kept = ~held
    fit = fit_parametric(
        rows.params[kept], rows.tokens[kept], rows.loss[kept], delta=config.delta, starts=config.starts
    )
    if isinstance(fit, Refused):
        return Refused(reason=f"without the largest budget Approach 3 has too little to go on: {fit.reason}")
    if config.replicates < LEAST_REPLICATES:
        least = f"{LEAST_REPLICATES} or more are needed"
        return Refused(reason=f"{config.replicates} replicates are too few for intervals; {least}.")
    measured, predicted = rows.loss[held], fit.loss(rows.params[held], rows.tokens[held])
    weights = resample(groups_drawn(rows, config.resample)[kept], config.resample, config.replicates, config.seed)
    theta, good = refit_parametric(rows.params[kept], rows.tokens[kept], rows.loss[kept], weights, fit)
    if good.sum() < LEAST_REPLICATES:
        found = f"only {good.sum()} of {len(good)} replicates gave a fit"
        return Refused(reason=f"{found} without the largest budget; intervals need {LEAST_REPLICATES}.")
    lines = loss_of_laws(theta[good][:, None], np.log(rows.params[held]), np.log(rows.tokens[held]))
    freedom = np.sqrt(kept.sum() / max(1, kept.sum() - 5))
    scatter = np.random.default_rng(config.seed).choice(fit.residuals * freedom, size=lines.shape)
    tails = [(1 - config.level) / 2, (1 + config.level) / 2]
    inner, outer = np.quantile(lines, tails, axis=0), np.quantile(lines * np.exp(scatter), tails, axis=0)
    miss = np.log(predicted / measured)
    return Backtest(
        budget=float(np.exp(np.mean(np.log(rows.flops[held])))),
        rows=int(held.sum()),
        level=config.level,
        coverage=_covered(outer, measured),
        coverage_parameters=_covered(inner, measured),
        error=float(np.sqrt(np.mean(miss**2))),
        bias=float(np.mean(miss)),
        measured=measured,
        predicted=predicted,
        low=outer[0],
        high=outer[1],
    )


def _held_out(rows: Rows) -> Bools:
    top = rows.budget == rows.budget.max()
    return top if top.sum() >= 3 else rows.flops >= np.quantile(rows.flops, 0.75)


def _covered(interval: Floats, measured: Floats) -> float:
    return float(np.mean((interval[0] <= measured) & (measured <= interval[1])))
