"""The three approaches on one set of rows: intervals from the same resamples, and optima at the same budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from analysis.bootstrap import percentile
from analysis.config import FitConfig
from analysis.envelope import Curves, fit_envelope, refit_envelope
from analysis.fits import Cost, Floats, PowerLaws, Refused, Replicates
from analysis.isoflop import fit_isoflop, refit_isoflop
from analysis.optimum import exponents, fit_cost, optimum
from analysis.parametric import fit_parametric, refit_parametric
from analysis.powerlaw import optimum_of_laws
from analysis.result import ConventionFit, Conventions, Envelope, Estimate, Isoflop, Optimum, Parametric, Rows


def fit_approaches(
    rows: Rows, curves: Curves, weights: Floats, conventions: Conventions, config: FitConfig
) -> ConventionFit:
    """All three approaches under one convention.

    Parameters
    ----------
    curves
        Loss curves of the rows' runs, C and N counted as in ``rows``.
    weights
        (replicates, n): the resamples, the same for every approach.
    """
    cost = fit_cost(rows.params, rows.tokens, rows.flops)
    return ConventionFit(
        conventions=conventions,
        cost=cost,
        rows=rows,
        envelope=_envelope(rows, curves, weights, config),
        isoflop=_isoflop(rows, weights, config),
        parametric=_parametric(rows, weights, cost, config),
    )


def stated_budgets(rows: Rows) -> Floats:
    """The budgets at which optima are stated: those of four points or more, else the least, middle and largest C."""
    budgets, counts = np.unique(rows.budget, return_counts=True)
    if (counts >= 4).any():
        return np.asarray(budgets[counts >= 4])
    return np.geomspace(rows.flops.min(), rows.flops.max(), 3 if np.ptp(rows.flops) > 0 else 1)


def _parametric(rows: Rows, weights: Floats, cost: Cost, config: FitConfig) -> Parametric | Refused:
    fit = fit_parametric(rows.params, rows.tokens, rows.loss, delta=config.delta, starts=config.starts)
    if isinstance(fit, Refused):
        return fit
    theta, good = refit_parametric(rows.params, rows.tokens, rows.loss, weights, fit)
    values = theta[good]
    budgets = stated_budgets(rows)
    a, b = (
        percentile(many, float(one), config.level)
        for many, one in zip(exponents(values, cost), exponents(fit.array(), cost), strict=True)
    )
    law = {
        name: percentile(many, float(one), config.level)
        for name, many, one in zip(
            ("A", "B", "E", "alpha", "beta"), _natural(values).T, _natural(fit.array()), strict=True
        )
    }
    return Parametric(
        a=a,
        b=b,
        optima=_optima(budgets, optimum(fit.array(), cost, budgets), optimum(values, cost, budgets), config.level),
        replicates=Replicates(values=values, failed=int((~good).sum())),
        fit=fit,
        **law,
    )


def _isoflop(rows: Rows, weights: Floats, config: FitConfig) -> Isoflop | Refused:
    fit = fit_isoflop(rows.params, rows.tokens, rows.flops, rows.loss, rows.budget, window=config.window)
    if isinstance(fit, Refused):
        return fit
    values, found = refit_isoflop(rows.params, rows.tokens, rows.loss, weights, fit)
    lost = {at.budget: float(1 - kept.mean()) for at, kept in zip(fit.accepted, found.T, strict=True) if len(kept)}
    return Isoflop(fit=fit, lost=lost, **_common(fit.laws, values, rows, config))


def _envelope(rows: Rows, curves: Curves, weights: Floats, config: FitConfig) -> Envelope | Refused:
    fit = fit_envelope(curves, tail=config.tail)
    if isinstance(fit, Refused):
        return fit
    names, run = np.unique(np.array(rows.run_id), return_inverse=True)
    drawn = np.stack([weights[:, run == i].sum(axis=1) > 0 for i in range(len(names))], axis=1)
    values = refit_envelope(curves, drawn, tuple(map(str, names)), tail=config.tail)
    common = _common(fit.laws, values, rows, config)
    # A resample lacks some of the lowest runs and has none lower, so its minimum says nothing about L*'s error.
    optima = tuple(replace(at, loss_opt=Estimate(value=at.loss_opt.value)) for at in common["optima"])
    return Envelope(fit=fit, **common | {"optima": optima})


def _common(laws: PowerLaws, values: Floats, rows: Rows, config: FitConfig) -> dict[str, Any]:
    """What Approaches 1 and 2 share: exponents, optima and replicates from power laws."""
    good = np.isfinite(values).all(axis=1)
    kept, budgets = values[good], stated_budgets(rows)
    point, many = (optimum_of_laws(one[..., None, :], laws.flops_range, budgets) for one in (laws.array(), kept))
    return {
        "a": percentile(kept[:, 1], laws.params.exponent, config.level),
        "b": percentile(kept[:, 3], laws.tokens.exponent, config.level),
        "optima": _optima(budgets, point, many, config.level),
        "replicates": Replicates(values=kept, failed=int((~good).sum())),
    }


def _optima(
    budgets: Floats, point: tuple[Floats, Floats, Floats], many: tuple[Floats, Floats, Floats], level: float
) -> tuple[Optimum, ...]:
    def estimate(part: int, i: int) -> Estimate:
        value = float(point[part][i])
        return percentile(many[part][:, i], value if np.isfinite(value) else None, level)

    return tuple(
        Optimum(budget=float(budget), n_opt=estimate(0, i), d_opt=estimate(1, i), loss_opt=estimate(2, i))
        for i, budget in enumerate(budgets)
    )


def _natural(theta: Floats) -> Floats:
    """A, B, E, alpha, beta from (..., 5) log A, log B, log E, alpha, beta."""
    return np.concatenate([np.exp(theta[..., :3]), theta[..., 3:]], axis=-1)
