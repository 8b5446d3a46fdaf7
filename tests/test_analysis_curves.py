from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from analysis_fits import plain_fit
from analysis_surfaces import rows_of
from hypothesis import given
from hypothesis import strategies as st

from analysis.fitting.values import Cost, Refused
from analysis.report.curves import CURVE_POINTS, MOST_CURVE_POINTS, MOST_CURVES, thinned, training_curves
from analysis.result import ConventionFit, Conventions


@given(
    st.integers(1, 3000),
    st.integers(4, 300),
    st.floats(0.0, 3.0),
    st.integers(0, 2**32 - 1),
)
def test_thinning_keeps_order_ends_and_extremes(n: int, most: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.log(np.arange(1.0, n + 1))
    y = -0.1 * x + noise * rng.standard_normal(n)
    kept = thinned(x, y, most)
    assert len(kept) <= max(most, min(n, most))
    assert (np.diff(kept) > 0).all()
    assert {kept[0], kept[-1]} == {0, n - 1}
    if n <= most:
        assert len(kept) == n


@given(st.integers(1, 9998), st.sampled_from([-1.0, 1.0]))
def test_a_spike_of_one_row_stays(at: int, sign: float) -> None:
    x = np.log(np.arange(1.0, 10_001))
    y = -0.05 * x
    y[at] += sign
    assert at in thinned(x, y, 200)


def test_a_plateau_and_the_step_to_it_stay() -> None:
    x = np.linspace(0, 10, 20_000)
    y = np.where(x < 3, 2.0, 1.0)
    kept = thinned(x, y, 150)
    drawn = np.interp(x, x[kept], y[kept])
    off = x[np.abs(drawn - y) > 0.01]
    assert np.ptp(off) < 2 * 10 / 148  # two buckets about the step, where the line falls
    assert abs(off.mean() - 3) < 10 / 148


def test_rows_at_one_value_are_no_fault() -> None:
    assert thinned(np.zeros(500), np.arange(500.0), 10).tolist() == [0, 498, 499]


def test_curves_keep_their_ends_and_the_rows_counting() -> None:
    fit = plain_fit().primary
    tokens = fit.rows.tokens[0] * np.linspace(0.001, 1, 5000)
    long = pd.DataFrame({"run_id": fit.rows.run_id[0], "tokens": tokens, "val_loss": 3.0, "train_loss": np.nan})
    (curve,) = training_curves(fit, long.sample(frac=1, random_state=0))
    assert 150 <= len(curve.flops) <= CURVE_POINTS
    assert curve.flops[[0, -1]] == pytest.approx(fit.rows.flops[0] * np.array([0.001, 1]))
    assert (np.diff(curve.flops) > 0).all()
    assert curve.params == fit.rows.params[0]
    assert curve.run_id == fit.rows.run_id[0]


def test_curves_use_training_losses_when_a_run_was_not_validated() -> None:
    fit = plain_fit().primary
    table = pd.DataFrame(
        {
            "run_id": np.repeat(fit.rows.run_id[:2], 3),
            "tokens": np.tile([1e9, 2e9, 3e9], 2),
            "val_loss": [3.0, 2.9, 2.8, np.nan, np.nan, np.nan],
            "train_loss": [4.0, 3.9, 3.8, 5.0, 4.9, 4.8],
        }
    )
    assert {float(curve.loss[0]) for curve in training_curves(fit, table)} == {4.0, 5.0}
    assert training_curves(fit, None) == []
    assert training_curves(fit, table.assign(run_id="someone else's")) == []
    assert training_curves(fit, table.iloc[[0, 3]].assign(val_loss=3.0)) == []  # one row each


def _many(count: int) -> ConventionFit:
    params = np.geomspace(1e6, 1e9, count)
    rows = rows_of(params, 20 * params, 120 * params**2, np.full(count, 3.0), budget=np.ones(count))
    no = Refused(reason="made up")
    conventions = Conventions(params="total", flops="6nd", loss="nats")
    refused = dict.fromkeys(("measured", "envelope", "isoflop", "parametric"), no)
    return ConventionFit(conventions=conventions, cost=Cost(), rows=rows, **refused)


@pytest.mark.parametrize("kind", ["object", "category"])
def test_five_thousand_runs_are_thinned_at_once(kind: str) -> None:
    fit, rows = _many(5000), 400
    names = np.array([f"c3e12-n55k-d5.4M-{i:08x}" for i in range(5000)], dtype=object)
    fit = replace(fit, rows=replace(fit.rows, run_id=tuple(names)))
    table = pd.DataFrame(
        {
            "run_id": pd.Series(np.repeat(names, rows), dtype=object).astype(kind),
            "tokens": np.outer(fit.rows.tokens, np.linspace(1 / rows, 1, rows)).ravel(),
            "train_loss": np.nan,
            "val_loss": np.tile(np.linspace(6, 3, rows), 5000),
        }
    )
    start = time.perf_counter()
    table["run_id"].map(dict.fromkeys(names, 1))  # one pass over the names, to measure by
    a_pass = time.perf_counter() - start
    start = time.perf_counter()
    drawn = training_curves(fit, table)
    assert time.perf_counter() - start < max(25 * a_pass, 1.5)
    assert len(drawn) == MOST_CURVES
    assert sum(len(curve.flops) for curve in drawn) <= MOST_CURVE_POINTS
    sizes = [curve.params for curve in drawn]
    assert sizes == sorted(sizes)
    assert {sizes[0], sizes[-1]} == {fit.rows.params[0], fit.rows.params[-1]}
