from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_surfaces import ALPHA, BETA, A, B, E, isoflop_design, surface
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.fits import Cost, ParametricFit, Refused
from analysis.laws import find_law
from analysis.optimum import exponents, fit_cost, optimum, optimum_for_params, optimum_for_tokens
from analysis.parametric import fit_parametric, objective, refit_parametric

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


def _fitted(rows: Rows, delta: float = 1e-3) -> ParametricFit:
    fit = fit_parametric(*rows, delta=delta)
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


def test_the_limit_of_least_absolute_deviations_is_what_besiroglu_print(epoch240: Rows) -> None:
    fit = _fitted(epoch240, delta=1e-8)
    assert pytest.approx((482.006, 2085.434), rel=1e-5) == (fit.A, fit.B)
    assert (fit.E, fit.alpha, fit.beta) == pytest.approx((1.81686, 0.3478, 0.3658), abs=1e-4)
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


def test_bootstrap_gives_besiroglus_standard_errors(epoch240: Rows) -> None:
    fit = _fitted(epoch240)
    draws = np.random.RandomState(42)
    counts = np.stack([np.bincount(draws.choice(240, 240), minlength=240) for _ in range(4000)]).astype(float)
    theta, good = refit_parametric(*epoch240, counts, fit)
    assert good.all()
    natural = np.column_stack([np.exp(theta[:, :3]), theta[:, 3:]])
    assert natural.std(axis=0) == pytest.approx([124.52, 1293.28, 0.02566, 0.01540, 0.02060], rel=1e-2)
    low, high = np.quantile(natural, [0.025, 0.975], axis=0)
    assert low == pytest.approx([286.09, 1042.37, 1.7694, 0.3168, 0.3313], rel=1e-3)
    assert high == pytest.approx([743.61, 5810.36, 1.8712, 0.3733, 0.4154], rel=1e-3)


def test_refit_under_equal_weights_is_the_fit(epoch240: Rows) -> None:
    fit = _fitted(epoch240)
    theta, good = refit_parametric(*epoch240, np.full((2, 240), 3.0), fit)
    assert good.all()
    assert theta == pytest.approx(np.tile(fit.array(), (2, 1)), rel=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    e=st.floats(0.5, 3),
    log_a=st.floats(3, 8),
    log_b=st.floats(3, 8),
    alpha=st.floats(0.2, 0.6),
    beta=st.floats(0.2, 0.6),
)
@example(e=0.5, log_a=7.0, log_b=3.0, alpha=0.203125, beta=0.5)  # a term of a hundred-thousandth of the loss
@example(e=0.5, log_a=7.0, log_b=3.0, alpha=0.2, beta=0.5)
def test_noise_free_surfaces_are_recovered(e: float, log_a: float, log_b: float, alpha: float, beta: float) -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 8), np.geomspace(1e8, 3e11, 7)))
    loss = e + np.exp(log_a - alpha * np.log(n)) + np.exp(log_b - beta * np.log(d))
    fit = _fitted((n, d, loss))
    found = (fit.E, fit.log_A, fit.log_B, fit.alpha, fit.beta)
    assert found == pytest.approx((e, log_a, log_b, alpha, beta), rel=1e-8)


def test_recovers_the_surface_from_an_isoflop_design() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    fit = _fitted((n, d, loss))
    assert (fit.E, fit.A, fit.B, fit.alpha, fit.beta) == pytest.approx((E, A, B, ALPHA, BETA), rel=1e-7)


def test_a_single_ratio_of_tokens_to_params_is_called_unidentified() -> None:
    n = np.geomspace(1e8, 1e10, 12)
    fit = _fitted((n, 20 * n, surface(n, 20 * n)))
    assert {"A", "B", "alpha", "beta"} <= set(fit.certificate.unidentified)
    assert fit.certificate.starts_agreeing < fit.certificate.starts


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


def test_equal_and_rising_losses_are_refused() -> None:
    n, d, _, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    flat = fit_parametric(n, d, np.full_like(n, 3.0))
    assert isinstance(flat, Refused) and "equal" in flat.reason
    rising = fit_parametric(n, d, 1 / loss)
    assert isinstance(rising, Refused) and "do not fall" in rising.reason


@settings(max_examples=50, deadline=None)
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
