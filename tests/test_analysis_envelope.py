from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis_surfaces import A_TRUE, cosine_curves, isoflop_design, n_star, surface
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.fitting.curves import Curves, Tails
from analysis.fitting.envelope import Envelopes, fit_envelope, refit_envelope
from analysis.fitting.values import EnvelopeFit, Refused

BUDGETS = np.geomspace(1e18, 1e21, 7)


def _curves(sizes: int = 15, spacing: float = 1.2) -> Curves:
    n, d, _, _ = isoflop_design(BUDGETS, sizes=sizes, spacing=spacing)
    return cosine_curves(n, d)


def _fitted(curves: Curves, tail: float = 0.85) -> EnvelopeFit:
    fit = fit_envelope(curves, tail=tail)
    assert isinstance(fit, EnvelopeFit)
    return fit


def test_isoflop_curves_give_the_exponent() -> None:
    fit = _fitted(_curves())
    assert fit.laws.params.exponent == pytest.approx(A_TRUE, abs=0.02)
    assert fit.laws.params.exponent + fit.laws.tokens.exponent == pytest.approx(1, abs=0.01)
    assert float(fit.laws.params(1e19) / n_star(np.array(1e19))) == pytest.approx(1, abs=0.15)
    assert fit.runs == 105
    assert len(BUDGETS) <= fit.runs_touching <= 3 * len(BUDGETS)
    assert len(fit.flops) == len(fit.params) == len(fit.tokens) == len(fit.loss) == len(fit.run_id)
    assert fit.flops * 1 == pytest.approx(6 * fit.params * fit.tokens, rel=1e-3)
    assert (np.diff(fit.loss) <= 0).all()


def test_only_the_windows_below_each_budget_count() -> None:
    fit = _fitted(_curves())
    share = fit.flops[:, None] / BUDGETS
    assert (((share > 0.849) & (share < 1.001)).any(axis=1)).all()


def test_undecayed_rows_change_the_answer() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e8, 1e10, 12), np.geomspace(1e9, 1e11, 6)))
    decayed, everything = _fitted(cosine_curves(n, d)), _fitted(cosine_curves(n, d), tail=0.0)
    assert everything.laws.params.exponent != pytest.approx(decayed.laws.params.exponent, abs=0.01)


@pytest.mark.parametrize("first", [3, 1 / 3 / 1.3**5])
def test_a_winner_at_the_edge_of_the_sizes_is_censored(first: float) -> None:
    n = np.concatenate([n_star(budget) * first * 1.3 ** np.arange(6) for budget in BUDGETS])
    d = np.repeat(BUDGETS, 6) / 6 / n
    fit = fit_envelope(cosine_curves(n, d))
    assert isinstance(fit, Refused)
    assert "larger and smaller" in fit.reason


def test_a_run_with_one_row_in_its_tail_is_left_out() -> None:
    curves = _curves()
    last = np.flatnonzero((curves.run == 40) & (curves.progress < 1))
    rows = np.setdiff1d(np.arange(len(curves.run)), last)
    fewer = replace(
        curves, **{name: getattr(curves, name)[rows] for name in ("run", "tokens", "flops", "loss", "progress")}
    )
    without = curves.of_runs([name for name in curves.names if name != curves.names[40]])
    assert _fitted(fewer).runs == 104
    assert _fitted(fewer).laws == _fitted(without).laws


def test_a_later_row_at_the_same_flops_replaces_the_earlier() -> None:
    curves = _curves()
    ends = curves.progress == 1
    repeated = replace(
        curves,
        **{
            name: np.concatenate([getattr(curves, name), getattr(curves, name)[ends] * (0.9 if name == "loss" else 1)])
            for name in ("run", "tokens", "flops", "loss", "progress")
        },
    )
    assert _fitted(repeated).loss.min() < 0.95 * _fitted(curves).loss.min()


def test_no_curves_and_too_few_runs_are_refused() -> None:
    empty = np.array([])
    none = fit_envelope(Curves.of_rows(run_id=(), params=empty, tokens=empty, flops=empty, loss=empty, progress=empty))
    assert isinstance(none, Refused) and "no loss curves" in none.reason
    two = fit_envelope(cosine_curves(np.array([1e8, 2e8]), np.array([1e9, 1e9])))
    assert isinstance(two, Refused) and "2 run(s)" in two.reason


def test_one_budget_gives_no_exponent() -> None:
    n, d, _, loss = isoflop_design(np.array([1e20]), sizes=9)
    assert loss == pytest.approx(surface(n, d))
    fit = fit_envelope(cosine_curves(n, d))
    assert isinstance(fit, Refused) and "no exponent" in fit.reason


def _with_lr(curves: Curves, end: np.ndarray) -> Curves:
    """Linear decay to ``end`` (runs,), as a share of the peak after warm-up; NaN where it is not known."""
    return replace(curves, lr=3e-4 * (1 - (1 - end[curves.run]) * curves.progress))


def test_runs_that_never_decayed_are_left_out_and_counted() -> None:
    """A constant learning rate leaves the loss higher, except where it lies: these must not be compared."""
    curves = _curves()
    end = np.full(len(curves.names), 0.1)
    end[::5] = 1.0
    end[1::5] = np.nan
    never = end[curves.run] == 1
    mixed = _with_lr(replace(curves, loss=curves.loss * np.where(never, 0.97, 1)), end)
    fit, everyone = _fitted(mixed), fit_envelope(mixed, undecayed=True)
    assert isinstance(everyone, EnvelopeFit)
    assert (fit.undecayed, fit.runs) == (21, 84) and (everyone.undecayed, everyone.runs) == (0, 105)
    left_out = set(np.array(curves.names)[::5])
    assert not left_out & set(fit.run_id) and left_out & set(everyone.run_id)
    present = np.ones((1, len(curves.names)), dtype=bool)
    for undecayed, whole in ((False, fit), (True, everyone)):
        values, curvature = refit_envelope(mixed, present, curves.names, undecayed=undecayed)
        assert values[0, 1] == pytest.approx(whole.laws.params.exponent, abs=0.01)
        assert curvature[0] == pytest.approx(whole.curvature, abs=0.02)


def test_curves_that_never_decayed_are_refused_with_the_way_out() -> None:
    curves = _curves()
    fit = fit_envelope(_with_lr(curves, np.ones(len(curves.names))))
    assert isinstance(fit, Refused)
    assert fit.reason == (
        "0 run(s) have two or more rows at progress 0.85 or later, and 3 are needed; 105 never decayed "
        "(fit.undecayed=true counts them)."
    )
    assert isinstance(fit_envelope(_with_lr(curves, np.ones(len(curves.names))), undecayed=True), EnvelopeFit)


@pytest.mark.parametrize("end, never", [(0.1, False), (0.49, False), (0.51, True), (1.0, True)])
def test_half_of_the_largest_learning_rate_is_the_limit(end: float, never: bool) -> None:
    curves = _with_lr(cosine_curves(np.array([1e8]), np.array([1e9])), np.array([end]))
    assert curves.undecayed(0.85).tolist() == [never]


def test_a_learning_rate_that_is_not_known_at_the_end_condemns_no_run() -> None:
    """Stopped early, logged once only, or a last row taken from the point: no evidence."""
    curves = _with_lr(cosine_curves(np.array([1e8]), np.array([1e9])), np.array([1.0]))
    assert curves.lr is not None
    for known in (curves.progress < 0.8, curves.progress == 1, np.zeros(40, dtype=bool)):
        assert not replace(curves, lr=np.where(known, curves.lr, np.nan)).undecayed(0.85).any()
    assert replace(curves, lr=np.where(curves.progress < 0.95, curves.lr, np.nan)).undecayed(0.85).all()
    assert not replace(curves, lr=None).undecayed(0.85).any()


def test_curvature_is_that_of_the_frontier() -> None:
    """Sizes that win are laid on a parabola in logs; a power law has none."""
    budgets = np.geomspace(1e18, 1e22, 60)
    x = np.log(budgets / 1e20)
    for bend in (0.0, 0.06, -0.06):
        best = 1e9 * np.exp(0.5 * x + bend / 2 * x**2)
        n = np.outer(best, 1.15 ** np.arange(-4, 5)).ravel()
        d = np.repeat(budgets, 9) / 6 / n
        curves = cosine_curves(n, d)
        away = np.log(n / np.repeat(best, 9))[curves.run]
        fit = _fitted(replace(curves, loss=3 * curves.flops**-0.05 * (1 + away**2) + 0.3 * (1 - curves.progress)))
        assert fit.curvature == pytest.approx(bend, abs=0.005)
        present = np.random.default_rng(0).random((40, len(n))) < 0.7
        _, curvature = refit_envelope(curves, present, curves.names)
        assert np.isfinite(curvature).all()


def test_rows_in_any_order_are_the_same_curves() -> None:
    curves = _curves()
    shuffled = np.random.default_rng(0).permutation(len(curves.run))
    again = Curves.of_rows(
        run_id=np.array(curves.names)[curves.run][shuffled],
        params=curves.params[curves.run][shuffled],
        tokens=curves.tokens[shuffled],
        flops=curves.flops[shuffled],
        loss=curves.loss[shuffled],
        progress=curves.progress[shuffled],
    )
    assert again.names != curves.names and sorted(again.names) == sorted(curves.names)
    assert _fitted(again).laws == _fitted(curves).laws
    assert _fitted(again).run_id == _fitted(curves).run_id


def test_of_runs_keeps_the_rows_of_some() -> None:
    curves = _with_lr(_curves(), np.full(105, 0.1))
    kept = curves.of_runs(curves.names[15:90])
    assert _fitted(kept).runs == 75
    few = np.isin(np.arange(105), np.arange(15, 90))[None]
    assert refit_envelope(kept, few, curves.names)[0] == pytest.approx(
        refit_envelope(kept, few[:, 15:90], kept.names[15:90])[0]
    )
    assert isinstance(fit_envelope(curves.of_runs([])), Refused)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), runs=st.integers(3, 25))
def test_the_envelope_is_the_lowest_of_the_interpolated_curves(seed: int, runs: int) -> None:
    """Against every run's curve by np.interp, at each C, one by one; drawn and moved ones too."""
    rng = np.random.default_rng(seed)
    curves = cosine_curves(np.exp(rng.uniform(18, 21, runs)), np.exp(rng.uniform(21, 23, runs)), rows=12)
    curves = replace(curves, loss=curves.loss * np.exp(0.02 * rng.standard_normal(len(curves.run))))
    tails = Tails.of(curves, 0.3, np.ones(runs, dtype=bool))
    grid = tails.grid(80)
    present, shift = rng.random((6, runs)) < 0.6, 0.05 * rng.standard_normal((6, runs))
    found = Envelopes.of(tails, grid).lowest(present, shift)
    for i in range(6):
        table = np.full((runs, 80), np.inf)
        for run in np.flatnonzero(present[i]):
            rows = slice(tails.starts[run], tails.starts[run + 1])
            table[run] = np.interp(grid, tails.log_flops[rows], tails.loss[rows], np.inf, np.inf) * np.exp(
                shift[i, run]
            )
        lowest = table.min(axis=0)
        assert np.exp(found.log_loss[i]) == pytest.approx(lowest)
        passed = np.isfinite(lowest)
        assert (found.run[i] == table.argmin(axis=0))[passed].all()
        assert (found.frontier[i] == (passed & (lowest <= np.minimum.accumulate(lowest)))).all()


def test_refit_with_all_runs_is_near_the_fit_and_fewer_runs_scatter() -> None:
    curves = _curves()
    names = curves.names
    fit = _fitted(curves)
    rng = np.random.default_rng(0)
    present = rng.random((60, len(names))) < 0.63
    present[0] = True
    values, _ = refit_envelope(curves, present, names)
    assert values[0, 1] == pytest.approx(fit.laws.params.exponent, abs=0.01)
    assert np.isfinite(values[:, 1]).all()
    assert 0.001 < np.std(values[1:, 1]) < 0.1


def test_a_shift_moves_a_runs_whole_tail() -> None:
    curves = _curves()
    shift = 0.004 * np.random.default_rng(3).standard_normal((3, len(curves.names)))
    shift[0] = 0
    values, curvature = refit_envelope(curves, np.ones_like(shift, dtype=bool), curves.names, shift=shift)
    for i in range(3):
        moved = replace(curves, loss=curves.loss * np.exp(shift[i])[curves.run])
        alone = refit_envelope(moved, np.ones((1, len(curves.names)), dtype=bool), curves.names)
        assert values[i] == pytest.approx(alone[0][0], rel=1e-9)
        assert curvature[i] == pytest.approx(alone[1][0], rel=1e-6)
    assert np.ptp(values[:, 1]) > 1e-3


def test_refit_marks_replicates_without_exponent() -> None:
    curves = _curves()
    names = curves.names
    values, curvature = refit_envelope(curves, np.zeros((3, len(names)), dtype=bool), names)
    assert np.isnan(values).all() and np.isnan(curvature).all()
    assert refit_envelope(curves, np.zeros((0, len(names)), dtype=bool), names)[0].shape == (0, 6)
    values, _ = refit_envelope(curves, np.ones((2, 2), dtype=bool), names[:2])
    assert values.shape == (2, 6) and np.isnan(values).all()
