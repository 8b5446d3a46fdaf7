"""Would the fit have foretold the largest budget? Approach 3 without it, against the losses it then reached."""

from __future__ import annotations

import numpy as np

from analysis.bootstrap import resample
from analysis.config import FitConfig
from analysis.parametric import fit_parametric, refit_parametric
from analysis.result import Backtest, Bools, Floats, Refused, Rows


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
    if config.replicates < 20:
        return Refused(reason=f"{config.replicates} replicates are too few for intervals; 20 or more are needed.")
    measured, predicted = rows.loss[held], fit.loss(rows.params[held], rows.tokens[held])
    weights = resample(rows.budget[kept], config.resample, config.replicates, config.seed)
    theta, good = refit_parametric(rows.params[kept], rows.tokens[kept], rows.loss[kept], weights, fit)
    lines = _losses(theta[good], rows.params[held], rows.tokens[held])
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


def _losses(theta: Floats, params: Floats, tokens: Floats) -> Floats:
    """(replicates, rows): the losses each replicate foretells."""
    log_a, log_b, log_e, alpha, beta = (theta[:, i : i + 1] for i in range(5))
    return np.exp(log_e) + np.exp(log_a - alpha * np.log(params)) + np.exp(log_b - beta * np.log(tokens))


def _covered(interval: Floats, measured: Floats) -> float:
    return float(np.mean((interval[0] <= measured) & (measured <= interval[1])))
