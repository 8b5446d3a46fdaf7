from __future__ import annotations

import numpy as np
import pytest
from analysis_surfaces import A_TRUE, isoflop_design

from analysis.bootstrap import percentile, resample
from analysis.config import Resample
from analysis.fits import IsoflopFit, ParametricFit
from analysis.isoflop import fit_isoflop, group_budgets, refit_isoflop
from analysis.parametric import fit_parametric, refit_parametric

GROUPS = np.array([1.0] * 5 + [2.0] * 6 + [3.0, 4.0, 4.0])


def test_budgets_never_vanish_and_singles_are_drawn_together() -> None:
    weights = resample(GROUPS, Resample.budgets, 500, 0)
    assert weights.shape == (500, 14)
    assert (weights[:, :5].sum(axis=1) == 5).all()
    assert (weights[:, 5:11].sum(axis=1) == 6).all()
    assert (weights[:, 11:].sum(axis=1) == 3).all()
    assert (weights[:, 11] == 0).any()


def test_cases_are_plain_counts() -> None:
    weights = resample(GROUPS, Resample.cases, 4000, 0)
    assert (weights.sum(axis=1) == 14).all()
    assert (weights[:, :5].sum(axis=1) == 0).any()
    assert weights.mean(axis=0) == pytest.approx(np.ones(14), abs=0.06)
    assert weights.var(axis=0) == pytest.approx(np.full(14, 13 / 14), rel=0.1)


def test_clusters_move_together() -> None:
    weights = resample(np.array(["a", "b", "a", "c", "b"]), Resample.clusters, 100, 0)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_a_seed_repeats() -> None:
    first, again, other = (resample(GROUPS, Resample.budgets, 20, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_percentiles() -> None:
    estimate = percentile(np.append(np.arange(101.0), np.nan), 50.0, 0.9)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((50, 5, 95))
    assert percentile(np.arange(19.0), 3.0, 0.9).low is None


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """90 % intervals over 40 made-up sweeps; a binomial of 40 at .9 lies below 31 once in 200 tries."""
    inside = {"isoflop": 0, "parametric": 0}
    for seed in range(40):
        n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, 4), noise=0.003, seed=seed)
        budget = group_budgets(flops)
        weights = resample(budget, Resample.budgets, 150, seed)
        valleys, law = fit_isoflop(n, d, flops, loss, budget), fit_parametric(n, d, loss)
        assert isinstance(valleys, IsoflopFit) and isinstance(law, ParametricFit)
        theta, good = refit_parametric(n, d, loss, weights, law)
        values = {
            "isoflop": refit_isoflop(n, d, loss, weights, valleys)[0][:, 1],
            "parametric": (theta[:, 4] / (theta[:, 3] + theta[:, 4]))[good],
        }
        for name, many in values.items():
            low, high = np.nanquantile(many, [0.05, 0.95])
            inside[name] += bool(low <= A_TRUE <= high)
    assert min(inside.values()) >= 31, inside
