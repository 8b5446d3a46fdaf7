from __future__ import annotations

import numpy as np
import pytest
from analysis_surfaces import A_TRUE, cosine_curves, isoflop_design, n_star, surface

from analysis.envelope import Curves, fit_envelope, refit_envelope
from analysis.fits import EnvelopeFit, Refused

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


def test_a_winner_at_the_edge_of_the_sizes_is_censored() -> None:
    n = np.concatenate([n_star(budget) * 3 * 1.3 ** np.arange(6) for budget in BUDGETS])
    d = np.repeat(BUDGETS, 6) / 6 / n
    fit = fit_envelope(cosine_curves(n, d))
    assert isinstance(fit, Refused)
    assert "larger and smaller" in fit.reason


def test_a_later_row_at_the_same_flops_replaces_the_earlier() -> None:
    curves = _curves()
    ends = curves.progress == 1
    repeated = Curves(
        run_id=curves.run_id + tuple(np.array(curves.run_id)[ends]),
        **{
            name: np.concatenate([getattr(curves, name), getattr(curves, name)[ends] * (0.9 if name == "loss" else 1)])
            for name in ("params", "tokens", "flops", "loss", "progress")
        },
    )
    assert _fitted(repeated).loss.min() < 0.95 * _fitted(curves).loss.min()


def test_no_curves_and_too_few_runs_are_refused() -> None:
    empty = np.array([])
    none = fit_envelope(Curves(run_id=(), params=empty, tokens=empty, flops=empty, loss=empty, progress=empty))
    assert isinstance(none, Refused) and "no loss curves" in none.reason
    two = fit_envelope(cosine_curves(np.array([1e8, 2e8]), np.array([1e9, 1e9])))
    assert isinstance(two, Refused) and "2 run(s)" in two.reason


def test_one_budget_gives_no_exponent() -> None:
    n, d, _, loss = isoflop_design(np.array([1e20]), sizes=9)
    assert loss == pytest.approx(surface(n, d))
    fit = fit_envelope(cosine_curves(n, d))
    assert isinstance(fit, Refused) and "no exponent" in fit.reason


def test_refit_with_all_runs_is_near_the_fit_and_fewer_runs_scatter() -> None:
    curves = _curves()
    names = tuple(sorted(set(curves.run_id)))
    fit = _fitted(curves)
    rng = np.random.default_rng(0)
    present = rng.random((60, len(names))) < 0.63
    present[0] = True
    values = refit_envelope(curves, present, names)
    assert values[0, 1] == pytest.approx(fit.laws.params.exponent, abs=0.01)
    assert np.isfinite(values[:, 1]).all()
    assert 0.001 < np.std(values[1:, 1]) < 0.1


def test_refit_marks_replicates_without_exponent() -> None:
    curves = _curves()
    names = tuple(sorted(set(curves.run_id)))
    values = refit_envelope(curves, np.zeros((3, len(names)), dtype=bool), names)
    assert np.isnan(values).all()
