from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_surfaces import ALPHA, BETA, A, B, E, isoflop_design, surface, tables
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from analysis.config import FitConfig, Form, Objective
from analysis.fit import fit_tables
from analysis.fitting.newton import Expansion, Problems, minimise
from analysis.fitting.optimum import exponents, fit_cost, optimum, optimum_for_params, optimum_for_tokens
from analysis.fitting.parametric import basis_of, fit_parametric, objective, refit_parametric
from analysis.fitting.values import Cost, ParametricFit, Refused
from analysis.laws.law import find_law
from analysis.report import latex
from analysis.report.card import above_text, fit_card
from trainer.errors import UserError

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def _rows(table: pd.DataFrame) -> Rows:
    n, d, loss = (table[name].to_numpy(copy=True) for name in ("params", "tokens", "loss"))
    return n, d, loss


@pytest.fixture(scope="module")
def epoch245(shared_data: Path) -> pd.DataFrame:
    return pd.read_csv(shared_data / "chinchilla_fig4_left_epoch.csv")


@pytest.fixture(scope="module")
def epoch240(epoch245: pd.DataFrame) -> Rows:
    return _rows(epoch245[epoch245["epoch_fit_sample"] == 1])


def _fitted(rows: Rows, **options: Any) -> ParametricFit:
    fit = fit_parametric(*rows, **options)
    assert isinstance(fit, ParametricFit)
    return fit


def test_chinchilla_optimum(epoch240: Rows) -> None:
    fit = _fitted(epoch240)
    assert fit.objective == pytest.approx(1.0182740178006e-3, rel=1e-12)
    assert pytest.approx((477.8259, 2143.417), rel=1e-6) == (fit.A, fit.B)
    assert (fit.E, fit.alpha, fit.beta) == pytest.approx((1.817218, 0.3473105, 0.3671724), rel=1e-6)
    assert fit.beta / (fit.alpha + fit.beta) == pytest.approx(0.5139, abs=5e-5)
    proof = fit.certificate
    assert proof.converged and proof.gradient_norm < 1e-10
    assert proof.starts_agreeing == proof.starts == 12
    assert proof.unidentified == ()


@pytest.mark.parametrize(("delta", "a"), [(1e-1, 0.530), (1e-2, 0.518), (1e-3, 0.514), (1e-4, 0.513)])
def test_the_exponent_moves_little_with_delta(epoch240: Rows, delta: float, a: float) -> None:
    fit = _fitted(epoch240, delta=delta)
    assert fit.beta / (fit.alpha + fit.beta) == pytest.approx(a, abs=5e-4)
    assert fit.certificate.converged and fit.certificate.starts_agreeing == 12


def test_least_absolute_deviations_are_what_besiroglu_print(epoch240: Rows) -> None:
    fit = _fitted(epoch240, objective=Objective.lad)
    assert pytest.approx((482.006, 2085.434), rel=2e-6) == (fit.A, fit.B)
    assert (fit.E, fit.alpha, fit.beta) == pytest.approx((1.81686, 0.3478, 0.3658), abs=6e-5)
    assert fit.how is Objective.lad and fit.delta <= 1e-8
    assert fit.certificate.converged and fit.certificate.starts_agreeing == 12
    assert np.sum(np.abs(fit.residuals) < 1e-7) == 5, "five parameters go through five points"
    between = _fitted(epoch240, delta=1e-5)
    assert pytest.approx((481.39, 2081.38), rel=1e-5) == (between.A, between.B)


def test_five_outliers_move_beta(epoch245: pd.DataFrame) -> None:
    fit = _fitted(_rows(epoch245))
    assert pytest.approx((495.73, 12845.6), rel=1e-5) == (fit.A, fit.B)
    assert (fit.E, fit.alpha, fit.beta) == pytest.approx((1.8913, 0.3493, 0.4531), abs=6e-5)
    assert fit.objective == pytest.approx(1.82601e-3, rel=1e-5)


def test_objective_of_published_laws(epoch240: Rows) -> None:
    def cost(name: str) -> float:
        law = find_law(name)
        theta = np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
        return objective(theta, *epoch240)

    assert cost("hoffmann2022") == pytest.approx(4.12e-3, rel=2e-3)
    assert cost("hoffmann2022_tex") == pytest.approx(1.23e-3, rel=5e-3)


def _natural(theta: np.ndarray) -> np.ndarray:
    return np.column_stack([np.exp(theta[:, :3]), theta[:, 3:]])


def test_bootstrap_gives_besiroglus_standard_errors(epoch240: Rows) -> None:
    """From their own resamples, to their printed digits: they minimise Huber at 1e-3, not its limit as for the fit."""
    draws = np.random.RandomState(42)
    counts = np.stack([np.bincount(draws.choice(240, 240), minlength=240) for _ in range(4000)]).astype(float)
    theta, good = refit_parametric(*epoch240, counts, _fitted(epoch240))
    assert good.all()
    law = _natural(theta)
    assert law.std(axis=0) == pytest.approx([124.52, 1293.28, 0.02566, 0.01540, 0.02060], rel=5e-4)
    low, high = np.quantile(law, [0.025, 0.975], axis=0)
    assert low == pytest.approx([286.09, 1042.37, 1.7694, 0.3168, 0.3313], rel=2e-4)
    assert high == pytest.approx([743.61, 5810.36, 1.8712, 0.3733, 0.4154], rel=2e-4)


def test_other_resamples_give_about_the_same(epoch240: Rows) -> None:
    """4,000 replicates know a standard error to 1 % were the law normal; B's tail is long, and knows its to 7 %."""
    counts = np.random.default_rng(7).multinomial(240, np.full(240, 1 / 240), size=4000).astype(float)
    theta, good = refit_parametric(*epoch240, counts, _fitted(epoch240))
    assert good.all()
    errors = _natural(theta).std(axis=0)
    assert errors == pytest.approx([124.52, 1293.28, 0.02566, 0.01540, 0.02060], rel=0.15)
    assert errors[2:] == pytest.approx([0.02566, 0.01540, 0.02060], rel=0.04)


def test_refit_under_equal_weights_is_the_fit(epoch240: Rows) -> None:
    fit = _fitted(epoch240)
    theta, good = refit_parametric(*epoch240, np.full((2, 240), 3.0), fit)
    assert good.all()
    assert theta == pytest.approx(np.tile(fit.array(), (2, 1)), rel=1e-7)


def test_refits_count_rows_as_often_as_their_weight_says() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4), noise=0.005)
    weights = np.random.default_rng(0).multinomial(len(n), np.full(len(n), 1 / len(n)), size=5).astype(float)
    theta, good = refit_parametric(n, d, loss, weights, _fitted((n, d, loss)))
    assert good.all()
    for drawn, found in zip(weights.astype(int), theta, strict=True):
        again = _fitted(tuple(np.repeat(column, drawn) for column in (n, d, loss)))
        assert found == pytest.approx(again.array(), rel=1e-6)


@pytest.mark.parametrize("form", [Form.free, Form.tied])
@pytest.mark.parametrize("how", list(Objective))
def test_refits_follow_the_fit_and_its_shift(form: Form, how: Objective) -> None:
    """A loss in other units is the same law: log A, log B and log E move by the shift, the exponents stay."""
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4), noise=0.005)
    fit = _fitted((n, d, loss), form=form, objective=how)
    by = np.array([0.0, 0.1, -0.2])
    theta, good = refit_parametric(n, d, loss, np.ones((3, len(n))), fit, shift=np.repeat(by[:, None], len(n), axis=1))
    assert good.all()
    moved = fit.array() + np.outer(by, [1, 1, 1, 0, 0])
    assert theta == pytest.approx(moved, rel=1e-6, abs=1e-6)


def test_refits_keep_a_fixed_e() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4), noise=0.005)
    fit = _fitted((n, d, loss), form=Form.fixed_E, E=1.5)
    shift = np.random.default_rng(0).choice(fit.residuals, size=(20, len(n)))
    theta, good = refit_parametric(n, d, loss, np.ones((20, len(n))), fit, shift=shift)
    assert good.all()
    assert np.exp(theta[:, 2]) == pytest.approx(np.full(20, 1.5), rel=1e-12)
    assert np.ptp(theta[:, 3]) > 0.001


@settings(max_examples=50, derandomize=True)
@given(seed=st.integers(0, 10**6), delta=st.sampled_from([np.inf, 0.1]), tied=st.booleans())
def test_derivatives_are_those_of_the_objective(seed: int, delta: float, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4), noise=0.2, seed=seed)
    problem = Problems.of(n, d, loss, rng.uniform(0, 3, size=(1, len(n))))
    basis = basis_of(Form.tied if tied else Form.free)[None]
    theta = np.array([[-0.5, -0.7, 0.6, 0.35, 0.3]]) * rng.uniform(0.5, 1.5, size=(1, 5))
    at = Expansion.of(problem, theta, delta, basis)
    for k, direction in enumerate(basis[0].T):
        above, below = (Expansion.of(problem, theta + h * direction, delta, basis) for h in (1e-5, -1e-5))
        slope = (above.value - below.value)[0] / 2e-5
        assert at.gradient[0, k] == pytest.approx(slope, rel=1e-5, abs=1e-5)
        curvature = (above.gradient - below.gradient)[0] / 2e-5
        crossed = np.abs(np.abs(problem.residuals(theta)) - delta).min() < 1e-3  # a kink of the slope is near
        assert crossed or at.hessian[0, k] == pytest.approx(curvature, rel=1e-5, abs=1e-5)
    assert at.value == pytest.approx(problem.objective(theta, delta))


def test_no_replicate_is_left_above_its_optimum(epoch240: Rows, whole: bool) -> None:
    """Against 30 restarts of each from all over the place."""
    fit = _fitted(epoch240)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(240, np.full(240, 1 / 240), size=200).astype(float)[: 200 if whole else 8]
    theta, good = refit_parametric(*epoch240, weights, fit)
    problems = Problems.of(*epoch240, weights)
    found = problems.objective(problems.centring.inward(theta), fit.delta)
    best = found.copy()
    for _ in range(30):
        start = problems.centring.inward(fit.array()) + rng.normal(0, [0.5, 0.5, 0.2, 0.2, 0.2], size=theta.shape)
        start[:, 2:] = np.maximum(start[:, 2:], 0.02)
        best = np.minimum(best, minimise(problems, start, fit.delta, stationary=1e-8).objective)
    assert good.all()
    assert found / best - 1 == pytest.approx(np.zeros(len(found)), abs=1e-9)


def test_hard_data_lose_no_replicate(shared_data: Path) -> None:
    """Where E is near 0, or at it, a replicate may end at it and come back from it."""
    table = pd.read_csv(shared_data / "porian_isoflop_points.csv")
    rows = _rows(table[(table["dataset"] == "owt2") & (table["param_count"] == "kaplan")])
    fit = _fitted(rows)
    assert fit.certificate.converged and fit.E < 1e-9 and fit.certificate.unidentified == ("E",)
    count = len(rows[0])
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=200).astype(float)
    theta, good = refit_parametric(*rows, weights, fit)
    assert good.all()
    assert 0.3 < np.mean(theta[:, 2] < np.log(1e-9)) < 0.9


def test_a_negative_e_is_0_and_refits_leave_it() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    without = _fitted((n, d, loss - E - 0.1))
    assert without.certificate.converged and "E" in without.certificate.unidentified
    assert without.E < 1e-9 and np.isfinite(without.array()).all()
    back, good = refit_parametric(
        n, d, loss - E - 0.1, np.ones((1, len(n))), without, shift=np.log(loss / (loss - E - 0.1))[None]
    )
    assert good.all()
    assert np.exp(back[0, 2]) == pytest.approx(E, rel=1e-6)


def _by_scipy(rows: Rows, rho: Any, of: Any, start: list[float]) -> Any:
    """The minimum over parameters p of the sum of rho(residual), where of(p) is log A, log B, log E, alpha, beta."""
    n, d, log_loss = (np.log(column) for column in rows)

    def cost(p: np.ndarray) -> float:
        a, b, e, alpha, beta = of(p)
        terms = np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e)
        return float(np.sum(rho(terms - log_loss)))

    options = {"maxiter": 2000, "maxfev": 2000, "xatol": 1e-10, "fatol": 1e-18}
    for _ in range(3):  # the simplex collapses; it is set up anew where it did
        start = minimize(cost, start, method="Nelder-Mead", options=options).x
    return cost(start), np.array(of(start))


def test_squared_errors_tied_exponents_and_a_fixed_e_against_scipy(epoch240: Rows) -> None:
    def huber(r: np.ndarray) -> np.ndarray:
        return np.where(np.abs(r) <= 1e-3, r**2 / 2, 1e-3 * (np.abs(r) - 5e-4))

    squared = _fitted(epoch240, objective=Objective.squared)
    cost, law = _by_scipy(epoch240, lambda r: r**2 / 2, lambda p: p, [6, 7.6, 0.6, 0.35, 0.37])
    assert squared.objective == pytest.approx(cost, rel=1e-6) and squared.objective <= cost * (1 + 1e-12)
    assert squared.array() == pytest.approx(law, rel=1e-2)
    assert squared.objective == pytest.approx(np.sum(squared.residuals**2) / 2)
    tied = _fitted(epoch240, form=Form.tied)
    cost, law = _by_scipy(epoch240, huber, lambda p: (p[0], p[1], p[2], p[3], p[3]), [6, 7.6, 0.6, 0.35])
    assert tied.alpha == tied.beta and tied.array() == pytest.approx(law, rel=1e-2)
    assert tied.objective == pytest.approx(cost, rel=1e-5) and tied.objective <= cost * (1 + 1e-12)
    fixed = _fitted(epoch240, form=Form.fixed_E, E=1.7)
    cost, law = _by_scipy(epoch240, huber, lambda p: (p[0], p[1], np.log(1.7), p[2], p[3]), [6, 7.6, 0.35, 0.37])
    assert pytest.approx(1.7, rel=1e-12) == fixed.E and fixed.array() == pytest.approx(law, rel=1e-2)
    assert fixed.objective == pytest.approx(cost, rel=1e-5) and fixed.objective <= cost * (1 + 1e-12)
    for fit in (squared, tied, fixed):
        assert fit.certificate.converged and fit.certificate.unidentified == ()


def test_e_fixed_where_it_was_found_changes_nothing(epoch240: Rows) -> None:
    free = _fitted(epoch240)
    fixed = _fitted(epoch240, form=Form.fixed_E, E=free.E)
    assert fixed.array() == pytest.approx(free.array(), rel=1e-8)
    assert fixed.certificate.condition < free.certificate.condition


@st.composite
def _designs(draw: st.DrawFn, *kinds: str) -> tuple[np.ndarray, np.ndarray]:
    """N and D of a design."""
    kind = draw(st.sampled_from(kinds))
    smallest, ratio = 10 ** draw(st.floats(5, 10)), 10 ** draw(st.floats(0, 2.5))
    span, reach = 10 ** draw(st.floats(1, 3)), 10 ** draw(st.floats(1, 3))
    many = draw(st.integers(4, 8))
    if kind == "grid":
        lengths = smallest * ratio * np.geomspace(1, reach, draw(st.integers(4, 8)))
        n, d = (axis.ravel() for axis in np.meshgrid(smallest * np.geomspace(1, span, many), lengths))
    elif kind == "isoflop":
        budgets = 6 * smallest**2 * ratio * np.geomspace(1, span * reach, draw(st.integers(3, 6)))
        factors = draw(st.floats(1.4, 2.5)) ** (np.arange(many + 1) - many / 2)
        n = np.outer(np.sqrt(budgets / 6 / ratio), factors).ravel()
        d = np.repeat(budgets, many + 1) / 6 / n
    elif kind == "scatter":
        share = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((2, 6 + 5 * many))
        n, d = smallest * span ** share[0], smallest * ratio * reach ** share[1]
    else:
        n = smallest * np.geomspace(1, span, 3 + many)
        d = ratio * n
    return n, d


@st.composite
def _laws(draw: st.DrawFn) -> tuple[float, float, float, float, float]:
    """E, alpha, beta, and the A and B terms at the middle of a design."""
    exponents, shares = st.floats(0.15, 0.8), st.floats(0.05, 3)
    return draw(st.floats(0.5, 3)), draw(exponents), draw(exponents), draw(shares), draw(shares)


def _surface(law: tuple[float, float, float, float, float], n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, Any]:
    """The losses, and E, A, B, alpha, beta."""
    e, alpha, beta, first, second = law
    a, b = first * np.exp(alpha * np.log(n).mean()), second * np.exp(beta * np.log(d).mean())
    return e + a * n**-alpha + b * d**-beta, (e, a, b, alpha, beta)


@settings(max_examples=examples(500, 100), derandomize=True)
@given(design=_designs("grid", "isoflop", "scatter"), law=_laws())
def test_noise_free_surfaces_are_recovered(design: Any, law: Any) -> None:
    loss, truth = _surface(law, *design)
    fit = _fitted((*design, loss))
    assert fit.certificate.unidentified == () and fit.certificate.converged
    assert (fit.E, fit.A, fit.B, fit.alpha, fit.beta) == pytest.approx(truth, rel=1e-8)


@settings(max_examples=25, derandomize=True)
@given(design=_designs("one ratio"), law=_laws())
def test_a_single_ratio_of_tokens_to_params_is_called_unidentified(design: Any, law: Any) -> None:
    """The two terms may trade places in any law."""
    fit = _fitted((*design, _surface(law, *design)[0]))
    assert {"A", "B", "alpha", "beta"} <= set(fit.certificate.unidentified)


@pytest.mark.parametrize(("log_b", "alpha"), [(3.0, 0.203125), (3.0, 0.2)])
def test_a_term_of_a_hundred_thousandth_of_the_loss_is_found(log_b: float, alpha: float) -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 8), np.geomspace(1e8, 3e11, 7)))
    fit = _fitted((n, d, 0.5 + np.exp(7 - alpha * np.log(n)) + np.exp(log_b - 0.5 * np.log(d))))
    found = (fit.E, fit.log_A, fit.log_B, fit.alpha, fit.beta)
    assert found == pytest.approx((0.5, 7, log_b, alpha, 0.5), rel=1e-8)


def test_recovers_the_surface_from_an_isoflop_design() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    fit = _fitted((n, d, loss))
    assert (fit.E, fit.A, fit.B, fit.alpha, fit.beta) == pytest.approx((E, A, B, ALPHA, BETA), rel=1e-7)


def test_losses_without_an_irreducible_part_leave_e_unidentified() -> None:
    n, d, _, _ = isoflop_design(np.geomspace(1e18, 1e21, 4))
    loss = (50 * n**-0.2 + 60 * d**-0.2) * np.exp(0.02 * np.random.default_rng(3).standard_normal(len(n)))
    fit = _fitted((n, d, loss))
    assert fit.E < 0.3 or "E" in fit.certificate.unidentified


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(1e8, 1e9)] * 9, "too few"),
        ([(1e8, d) for d in np.geomspace(1e9, 1e11, 8)], "1 model size"),
        ([(n, d) for n in (1e8, 1e9) for d in (1e9, 1e10, 1e11)], "2 model size"),
        ([(n, 1e20 / 6 / n) for n in np.geomspace(1e8, 1e9, 8)], "one budget"),
    ],
)
def test_data_that_support_no_law_are_refused(points: list[tuple[float, float]], words: str) -> None:
    n, d = np.array(points).T
    fit = fit_parametric(n, d, surface(n, d))
    assert isinstance(fit, Refused)
    assert words in fit.reason


def test_fewer_parameters_need_fewer_points() -> None:
    n, d = np.array([(1e8, 1e9), (1e8, 4e9), (3e8, 2e9), (9e8, 9e9), (9e8, 1e9)]).T
    loss = E + A * n**-ALPHA + A * d**-ALPHA
    few = fit_parametric(n, d, loss)
    assert isinstance(few, Refused) and "5 distinct (N, D) points are too few" in few.reason and "needs 6" in few.reason
    tied = _fitted((n, d, loss), form=Form.tied)
    assert (tied.E, tied.A, tied.alpha) == pytest.approx((E, A, ALPHA), rel=1e-6)
    fewer = fit_parametric(n[1:], d[1:], loss[1:], form=Form.tied)
    assert isinstance(fewer, Refused) and "a law with 4 parameters; it needs 5" in fewer.reason


def test_a_loss_below_e_is_refused() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    above = fit_parametric(n, d, loss, form=Form.fixed_E, E=2.5)
    assert isinstance(above, Refused) and "fit.E=2.5 is not below every loss" in above.reason
    nothing = _fitted((n, d, loss), form=Form.fixed_E, E=0)
    assert nothing.E < 1e-9 and "E" not in nothing.certificate.unidentified


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": Form.fixed_E}, "fit.form=fixed_E with fit.E=None"),
        ({"E": 1.5}, "fit.form=free with fit.E=1.5"),
        ({"form": Form.fixed_E, "E": -1.0}, "fit.E=-1 must be"),
        ({"delta": 0.0}, "fit.delta=0 must be positive"),
        ({"starts": 0}, "fit.starts=0 must be"),
    ],
)
def test_options_that_make_no_sense_are_told(options: dict[str, Any], words: str) -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    with pytest.raises(UserError, match=re.escape(words)):
        fit_parametric(n, d, loss, **options)


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "loss holds 0"), (-1.0, "loss holds -1"), (np.nan, "loss holds nan")]
)
def test_losses_without_a_logarithm_are_told(value: float, words: str) -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    loss[3] = value
    with pytest.raises(UserError, match=words):
        fit_parametric(n, d, loss)
    with pytest.raises(UserError, match="of one length"):
        fit_parametric(n, d[1:], loss)


def test_equal_and_rising_losses_are_refused() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    flat = fit_parametric(n, d, np.full_like(n, 3.0))
    assert isinstance(flat, Refused) and "equal" in flat.reason
    rising = fit_parametric(n, d, 1 / loss)
    assert isinstance(rising, Refused) and "do not fall" in rising.reason


@settings(max_examples=50)
@given(
    flops=st.floats(1e10, 1e26),
    exponent=st.floats(0.7, 1.1),
    alpha=st.floats(0.1, 0.8),
    beta=st.floats(0.1, 0.8),
)
def test_closed_form_optimum(flops: float, exponent: float, alpha: float, beta: float) -> None:
    theta, cost = np.array([6.0, 6.5, 0.5, alpha, beta]), Cost(coefficient=9.0, exponent=exponent)
    n, d, loss = optimum(theta, cost, flops)
    assert cost.flops_per_token(n) * d == pytest.approx(flops, rel=1e-9)
    for other in (0.99, 1.01):
        there = d / other**exponent
        assert np.exp(0.5) + np.exp(6 - alpha * np.log(n * other)) + np.exp(6.5 - beta * np.log(there)) >= loss
    for inverse, given_ in ((optimum_for_params, n), (optimum_for_tokens, d)):
        assert inverse(theta, cost, given_)[0] == pytest.approx(flops, rel=1e-8)
    a, b = exponents(theta, cost)
    assert np.log(optimum(theta, cost, flops * np.e)[0] / n) == pytest.approx(a)
    assert np.log(optimum(theta, cost, flops * np.e)[1] / d) == pytest.approx(b)


def test_cost_is_read_off_the_rows() -> None:
    n, d, flops, _ = isoflop_design(np.geomspace(1e18, 1e21, 4))
    assert fit_cost(n, d, flops) == Cost(coefficient=pytest.approx(6), exponent=1.0, spread=pytest.approx(0, abs=1e-12))
    bent = fit_cost(n, d, 8 * n**0.9 * d)
    assert (bent.coefficient, bent.exponent) == pytest.approx((8, 0.9))
    one = fit_cost(np.full(3, 1e8), np.array([1e9, 2e9, 3e9]), np.array([6e17, 12e17, 18e17]))
    assert one.coefficient == pytest.approx(6)


def test_the_mean_of_losses_instead_of_their_sum_stops_early(epoch240: Rows) -> None:
    """Why Hoffmann's a is .454: scipy's tolerances are absolute, and a mean of 240 Huber losses lies below them."""
    params, tokens, loss = epoch240
    n, d, y = np.log(params), np.log(tokens), np.log(loss)

    def mean(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        r = np.abs(np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e) - y)
        return float(np.mean(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4))))

    ends = [minimize(mean, [5, 5, e, x, x], method="L-BFGS-B").x for e in (-0.5, 0.0, 0.5) for x in (0.0, 0.5)]
    best = min(ends, key=mean)
    fit = fit_parametric(params, tokens, loss)
    assert isinstance(fit, ParametricFit)
    assert 240 * mean(best) > 1.02 * fit.objective


def test_a_lowest_start_that_is_no_law_is_told() -> None:
    """Twelve loud points: Newton's method ends lowest where the losses do not fall with N, a hair below a law."""
    rng = np.random.default_rng(34)
    count = int(rng.choice([8, 10, 12, 16]))
    n = 10 ** rng.uniform(6, 9, count)
    d = 20 * n * 10 ** rng.normal(0, rng.choice([0.05, 0.3, 1]), count)
    noise = rng.choice([0.01, 0.03, 0.08])
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(noise * rng.normal(size=count))
    fit = fit_parametric(n, d, loss)
    assert isinstance(fit, ParametricFit)
    assert 1e-3 < fit.above_lowest < 0.1
    assert fit.certificate.to_dict()["lowest_objective"] == pytest.approx(fit.objective / (1 + fit.above_lowest))
    assert fit.objective == pytest.approx(objective(fit.array(), n, d, loss))
    whole = fit_tables(tables(n, d, 6 * n * d, loss), FitConfig(replicates=0))
    assert any("above the lowest of any start" in text for text in whole.warnings)
    for said in (fit_card(whole), latex.law(whole)):
        assert "above the lowest of any start, where the losses do not fall with N or D" in said


def test_the_lowest_start_is_mostly_the_law(epoch240: Rows) -> None:
    fit = fit_parametric(*epoch240)
    assert isinstance(fit, ParametricFit) and fit.certificate.lowest == pytest.approx(fit.objective)
    assert fit.above_lowest == 0 and above_text(fit) == ""
