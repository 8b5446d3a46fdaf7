"""The three approaches on one set of rows: intervals from the same resamples, and optima at the same budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.config import FitConfig, Form, Quantity, Valley
from analysis.fitting.bootstrap import Resamples, percentile
from analysis.fitting.curves import Curves
from analysis.fitting.envelope import fit_envelope, refit_envelope
from analysis.fitting.isoflop import fit_isoflop, refit_isoflop, window_sweep
from analysis.fitting.optimum import exponents, fit_cost
from analysis.fitting.parametric import LARGEST_LOG, fit_parametric, refit_parametric
from analysis.fitting.profile import profile
from analysis.fitting.unshrunk import unshrunk
from analysis.fitting.values import (
    Cost,
    Estimate,
    Floats,
    IsoflopFit,
    ParametricFit,
    Refused,
    Replicates,
    Rows,
    finite,
)
from analysis.frontier import Fitted, array, estimates, scatter_about
from analysis.planning.extensions import interval_if_bent
from analysis.planning.information import Target
from analysis.planning.lackoffit import lack_of_fit
from analysis.result import ConventionFit, Conventions, Envelope, Isoflop, Optimum, Parametric

LEAST_SIZES_FOR_A_BEND = 4
BEYOND = (10.0, 100.0)


@dataclass(frozen=True, eq=False)
class Surface:
    """Approach 3 and its replicates: of N, D and L alone, so the same however C is counted."""

    fit: ParametricFit | Refused
    replicates: Replicates

    @classmethod
    def of(cls, rows: Rows, fit: ParametricFit | Refused, resamples: Resamples) -> Surface:
        """``fit`` again in every resample."""
        if isinstance(fit, Refused):
            return cls(fit, Replicates(values=np.empty((0, 5)), failed=0))
        theta, good = refit_parametric(
            rows.params, rows.tokens, rows.loss, resamples.weights, fit, shift=resamples.shift
        )
        theta = theta[good]
        if resamples.shrunk:
            theta = unshrunk(rows.params, rows.tokens, rows.loss, resamples.weights, theta, fit)
        return cls(fit, Replicates(values=theta, failed=int((~good).sum())))


def fit_law(rows: Rows, config: FitConfig) -> ParametricFit | Refused:
    """Approach 3 as configured, without intervals."""
    return fit_parametric(
        rows.params,
        rows.tokens,
        rows.loss,
        objective=config.objective,
        delta=config.delta,
        form=config.form,
        E=config.E,
        starts=config.starts,
    )


def fit_approaches(
    rows: Rows, curves: Curves, resamples: Resamples, surface: Surface, conventions: Conventions, config: FitConfig
) -> ConventionFit:
    """All three approaches under one pair of conventions.

    Parameters
    ----------
    curves
        Loss curves of the rows' runs, C and N counted as in ``rows``.
    surface
        Approach 3 on the rows; Approach 2 takes it for its bias and valleys only where it converged.
    """
    cost = fit_cost(rows.params, rows.tokens, rows.flops)
    found = surface.fit
    law = found if isinstance(found, ParametricFit) and found.certificate.converged else None
    valleys = fit_isoflop(
        rows.params,
        rows.tokens,
        rows.flops,
        rows.loss,
        rows.budget,
        window=config.window,
        valley=config.valley,
        surface=law,
        cost=cost,
        unbias=config.unbias,
    )
    measured = valleys
    if config.unbias or config.valley is Valley.surface:  # these know Approach 3's surface, so they measure nothing
        measured = fit_isoflop(rows.params, rows.tokens, rows.flops, rows.loss, rows.budget, window=config.window)
    return ConventionFit(
        conventions=conventions,
        cost=cost,
        rows=rows,
        measured=measured,
        envelope=_envelope(rows, curves, resamples, cost, measured, config),
        isoflop=_isoflop(rows, resamples, cost, valleys, measured, law, config),
        parametric=_parametric(rows, surface, cost, measured, config),
    )


def stated_budgets(rows: Rows) -> Floats:
    """The budgets at which optima are stated: those of four points or more, else the least, middle and largest C."""
    shared = rows.shared_budgets(4)
    if len(shared):
        return shared
    return np.geomspace(rows.flops.min(), rows.flops.max(), 3 if np.ptp(rows.flops) > 0 else 1)


def _parametric(
    rows: Rows, surface: Surface, cost: Cost, valleys: IsoflopFit | Refused, config: FitConfig
) -> Parametric | Refused:
    fit = surface.fit
    if isinstance(fit, Refused):
        return fit
    a, b = exponents(fit.array(), cost)  # with alpha = beta they are 1 / (1 + g), whatever the data: no interval
    many_a, many_b = exponents(surface.replicates.values, cost)
    law = {
        name: percentile(many, float(one), config.level, failed=surface.replicates.failed)
        for name, many, one in zip(
            ("A", "B", "E", "alpha", "beta"),
            _natural(surface.replicates.values).T,
            _natural(fit.array()),
            strict=True,
        )
    }
    profiles = profile(rows.params, rows.tokens, rows.loss, fit, cost, config.level) if config.profile else {}
    return Parametric(
        fit=fit,
        form=lack_of_fit(rows.params, rows.tokens, rows.loss, fit),
        if_bent=_if_bent(rows, fit, cost, config.level),
        profiles=profiles,
        E=law["E"],
        A=law["A"],
        B=law["B"],
        alpha=law["alpha"],
        beta=law["beta"],
        **_common(fit, (float(a), float(b)), (many_a, many_b), surface.replicates, rows, cost, valleys, config),
    )


def _if_bent(rows: Rows, fit: ParametricFit, cost: Cost, level: float) -> tuple[Optimum, ...]:
    """Optima with intervals that do not trust the form, at the stated budgets and 10 and 100 times the largest C."""
    found = []
    for flops in (*stated_budgets(rows), *(factor * float(rows.flops.max()) for factor in BEYOND)):
        told = {}
        for quantity in (Quantity.n_opt, Quantity.loss_opt):
            target = Target(quantity=quantity, flops=float(flops))
            ends = interval_if_bent(rows.params, rows.tokens, fit, target, cost, level)
            value = float(np.exp(target.value(fit.array()[None], cost)[0]))
            low, high = (finite(float(np.exp(min(end, LARGEST_LOG)))) for end in ends)
            known = math.isfinite(ends[0]) and math.isfinite(ends[1])
            told[quantity.value] = Estimate(value=value, low=low, high=high) if known else Estimate(value=value)
        found.append(Optimum(budget=float(flops), d_opt=Estimate(value=None), **told))
    return tuple(found)


def _isoflop(
    rows: Rows,
    resamples: Resamples,
    cost: Cost,
    fit: IsoflopFit | Refused,
    measured: IsoflopFit | Refused,
    law: ParametricFit | None,
    config: FitConfig,
) -> Isoflop | Refused:
    if isinstance(fit, Refused):
        return fit
    values, found = refit_isoflop(rows.params, rows.tokens, rows.loss, resamples.weights, fit, shift=resamples.shift)
    lost = {at.budget: float(1 - kept.mean()) for at, kept in zip(fit.accepted, found.T, strict=True) if len(kept)}
    windows = window_sweep(
        rows.params, rows.tokens, rows.flops, rows.loss, rows.budget, valley=config.valley, surface=law, cost=cost
    )
    return Isoflop(fit=fit, lost=lost, windows=windows, **_by_laws(fit, values, rows, cost, measured, config))


def _envelope(
    rows: Rows, curves: Curves, resamples: Resamples, cost: Cost, valleys: IsoflopFit | Refused, config: FitConfig
) -> Envelope | Refused:
    fit = fit_envelope(curves, tail=config.tail, undecayed=config.undecayed)
    if isinstance(fit, Refused):
        return fit
    names, run = np.unique(np.array(rows.run_id), return_inverse=True)
    order = np.argsort(run, kind="stable")
    first = np.searchsorted(run[order], np.arange(len(names)))
    drawn = np.add.reduceat(resamples.weights[:, order], first, axis=1) > 0
    shift = resamples.shift
    if shift is not None:  # a run's whole curve moves as its points do
        shift = np.add.reduceat(shift[:, order], first, axis=1) / np.bincount(run)
    values, curvature = np.empty((0, 6)), np.empty(0)
    if resamples.leaves_out or shift is not None:
        values, curvature = refit_envelope(
            curves, drawn, tuple(map(str, names)), tail=config.tail, undecayed=config.undecayed, shift=shift
        )
    bends = len(np.unique(fit.params)) >= LEAST_SIZES_FOR_A_BEND
    return Envelope(
        fit=fit,
        curvature=Estimate(value=None)
        if not bends
        else percentile(curvature, fit.curvature, config.level, failed=int((~np.isfinite(curvature)).sum())),
        **_by_laws(fit, values, rows, cost, valleys, config),
    )


def _by_laws(
    fit: Fitted, values: Floats, rows: Rows, cost: Cost, valleys: IsoflopFit | Refused, config: FitConfig
) -> dict[str, Any]:
    """What Approaches 1 and 2 share: exponents, optima and replicates from power laws (replicates, 6)."""
    good = np.isfinite(values).all(axis=1)
    replicates = Replicates(values=values[good], failed=int((~good).sum()))
    a, b = array(fit)[[1, 3]]
    many = (replicates.values[:, 1], replicates.values[:, 3])
    return _common(fit, (float(a), float(b)), many, replicates, rows, cost, valleys, config)


def _common(
    fit: Fitted,
    point: tuple[float, float],
    many: tuple[Floats, Floats],
    replicates: Replicates,
    rows: Rows,
    cost: Cost,
    valleys: IsoflopFit | Refused,
    config: FitConfig,
) -> dict[str, Any]:
    a, b = (
        percentile(values, one, config.level, failed=replicates.failed) for one, values in zip(point, many, strict=True)
    )
    if isinstance(fit, ParametricFit) and fit.form is Form.tied:
        a, b = Estimate(value=a.value), Estimate(value=b.value)
    scatter = scatter_about(fit, cost, valleys)
    optima = estimates(fit, cost, replicates, scatter, stated_budgets(rows), config.level)
    return {"a": a, "b": b, "optima": optima, "replicates": replicates, "scatter": scatter}


def _natural(theta: Floats) -> Floats:
    """A, B, E, alpha, beta from (..., 5) log A, log B, log E, alpha, beta."""
    return np.concatenate([np.exp(theta[..., :3]), theta[..., 3:]], axis=-1)
