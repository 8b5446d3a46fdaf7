"""N*, D* and L* of a fitted approach at any C, with the interval of the law and that of one more measurement."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.fitting.bootstrap import Scatter, percentile, scatter_of
from analysis.fitting.optimum import optimum
from analysis.fitting.powerlaw import optimum_of_laws
from analysis.fitting.values import Cost, EnvelopeFit, Estimate, Floats, IsoflopFit, ParametricFit, Refused, Replicates
from analysis.result import FitResult, Optimum, Parametric

Fitted = EnvelopeFit | IsoflopFit | ParametricFit
NAMES = ("n_opt", "d_opt", "loss_opt")


def frontier(fit: Fitted, cost: Cost, values: Floats, flops: Floats) -> tuple[Floats, Floats, Floats]:
    """N*, D* and L* at ``flops`` (m,).

    Parameters
    ----------
    values
        (..., 5) or (..., 6): ``fit`` itself as an array, or replicates of it, as ``Replicates.values`` holds them.

    Returns
    -------
    Three of (..., m); L* of Approaches 1 and 2 is NaN out of their budgets.
    """
    if isinstance(fit, ParametricFit):
        return optimum(values, cost, flops)
    return optimum_of_laws(values[..., None, :], fit.laws.flops_range, flops)


def array(fit: Fitted) -> Floats:
    """The fit as a row of ``Replicates.values``."""
    return fit.array() if isinstance(fit, ParametricFit) else fit.laws.array()


def estimates(
    fit: Fitted, cost: Cost, replicates: Replicates, scatter: Mapping[str, Scatter], flops: Floats, level: float
) -> tuple[Optimum, ...]:
    """The optimum at each of ``flops`` (m,), with intervals."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not known
        point = frontier(fit, cost, array(fit), flops)
        many = frontier(fit, cost, replicates.values, flops)

    def estimate(part: int, i: int) -> Estimate:
        value = float(point[part][i]) if np.isfinite(point[part][i]) else None
        # A resample lacks some of the lowest runs and has none lower, so its minimum says nothing about L*'s error.
        if NAMES[part] == "loss_opt" and isinstance(fit, EnvelopeFit):
            return Estimate(value=value)
        return percentile(many[part][:, i], value, level, scatter.get(NAMES[part]), replicates.failed)

    return tuple(
        Optimum(budget=float(budget), n_opt=estimate(0, i), d_opt=estimate(1, i), loss_opt=estimate(2, i))
        for i, budget in enumerate(flops)
    )


def if_it_holds(fit: FitResult, three: Parametric) -> tuple[Optimum, ...]:
    """Approach 3's optima, trusting its form, where ``three.if_bent`` has those that do not."""
    flops = np.array([at.budget for at in three.if_bent])
    return estimates(three.fit, fit.primary.cost, three.replicates, {}, flops, fit.interval.level)


def scatter_about(fit: Fitted, cost: Cost, valleys: IsoflopFit | Refused) -> dict[str, Scatter]:
    """How measurements scatter about a fit, by what is measured; a bias of the measuring counts as scatter.

    ``valleys`` are measured ones: not those of Approach 3's own surface, which would scatter by nothing about it.
    A measurement of N* and D* is the minimum of one more valley, so the minima of Approach 2 tell it for all three; one
    of L* is the loss of one more run for Approach 3, and the lowest of a valley for Approach 2.
    """
    found: dict[str, Scatter | None] = {}
    if isinstance(valleys, IsoflopFit):
        minima = np.array([(p.budget, p.n_opt, p.d_opt, p.loss_opt) for p in valleys.accepted], dtype=np.float64).T
        point = frontier(fit, cost, array(fit), minima[0])
        for name, measured, law in zip(NAMES, minima[1:], point, strict=True):
            found[name] = scatter_of(np.log(measured / law), 2)
    if isinstance(fit, ParametricFit):
        found["loss_opt"] = scatter_of(fit.residuals, fit.free)
    return {name: one for name, one in found.items() if one is not None}
