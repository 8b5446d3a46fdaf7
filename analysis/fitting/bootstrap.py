"""The same resamples through all three approaches, and the intervals that come out.

A resample is a row of weights, how often each point was drawn, and for the residual bootstrap a shift of its log loss.
The design is fixed, so by default points are drawn within their budget: no budget vanishes from a resample, as it often
would with five points each. Points that share something (a size, a seed, a trunk) can be drawn together instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.config import Resample, chosen
from analysis.fitting.values import Estimate, Floats, Ints, ParametricFit, Rows
from trainer.errors import UserError

METHODS = {
    Resample.budgets: "bootstrap: points drawn within each budget of 4 or more, other points as one group; percentiles",
    Resample.cases: "bootstrap: points drawn; percentiles",
    Resample.sizes: "bootstrap: model sizes drawn, each with all its points; percentiles",
    Resample.seeds: "bootstrap: seeds drawn, each with all its points; percentiles",
    Resample.clusters: "bootstrap: clusters of points drawn; percentiles",
    Resample.bayesian: "Bayesian bootstrap: Dirichlet weights on the points; narrow with few points a budget",
    Resample.residuals: "bootstrap: residuals of Approach 3 drawn and laid on its fitted losses; percentiles",
    Resample.subsample: "80 % of the points without replacement; percentiles, which are too narrow",
}
SUBSAMPLE = 0.8  # Hoffmann et al. 2022, D.3
LEAST_STRATUM = 4
LEAST_GROUPS = 3
LEAST_REPLICATES = 20
"""Fewer give no interval."""
LEAST_OUTSIDE = 0.5  # replicates beyond an end: with fewer, percentiles are the extremes whatever the level


@dataclass(frozen=True, eq=False)
class Resamples:
    """What each replicate sees of the data."""

    weights: Floats
    """(replicates, n): how often each row counts."""
    shift: Floats | None = None
    """(replicates, n): what is added to each row's log loss; None for nothing."""
    shrunk: bool = True
    """Whether refits scatter less than those of new errors by what the design tells, which Approach 3 makes good; not
    where residuals are laid on all points, nor for Hoffmann's subsamples, which are taken as they are."""

    def __len__(self) -> int:
        return len(self.weights)

    def first(self, count: int) -> Resamples:
        """The first ``count`` of them, or all."""
        return Resamples(self.weights[:count], None if self.shift is None else self.shift[:count], self.shrunk)

    @property
    def leaves_out(self) -> bool:
        """Whether any replicate lacks any row: without that, and without a shift, an envelope never changes."""
        return bool((self.weights <= 0).any())


def resample(rows: Rows, how: Resample, replicates: int, seed: int, law: ParametricFit | None = None) -> Resamples:
    """Draw the replicates of a bootstrap.

    Parameters
    ----------
    rows
        n points.
    law
        Approach 3 on the rows; ``Resample.residuals`` needs it.

    Returns
    -------
    Resamples
        Weights are whole numbers, but for ``bayesian``, and those of a replicate sum to n, except where groups differ
        in size (``sizes``, ``seeds``, ``clusters``) and for ``subsample``.

    Raises
    ------
    UserError
        If what is to be drawn is not known, or there are too few of it.

    References
    ----------
    Rubin, "The Bayesian bootstrap", Ann. Statist. 9 (1981); Davison and Hinkley, "Bootstrap methods" (1997), ch. 6.
    """
    how = chosen(Resample, how, "fit.resample")
    rng, n = np.random.default_rng(seed), len(rows)
    match how:
        case Resample.budgets:
            weights = np.empty((replicates, n))
            for drawn in _strata(rows):
                weights[:, drawn] = _draw(rng, len(drawn), replicates)
        case Resample.cases:
            weights = _draw(rng, n, replicates)
        case Resample.bayesian:
            weights = n * rng.dirichlet(np.ones(n), size=replicates)
        case Resample.subsample:
            kept = np.argsort(rng.random((replicates, n)), axis=1) < round(SUBSAMPLE * n)
            return Resamples(kept.astype(np.float64), shrunk=False)
        case Resample.residuals:
            if law is None:
                raise UserError(
                    "fit.resample=residuals needs Approach 3, which these rows do not support; choose budgets."
                )
            return Resamples(np.ones((replicates, n)), _shifts(rng, law.residuals, law.free, replicates), False)
        case _:
            groups = _groups(rows, how)
            weights = _draw(rng, int(groups.max()) + 1, replicates)[:, groups]
    return Resamples(weights)


def percentile(
    values: Floats, point: float | None, level: float, scatter: Scatter | None = None, failed: int = 0
) -> Estimate:
    """``point`` with the central ``level`` interval of the replicates ``values`` (m,); too few of them give none.

    ``failed`` further replicates gave no value: they might lie anywhere, so they count as beyond both ends, and where
    they are more than the interval leaves out there is none. With ``scatter`` of measurements about the law, also the
    prediction interval: a measurement is the law of some replicate, off by the scatter.
    """
    values = values[np.isfinite(values)]
    lost = failed / max(1, failed + len(values))
    outside = ((1 - level) / 2 - lost) / (1 - lost) if lost < 1 else -1.0
    if len(values) < LEAST_REPLICATES or outside * len(values) < LEAST_OUTSIDE:
        return Estimate(value=point)
    tails = [outside, 1 - outside]
    low, high = np.quantile(values, tails)
    prediction = None
    if scatter is not None:
        with np.errstate(over="ignore"):
            first, last = np.quantile(values * np.exp(scatter.draw(values.shape)), tails)
        prediction = (float(min(first, low)), float(max(last, high)))  # whatever the luck of the draw
    return Estimate(value=point, low=float(low), high=float(high), prediction=prediction)


@dataclass(frozen=True, eq=False)
class Scatter:
    """How measurements scatter about a law: their log residuals, and the degrees of freedom left to them."""

    residuals: Floats
    freedom: float

    def draw(self, shape: tuple[int, ...], seed: int = 0) -> Floats:
        """Log residuals of new measurements.

        A residual is drawn, and its scale with it: few residuals hardly know it. For normal ones this is Student's t.
        """
        rng = np.random.default_rng(seed)
        scale = np.sqrt(len(self.residuals) / rng.chisquare(self.freedom, size=shape))
        return np.asarray(rng.choice(self.residuals, size=shape) * scale)


def scatter_of(residuals: Floats, fitted: int) -> Scatter | None:
    """The scatter of ``residuals`` after ``fitted`` parameters; None where too little is left to tell it by."""
    residuals = residuals[np.isfinite(residuals)]
    freedom = len(residuals) - fitted
    return Scatter(residuals, freedom) if freedom >= 1 else None


def _groups(rows: Rows, how: Resample) -> Ints:
    """(n,): the number of each row's size, seed or cluster."""
    if how is Resample.seeds and np.isnan(rows.seed).any():
        raise UserError("fit.resample=seeds: not every row states its seed; choose budgets, or map columns.seed.")
    known: dict[Resample, npt.NDArray[np.generic]] = {
        Resample.sizes: rows.params,
        Resample.seeds: rows.seed,
        Resample.clusters: np.array(rows.cluster_id),
    }
    groups: Ints = np.unique(known[how], return_inverse=True)[1].astype(np.int64)
    if groups.max() + 1 < LEAST_GROUPS:
        there = f"there are {groups.max() + 1} {how.value}, and drawing needs {LEAST_GROUPS}"
        raise UserError(f"fit.resample={how.value}: {there}; choose budgets.")
    return groups


def _shifts(rng: np.random.Generator, residuals: Floats, free: int, replicates: int) -> Floats:
    """Each residual replaced by another one; fitting ``free`` parameters has shrunk them."""
    n = len(residuals)
    grown = (residuals - residuals.mean()) * np.sqrt(n / max(1, n - free))
    return np.asarray(rng.choice(grown, size=(replicates, n)) - residuals)


def _draw(rng: np.random.Generator, count: int, replicates: int) -> Floats:
    return rng.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float64)


def _strata(rows: Rows) -> list[Ints]:
    shared = rows.shared_budgets(LEAST_STRATUM)
    strata = [np.flatnonzero(rows.budget == budget) for budget in shared]
    rest = np.flatnonzero(~np.isin(rows.budget, shared))
    return [*strata, rest] if len(rest) else strata
