from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analysis_surfaces import A_TRUE, isoflop_design, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.approaches import Surface
from analysis.config import Form, Resample
from analysis.fitting.bootstrap import Scatter, percentile, resample, scatter_of
from analysis.fitting.isoflop import fit_isoflop, group_budgets, refit_isoflop
from analysis.fitting.parametric import fit_parametric, refit_parametric
from analysis.fitting.unshrunk import unshrunk
from analysis.fitting.values import IsoflopFit, ParametricFit, Rows
from analysis.ingest.files import read_file
from trainer.errors import UserError

BUDGET = np.array([1.0] * 5 + [2.0] * 6 + [3.0, 4.0, 4.0])
SIZES = np.array([1.0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5])
SEEDS = np.array([0.0, 1, 2] * 4 + [0, 1])


def made_up(**columns: object) -> Rows:
    n = len(BUDGET)
    return rows_of(SIZES, np.ones(n), BUDGET, np.full(n, 2.0), budget=BUDGET, **({"seed": SEEDS} | columns))


def test_budgets_never_vanish_and_singles_are_drawn_together() -> None:
    weights = resample(made_up(), Resample.budgets, 500, 0).weights
    assert weights.shape == (500, 14)
    assert (weights[:, :5].sum(axis=1) == 5).all()
    assert (weights[:, 5:11].sum(axis=1) == 6).all()
    assert (weights[:, 11:].sum(axis=1) == 3).all()
    assert (weights[:, 11] == 0).any()


def test_cases_are_plain_counts() -> None:
    weights = resample(made_up(), Resample.cases, 4000, 0).weights
    assert (weights.sum(axis=1) == 14).all()
    assert (weights[:, :5].sum(axis=1) == 0).any()
    assert weights.mean(axis=0) == pytest.approx(np.ones(14), abs=0.06)
    assert weights.var(axis=0) == pytest.approx(np.full(14, 13 / 14), rel=0.1)


@pytest.mark.parametrize(
    ("how", "groups"),
    [(Resample.sizes, SIZES), (Resample.seeds, SEEDS), (Resample.clusters, np.array([*"ababcccdddeeee"]))],
)
def test_what_shares_a_size_a_seed_or_a_cluster_is_drawn_together(how: Resample, groups: np.ndarray) -> None:
    rows = made_up(cluster_id=tuple(map(str, groups)))
    weights = resample(rows, how, 200, 0).weights
    names = np.unique(groups)
    first = np.array([np.flatnonzero(groups == name)[0] for name in names])
    for name, at in zip(names, first, strict=True):
        assert (weights[:, groups == name] == weights[:, [at]]).all()
    assert (weights[:, first].sum(axis=1) == len(names)).all()
    assert (weights[:, first] == 0).any() and (weights[:, first] == 2).any()


def test_bayesian_weights_are_dirichlet_and_leave_nothing_out() -> None:
    drawn = resample(made_up(), Resample.bayesian, 6000, 0)
    assert drawn.weights.sum(axis=1) == pytest.approx(np.full(6000, 14.0))
    assert drawn.weights.min() > 0 and not drawn.leaves_out
    assert drawn.weights.var(axis=0) == pytest.approx(np.full(14, 13 / 15), rel=0.1)


def test_a_subsample_is_eighty_percent_once_each() -> None:
    weights = resample(made_up(), Resample.subsample, 300, 0).weights
    assert set(np.unique(weights)) == {0.0, 1.0}
    assert (weights.sum(axis=1) == 11).all()


def test_residuals_are_laid_on_the_fitted_losses() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 2), noise=0.01)
    law = fit_parametric(n, d, loss)
    assert isinstance(law, ParametricFit)
    residuals = np.linspace(-0.02, 0.03, 14)
    drawn = resample(made_up(), Resample.residuals, 3000, 0, replace(law, residuals=residuals))
    assert drawn.shift is not None and (drawn.weights == 1).all()
    laid = drawn.shift + residuals
    assert len(np.unique(laid.round(12))) == 14
    assert laid.mean() == pytest.approx(0, abs=3e-4)
    assert laid.std() == pytest.approx(residuals.std() * np.sqrt(14 / 9), rel=0.02)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match=r"fit\.resample=seeds: not every row states its seed; choose budgets"):
        resample(made_up(seed=np.full(14, np.nan)), Resample.seeds, 10, 0)
    with pytest.raises(UserError, match=r"fit\.resample=clusters: there are 2 clusters, and drawing needs 3"):
        resample(made_up(cluster_id=("a", "b") * 7), Resample.clusters, 10, 0)
    with pytest.raises(UserError, match=r"fit\.resample=residuals needs Approach 3"):
        resample(made_up(), Resample.residuals, 10, 0)


def test_a_way_to_draw_may_be_its_name() -> None:
    named, plain = resample(made_up(), "sizes", 20, 0), resample(made_up(), Resample.sizes, 20, 0)  # type: ignore[arg-type]
    assert (named.weights == plain.weights).all()
    with pytest.raises(UserError, match=r"fit\.resample=size"):
        resample(made_up(), "size", 20, 0)  # type: ignore[arg-type]


def test_a_seed_repeats() -> None:
    for how in (Resample.budgets, Resample.bayesian, Resample.subsample):
        first, again, other = (resample(made_up(), how, 20, seed).weights for seed in (1, 1, 2))
        assert (first == again).all() and (first != other).any()


def test_percentiles() -> None:
    estimate = percentile(np.append(np.arange(101.0), np.nan), 50.0, 0.9)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((50, 5, 95))
    assert estimate.prediction is None
    assert percentile(np.arange(19.0), 3.0, 0.9).low is None


def test_failed_replicates_count_as_beyond_both_ends() -> None:
    values = np.linspace(0, 1, 960)
    whole, some = percentile(values, 0.5, 0.9), percentile(values, 0.5, 0.9, failed=40)
    assert (whole.low, whole.high) == pytest.approx((0.05, 0.95), abs=1e-3)
    assert (some.low, some.high) == pytest.approx((0.01 / 0.96, 1 - 0.01 / 0.96), abs=1e-3)
    assert percentile(values, 0.5, 0.9, failed=60).low is None
    assert percentile(np.empty(0), 0.5, 0.9, failed=60).low is None


def test_a_prediction_holds_the_scatter_of_measurements_besides() -> None:
    rng = np.random.default_rng(0)
    refits = np.exp(0.03 * rng.standard_normal(20_000))
    estimate = percentile(refits, 1.0, 0.9, Scatter(0.04 * rng.standard_normal(2000), 1995))
    assert estimate.low is not None and estimate.prediction is not None
    assert np.log(estimate.low) == pytest.approx(-1.645 * 0.03, rel=0.05)
    assert np.log(estimate.prediction) == pytest.approx([-1.645 * 0.05, 1.645 * 0.05], rel=0.05)


@given(st.integers(3, 60), st.integers(1, 2))
@settings(max_examples=20)
def test_few_residuals_make_wide_predictions(count: int, fitted: int) -> None:
    """Of normal residuals the draws are at least as wide as normal ones, on average over samples."""
    widths = []
    for seed in range(200):
        noise = np.random.default_rng(seed).standard_normal(count) * np.sqrt((count - fitted) / count)
        scatter = scatter_of(noise, fitted)
        assert scatter is not None
        widths.append(np.mean(np.abs(scatter.draw((400,), seed)) > 1))
    assert np.mean(widths) > 0.30  # a standard normal has .317 beyond 1, and t more
    assert scatter_of(np.zeros(2), 2) is None


def test_intervals_of_hoffmanns_points_by_what_is_drawn(shared_data: Path) -> None:
    """95 % intervals of a on Epoch's 240 rows: a subsample of 80 % is much too narrow, the bootstraps agree."""
    source = read_file(shared_data / "chinchilla_fig4_left_epoch.csv").points.query("epoch_fit_sample == 1")
    n, d, c, loss = (source[name].to_numpy() for name in ("params_total", "tokens", "flops_logged", "loss"))
    rows = rows_of(n, d, c, loss, budget=group_budgets(c))
    law = fit_parametric(n, d, loss)
    assert isinstance(law, ParametricFit)
    expected = {
        Resample.subsample: (0.503, 0.526),
        Resample.cases: (0.492, 0.543),
        Resample.bayesian: (0.493, 0.541),
    }
    for how, (low, high) in expected.items():
        theta, good = refit_parametric(n, d, loss, resample(rows, how, 2000, 1).weights, law)
        a = (theta[:, 4] / (theta[:, 3] + theta[:, 4]))[good]
        tails = [0.1, 0.9] if how is Resample.subsample else [0.025, 0.975]
        assert np.quantile(a, tails) == pytest.approx([low, high], abs=0.016), how


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """90 % intervals over 40 made-up sweeps; a binomial of 40 at .9 lies below 31 once in 200 tries.

    The Bayesian bootstrap of seven points a valley is known to be a little narrow.
    """
    ways = (Resample.budgets, Resample.bayesian, Resample.residuals)
    inside = {(name, how): 0 for name in ("isoflop", "parametric") for how in ways}
    for seed in range(40):
        n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, 4), noise=0.003, seed=seed)
        rows = rows_of(n, d, flops, loss, budget=group_budgets(flops))
        valleys, law = fit_isoflop(n, d, flops, loss, rows.budget), fit_parametric(n, d, loss)
        assert isinstance(valleys, IsoflopFit) and isinstance(law, ParametricFit)
        for how in ways:
            drawn = resample(rows, how, 150, seed, law)
            theta, good = refit_parametric(n, d, loss, drawn.weights, law, shift=drawn.shift)
            minima, _ = refit_isoflop(n, d, loss, drawn.weights, valleys, shift=drawn.shift)
            values = {"isoflop": minima[:, 1], "parametric": (theta[:, 4] / (theta[:, 3] + theta[:, 4]))[good]}
            for name, many in values.items():
                low, high = np.nanquantile(many, [0.05, 0.95])
                inside[name, how] += bool(low <= A_TRUE <= high)
    for (_, how), count in inside.items():
        assert count >= (28 if how is Resample.bayesian else 31), inside


def _small_sweep(seed: int = 0, sizes: int = 4) -> tuple[Rows, ParametricFit]:
    n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, 12), sizes=sizes, noise=0.002, seed=seed)
    law = fit_parametric(n, d, loss, objective="squared")
    assert isinstance(law, ParametricFit)
    return rows_of(n, d, flops, loss, budget=group_budgets(flops)), law


def _refits(rows: Rows, law: ParametricFit, weights: np.ndarray) -> np.ndarray:
    theta, good = refit_parametric(rows.params, rows.tokens, rows.loss, weights, law)
    assert good.all()
    return theta


def test_points_drawn_within_small_budgets_scatter_as_new_errors_do() -> None:
    """Four points a budget lose a quarter of the variance; one group of all hardly any."""
    rows, law = _small_sweep()
    for how, kept in ((Resample.budgets, 3 / 4), (Resample.cases, 47 / 48)):
        weights = resample(rows, how, 4000, 0).weights
        theta = _refits(rows, law, weights)
        wider = unshrunk(rows.params, rows.tokens, rows.loss, weights, theta, law)
        off, more = (each[:, 3:] - law.array()[3:] for each in (theta, wider))
        assert np.sqrt(np.mean(more**2, axis=0) / np.mean(off**2, axis=0)) == pytest.approx(kept**-0.5, rel=0.03), how


def test_held_parameters_stay_held_and_laws_stay_laws() -> None:
    rows, _ = _small_sweep()
    weights = resample(rows, Resample.budgets, 300, 0).weights
    for form, held in ((Form.tied, None), (Form.fixed_E, 1.7)):
        law = fit_parametric(rows.params, rows.tokens, rows.loss, form=form, E=held)
        assert isinstance(law, ParametricFit)
        wider = unshrunk(rows.params, rows.tokens, rows.loss, weights, _refits(rows, law, weights), law)
        if held is None:
            assert wider[:, 3] == pytest.approx(wider[:, 4], rel=1e-9)
        else:
            assert np.exp(wider[:, 2]) == pytest.approx(np.full(300, held))
        assert np.std(wider[:, 3]) > 0
    few, _ = _small_sweep(sizes=3)
    noisy = few.loss * np.exp(0.3 * np.random.default_rng(0).standard_normal(len(few)))
    weights = resample(few, Resample.cases, 400, 0).weights
    start = fit_parametric(few.params, few.tokens, noisy)
    assert isinstance(start, ParametricFit)
    theta, good = refit_parametric(few.params, few.tokens, noisy, weights, start)
    wider = unshrunk(few.params, few.tokens, noisy, weights, theta[good], start)
    assert np.isfinite(wider).all() and (wider[:, 3:] > 0).all()


def test_only_drawn_points_are_made_good() -> None:
    """Residuals are blown up when they are drawn, and Hoffmann's subsample is shown as narrow as it is."""
    rows, law = _small_sweep()
    for how in (Resample.residuals, Resample.subsample):
        drawn = resample(rows, how, 50, 0, law)
        theta, _ = refit_parametric(rows.params, rows.tokens, rows.loss, drawn.weights, law, shift=drawn.shift)
        assert np.array_equal(Surface.of(rows, law, drawn).replicates.values, theta), how
        assert not drawn.first(10).shrunk
    drawn = resample(rows, Resample.budgets, 50, 0)
    theta = _refits(rows, law, drawn.weights)
    wider = Surface.of(rows, law, drawn).replicates.values
    assert np.std(wider[:, 3]) > 1.1 * np.std(theta[:, 3])
