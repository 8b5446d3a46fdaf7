from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from analysis_designs import BUDGETS, COST, FAR, LAW, N_OPT, NOISE, classic, laws_about
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.config import FitConfig, Form, Objective, Quantity
from analysis.fitting.isoflop import group_budgets
from analysis.fitting.parametric import fit_parametric
from analysis.fitting.values import Cost, ParametricFit, Refused, loss_of_laws
from analysis.planning.forecast import Expected, Forecast, forecast
from analysis.planning.information import Target, huber_factor, jacobian, standard_errors
from analysis.planning.noise import Noise, contradiction, estimate_noise, pure_error, with_misfit
from trainer.errors import UserError

laws_drawn = st.tuples(
    st.floats(4, 9), st.floats(4, 9), st.floats(-0.5, 1), st.floats(0.2, 0.7), st.floats(0.2, 0.7)
).map(np.array)
costs = st.builds(Cost, coefficient=st.floats(2, 30), exponent=st.floats(0.8, 1.1))


def _told(params: np.ndarray, tokens: np.ndarray, flops: np.ndarray, laws: np.ndarray, **options: object) -> Forecast:
    settings_ = {"noise": NOISE, "targets": (1e21, FAR), "cost": COST, "config": FitConfig(level=0.9)} | options
    return forecast(params, tokens, flops, group_budgets(flops), laws, **settings_)  # type: ignore[arg-type]


def _half_width(expected: Expected | Refused, i: int = -1) -> float:
    assert isinstance(expected, Expected)
    at = expected.optima[i].n_opt
    assert at.low and at.high
    return math.log(at.high / at.low) / 2


@settings(max_examples=60)
@given(law=laws_drawn, cost=costs, log_c=st.floats(40, 58))
def test_gradients_are_those_of_finite_differences(law: np.ndarray, cost: Cost, log_c: float) -> None:
    targets = (
        Target(quantity=Quantity.n_opt, flops=math.exp(log_c)),
        Target(quantity=Quantity.loss_opt, flops=math.exp(log_c)),
        Target(quantity=Quantity.exponent),
        Target(quantity=Quantity.loss, params=3e9, tokens=6e10),
    )
    for target in targets:
        moved = [
            (target.value(law[None] + step, cost) - target.value(law[None] - step, cost))[0] / 2e-5
            for step in 1e-5 * np.eye(5)
        ]
        assert target.gradient(law[None], cost)[0] == pytest.approx(moved, rel=1e-5, abs=1e-6), target


@settings(max_examples=40)
@given(law=laws_drawn)
def test_jacobian_is_that_of_finite_differences(law: np.ndarray) -> None:
    n, d = np.array([1e7, 1e9, 1e11]), np.array([1e9, 3e9, 1e12])

    def log_loss(at: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(loss_of_laws(at, np.log(n), np.log(d))))

    moved = np.stack([(log_loss(law + step) - log_loss(law - step)) / 2e-6 for step in 1e-6 * np.eye(5)], axis=1)
    assert jacobian(law[None], n, d)[0] == pytest.approx(moved, rel=1e-5, abs=1e-7)


def test_the_classic_sweep_has_the_error_that_was_published() -> None:
    params, tokens, flops = classic()
    assert flops.sum() == pytest.approx(5.1e22, rel=2e-3)
    assert standard_errors(params, tokens, LAW[None], N_OPT, NOISE, COST)[0] == pytest.approx(0.058, abs=5e-4)


def test_standard_errors_know_replicates_forms_and_open_targets() -> None:
    params, tokens, _ = classic()
    one = standard_errors(params, tokens, LAW[None], N_OPT, NOISE, COST)
    four = standard_errors(params, tokens, LAW[None], N_OPT, NOISE, COST, counts=np.full(90, 4.0))
    fixed = standard_errors(params, tokens, LAW[None], N_OPT, NOISE, COST, form=Form.fixed_E)
    assert four == pytest.approx(one / 2) and fixed < one
    assert np.isinf(standard_errors(params[:4], tokens[:4], LAW[None], N_OPT, NOISE, COST)).all(), "four points"
    assert np.isinf(standard_errors(params, np.full(90, 2e10), LAW[None], N_OPT, NOISE, COST)).all(), "one token count"
    along = (Target(quantity=Quantity.loss, params=params[0], tokens=2e10),)
    assert np.isfinite(standard_errors(params, np.full(90, 2e10), LAW[None], along, NOISE, COST)).all(), "seen there"


def test_huber_factor_goes_from_medians_to_means() -> None:
    assert huber_factor(0.0, 1.0) == pytest.approx(math.sqrt(math.pi / 2))
    assert huber_factor(1e-3, 1.0) == pytest.approx(math.sqrt(math.pi / 2), rel=1e-2)
    assert huber_factor(1.345, 1.0) == pytest.approx(1 / math.sqrt(0.95), rel=1e-3)  # Huber's 95 %
    assert huber_factor(100.0, 1.0) == 1.0


@pytest.mark.parametrize(("objective", "factor"), [(Objective.squared, 1.0), (Objective.huber, 1.193)])
def test_simulated_refits_agree_with_the_linearised_error(objective: Objective, factor: float) -> None:
    params, tokens, flops = classic()
    told = _told(params, tokens, flops, LAW[None], config=FitConfig(level=0.9, objective=objective))
    assert told.error == pytest.approx(0.0579 * factor, rel=5e-3)
    assert _half_width(told.parametric) == pytest.approx(1.645 * told.error, rel=0.1)
    assert isinstance(told.parametric, Expected) and told.parametric.failed == 0
    a, b = told.parametric.a, told.parametric.b
    assert (
        a.value == pytest.approx(0.3672 / 0.7145, abs=2e-3) and a.low and b.high and a.low + b.high == pytest.approx(1)
    )


def test_a_priors_spread_is_no_error_of_measurement() -> None:
    params, tokens, flops = classic()
    prior = laws_about(64)
    told = _told(params, tokens, flops, prior)
    spread = np.std(N_OPT[0].value(prior, COST))
    assert spread > 0.15, "the truths differ by more than the interval is wide"
    assert _half_width(told.parametric) == pytest.approx(1.645 * told.error, rel=0.15)
    values = sorted(np.exp(N_OPT[0].value(prior, COST)))
    assert isinstance(told.parametric, Expected)
    median, bias = told.parametric.optima[1].n_opt.value, told.parametric.bias.n_opt[1]
    assert median is not None and median / math.exp(bias) == pytest.approx(values[32]) and abs(bias) < 0.02


def test_half_the_noise_halves_intervals_of_approaches_2_and_3() -> None:
    params, tokens, flops = classic()
    least = FitConfig(level=0.9, objective=Objective.squared)
    loud = _told(params, tokens, flops, LAW[None], config=least)
    quiet = _told(params, tokens, flops, LAW[None], noise=NOISE / 2, config=least)
    for name in ("isoflop", "parametric"):
        ratio = _half_width(getattr(loud, name)) / _half_width(getattr(quiet, name))
        assert ratio == pytest.approx(2, rel=0.1), name


def test_a_bias_is_told_and_the_median_lies_in_its_interval() -> None:
    """The parabola's valleys of a sweep as wide as 8x lie beside the law's, by more than their noise."""
    params, tokens, flops = classic()
    told = _told(params, tokens, flops, LAW[None], noise=NOISE / 20, targets=(1e21,))
    for found in (told.isoflop, told.parametric):
        assert isinstance(found, Expected)
        for one in (found.a, found.b, found.optima[0].n_opt, found.optima[0].d_opt, found.optima[0].loss_opt):
            assert one.low and one.value and one.high and one.low < one.value < one.high
    assert isinstance(told.isoflop, Expected) and isinstance(told.parametric, Expected)
    assert told.isoflop.bias.loss_opt[0] < -0.001 and abs(told.parametric.bias.loss_opt[0]) < 1e-4
    at = told.isoflop.optima[0].loss_opt
    truth = float(np.exp(Target(quantity=Quantity.loss_opt, flops=1e21).value(LAW[None], COST)[0]))
    assert at.value == pytest.approx(truth * math.exp(told.isoflop.bias.loss_opt[0])) and at.high and at.high < truth
    said = told.isoflop.to_dict()
    assert said["loss_opt"][0]["bias"] == told.isoflop.bias.loss_opt[0] and said["a"]["bias"] == told.isoflop.bias.a


def test_each_budget_has_its_cost_and_its_worth() -> None:
    params, tokens, flops = classic()
    told = _told(params, tokens, flops, LAW[None])
    assert [share.budget for share in told.budgets] == pytest.approx(BUDGETS)
    assert sum(share.share for share in told.budgets) == pytest.approx(1)
    assert all(share.points == 10 and share.error > told.error for share in told.budgets)
    last = told.budgets[-1]
    kept = flops < 2e21
    alone = standard_errors(params[kept], tokens[kept], LAW[None], N_OPT, NOISE, COST)[0]
    assert last.share == pytest.approx(3 / 5.106, rel=1e-3)
    assert last.error == pytest.approx(alone * huber_factor(1e-3, NOISE))


def test_a_coefficient_left_open_never_makes_the_target_better_known() -> None:
    params, tokens, flops = classic()
    for objective in Objective:
        told = _told(params, tokens, flops, LAW[None], config=FitConfig(replicates=50, objective=objective))
        assert min(told.bent.values()) >= told.error * (1 - 1e-9), objective


def test_an_approach_that_the_design_does_not_feed_is_refused() -> None:
    params, tokens, flops = classic()
    told = _told(params[:10], tokens[:10], flops[:10], LAW[None])
    assert isinstance(told.parametric, Refused) and "one budget" in told.parametric.reason
    assert isinstance(told.isoflop, Refused) and "at least 2" in told.isoflop.reason
    assert isinstance(told.envelope, Refused) and "no horizons" in told.envelope.reason


def test_horizons_feed_approach_1() -> None:
    sizes, lengths = np.geomspace(2e8, 2e10, 12), np.geomspace(2e9, 2e11, 9)
    params, tokens = (each.ravel() for each in np.meshgrid(sizes, lengths, indexing="ij"))
    curve = np.repeat(np.arange(12), 9)
    told = _told(params, tokens, 6 * params * tokens, laws_about(20), curve=curve, config=FitConfig(replicates=400))
    assert isinstance(told.envelope, Expected) and told.envelope.failed < 0.05
    a = told.envelope.a
    assert a.low and a.high and a.low < 0.5139 < a.high
    half = _told(params, tokens, 6 * params * tokens, LAW[None], curve=curve, noise=NOISE / 10)
    assert _half_width(half.envelope) < _half_width(told.envelope)


def test_the_same_seed_gives_the_same_forecast() -> None:
    params, tokens, flops = classic()
    few = FitConfig(replicates=50)
    first, second = (_told(params, tokens, flops, LAW[None], config=few) for _ in range(2))
    other = _told(params, tokens, flops, LAW[None], config=replace(few, seed=1))
    assert (first.parametric, first.isoflop) == (second.parametric, second.isoflop)
    assert first.parametric != other.parametric


def test_a_target_must_be_a_number() -> None:
    with pytest.raises(UserError, match="target n_opt: flops is not stated; give it flops=<number>"):
        Target(quantity=Quantity.n_opt)
    with pytest.raises(UserError, match="target loss: tokens=-1 must be a positive"):
        Target(quantity=Quantity.loss, params=1e9, tokens=-1)


def _fitted(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> ParametricFit:
    fit = fit_parametric(params, tokens, loss)
    assert isinstance(fit, ParametricFit)
    return fit


def test_noise_comes_from_seeds_and_else_from_residuals() -> None:
    params, tokens, _ = classic()
    n, d = np.repeat(params, 3), np.repeat(tokens, 3)
    loss = loss_of_laws(LAW, np.log(n), np.log(d)) * np.exp(NOISE * np.random.default_rng(1).standard_normal(270))
    seeds = estimate_noise(n, d, loss)
    assert seeds.source == "seeds" and seeds.freedom == 180 and seeds.value == pytest.approx(NOISE, rel=0.12)
    one = estimate_noise(n[::3], d[::3], loss[::3], _fitted(n[::3], d[::3], loss[::3]))
    assert one.source == "residuals" and one.value == pytest.approx(NOISE, rel=0.25)
    with pytest.raises(UserError, match="cannot be told from 90 result"):
        estimate_noise(n[::3], d[::3], loss[::3])


def test_what_a_law_misses_counts_once_it_is_surely_more_than_seeds_differ() -> None:
    params, tokens, _ = classic()
    quiet = Noise(value=NOISE, freedom=20, source="seeds")
    law = np.log(loss_of_laws(LAW, np.log(params), np.log(tokens)))
    for seed in range(10):
        loss = np.exp(law + NOISE * np.random.default_rng(seed).standard_normal(90))
        assert with_misfit(quiet, _fitted(params, tokens, loss)) == quiet, "the form holds"
    wild = law + 3 * NOISE * np.random.default_rng(0).standard_normal(90)
    told = with_misfit(quiet, _fitted(params, tokens, np.exp(wild)))
    assert told.value == pytest.approx(3 * NOISE, rel=0.2) and told.freedom == 85
    assert "misses the points by more than seeds differ, 0.005" in told.source


def test_pure_error_by_hand() -> None:
    squares, freedom = pure_error(np.array([1.0, 1, 1, 2]), np.array([5.0, 5, 6, 6]), np.array([1.0, 3, 7, 9]))
    assert (squares, freedom) == (2.0, 1)


def test_a_prior_far_from_the_results_is_contradicted() -> None:
    params, tokens, _ = classic()
    loss = loss_of_laws(LAW, np.log(params), np.log(tokens))
    loss = loss * np.exp(NOISE * np.random.default_rng(0).standard_normal(90))
    assert contradiction(LAW[None], params, tokens, loss, NOISE) is None
    said = contradiction(LAW[None], params, tokens, loss * 1.1, NOISE)
    assert said and "the prior law contradicts the 90 results so far" in said and "mostly above" in said
    either = np.stack([LAW, LAW + np.array([0, 0, np.log(1.2), 0, 0])])
    assert contradiction(either, params, tokens, loss, NOISE) is None, "one of its laws may be true"
    assert contradiction(LAW[None], params, tokens, loss * 1.005, NOISE / 10) is None, "near enough to plan by"


def test_the_residuals_of_few_points_do_not_understate_the_noise() -> None:
    params, tokens, flops = classic()
    few = np.isin(flops, np.unique(flops)[::4])
    params, tokens = params[few][::2], tokens[few][::2]
    law = loss_of_laws(LAW, np.log(params), np.log(tokens))
    told = []
    for seed in range(60):
        loss = law * np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(law)))
        told.append(estimate_noise(params, tokens, loss, _fitted(params, tokens, loss)).value)
    assert len(law) == 15 and np.median(told) == pytest.approx(NOISE, rel=0.15)
