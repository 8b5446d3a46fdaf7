"""The same case resamples through all three approaches, and percentile intervals of what comes out.

A resample is a row of weights: how often each point was drawn. The design is fixed, so by default points are drawn
within their budget: no budget vanishes from a resample, as it often would with five points each. Points that share a
cluster (horizons cut from one trunk, seeds of one size) can be drawn together instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.config import Resample
from analysis.fits import Floats, Ints
from analysis.result import Estimate, Rows

METHODS = {
    Resample.budgets: "bootstrap: points drawn within each budget of 4 or more, other points as one group; percentiles",
    Resample.cases: "bootstrap: points drawn; percentiles",
    Resample.clusters: "bootstrap: clusters of points drawn; percentiles",
}
LEAST_STRATUM = 4
LEAST_REPLICATES = 20
"""Fewer give no interval."""


def resample(groups: npt.NDArray[np.generic], how: Resample, replicates: int, seed: int) -> Floats:
    """Weights of each row in each replicate.

    Parameters
    ----------
    groups
        (n,): each row's budget or cluster; ignored for ``cases``.

    Returns
    -------
    (replicates, n), whole numbers; those of a replicate sum to n, except where clusters differ in size.
    """
    rng = np.random.default_rng(seed)
    index = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    if how is Resample.clusters:
        return _draw(rng, int(index.max()) + 1, replicates)[:, index]
    if how is Resample.cases:
        return _draw(rng, len(groups), replicates)
    out = np.empty((replicates, len(groups)))
    for rows in _strata(index):
        out[:, rows] = _draw(rng, len(rows), replicates)
    return out


def groups_drawn(rows: Rows, how: Resample) -> npt.NDArray[np.generic]:
    """(n,): each row's cluster where clusters are drawn, else its budget: the ``groups`` of :func:`resample`."""
    return np.array(rows.cluster_id) if how is Resample.clusters else rows.budget


def percentile(values: Floats, point: float | None, level: float) -> Estimate:
    """``point`` with the central ``level`` interval of the replicates ``values`` (m,); too few of them give none."""
    values = values[np.isfinite(values)]
    if len(values) < LEAST_REPLICATES:
        return Estimate(value=point)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=point, low=float(low), high=float(high))


def _draw(rng: np.random.Generator, count: int, replicates: int) -> Floats:
    return rng.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float64)


def _strata(index: Ints) -> list[Ints]:
    sizes = np.bincount(index)
    strata = [np.flatnonzero(index == group) for group in np.flatnonzero(sizes >= LEAST_STRATUM)]
    rest = np.flatnonzero(sizes[index] < LEAST_STRATUM)
    return [*strata, rest] if len(rest) else strata
