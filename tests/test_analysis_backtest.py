from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analysis_surfaces import isoflop_design, n_star, tables

from analysis.config import FitConfig, Resample, Valley
from analysis.fit import fit_tables
from analysis.fitting.parametric import refit_parametric
from analysis.fitting.values import Refused
from analysis.ingest.clean import keep_where
from analysis.ingest.files import read_file
from analysis.ingest.tables import Tables
from analysis.predict.reach import measured_text
from analysis.report import numbers
from analysis.report.card import fit_card
from analysis.result import Backtest, FitResult, Isoflop, Parametric, once

QUICK = FitConfig(replicates=120)


def _sweep(budgets: int = 6, noise: float = 0.002, curved: float = 0.0, seed: int = 0, **columns: object) -> Tables:
    n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, budgets), sizes=9, spacing=1.4, noise=noise, seed=seed)
    return tables(n, d, flops, loss * np.exp(curved * np.log(flops / 1e18) ** 2), **columns)


@pytest.fixture(scope="module")
def result() -> FitResult:
    return fit_tables(_sweep(), QUICK)


def _tested(fit: FitResult) -> Backtest:
    assert isinstance(fit.backtest, Backtest)
    return fit.backtest


def test_the_fit_is_cut_at_one_budget_after_another(result: FitResult) -> None:
    test, budgets = _tested(result), np.geomspace(1e18, 1e21, 6)
    assert [at.fitted_to for at in test.loss] == pytest.approx(budgets[-5:-1])
    assert [at.rows for at in test.loss] == [18, 27, 36, 45]
    assert [len(at.measured) for at in test.loss] == [36, 27, 18, 9]
    assert all((at.flops > at.fitted_to).all() for at in test.loss)


def test_what_follows_the_form_is_foretold() -> None:
    """Misses at one origin come together, so coverage is that over several sweeps."""
    tests = [_tested(fit_tables(_sweep(seed=seed), QUICK)) for seed in range(1, 6)]
    for origin in range(1, 4):
        held = [test.loss[origin] for test in tests]
        assert max(at.error for at in held) < 0.02
        assert np.mean([at.coverage for at in held]) > 0.85
        assert np.mean([at.law_coverage for at in held]) < np.mean([at.coverage for at in held])
    for name in ("envelope", "isoflop", "parametric"):
        inside, measured = np.sum([test.coverage(name) for test in tests], axis=0)
        assert inside >= 0.8 * measured > 0, name


def test_what_is_held_out_counts_once(result: FitResult) -> None:
    """The origins are nested; a row is told of by the last one below it."""
    test = _tested(result)
    assert test.coverage_of_losses()[1] == 36 == len(test.loss[0].measured)
    assert test.coverage("parametric")[1] == 3  # the first origin has two minima, which show no scatter


def test_everybody_counts_alike(result: FitResult) -> None:
    """Report, card, fit.json and predictions, where the origins overlap and the first ones miss more."""
    test = _tested(result)
    first = test.loss[0]
    test = replace(test, loss=(replace(first, low=first.high, law_low=first.law_high), *test.loss[1:]))
    raw = test.to_dict()
    each = once(test.loss)
    assert (each.inside, each.measured) == test.coverage_of_losses() and each.measured == 36
    assert raw["counted_once"]["loss"] == each.to_dict()
    assert each.reach == pytest.approx(1000 ** (1 / 5)) and raw["loss"][0]["reach"] > 10
    told = f"{each.inside} of 36 ({100 * each.inside / 36:.0f} %)"
    shown = re.sub(r"\s*<[^>]+>\s*", " ", numbers.backtest(test))
    law = f"{each.law_inside} of 36 ({100 * each.law_inside / 36:.0f} %)"
    assert re.search(rf"all, each once\s+36\s+{re.escape(told)}\s+{re.escape(law)}", shown)
    card = fit_card(replace(result, backtest=test))
    assert f"{each.inside} of 36 held-out losses inside their intervals, up to 3.98 times" in card
    del raw["counted_once"]["n_opt"]
    said = measured_text(raw, "parametric")
    assert f"reached 4 times beyond what it fitted, where {each.inside} of 36 losses" in said


def test_minima_of_the_surface_itself_measure_nothing() -> None:
    """With fit.valley=surface the scatter of minima is still that of measured valleys."""
    plain, own = (fit_tables(_sweep(), replace(QUICK, valley=valley)) for valley in (Valley.parabola, Valley.surface))
    for name in ("isoflop", "parametric"):
        widths = []
        for fit in (plain, own):
            approach = fit.primary.approaches[name]
            assert isinstance(approach, Isoflop | Parametric)
            low, high = approach.optima[-1].n_opt.prediction or (1.0, 1.0)
            widths.append(np.log(high / low))
        assert widths[1] > 0.5 * widths[0] > 0, name
    measured = _tested(own).n_opt["parametric"][-1].measured
    assert measured == pytest.approx(_tested(plain).n_opt["parametric"][-1].measured)


def test_measured_minima_are_those_of_held_out_budgets(result: FitResult) -> None:
    last = _tested(result).n_opt["parametric"][-1]
    assert last.flops == pytest.approx([1e21])
    assert last.measured == pytest.approx(n_star(np.array([1e21])), rel=0.1)
    assert last.low[0] <= last.law_low[0] < last.predicted[0] < last.law_high[0] <= last.high[0]


def test_where_the_form_fails_it_is_seen_and_said() -> None:
    """A loss that bends in log C beyond what the form can follow."""
    fit = fit_tables(_sweep(curved=-0.002), QUICK)
    inside, measured = _tested(fit).coverage_of_losses()
    assert inside < 0.7 * measured
    assert any("extrapolation is worse than its intervals say" in text for text in fit.warnings)


def test_as_many_origins_as_asked_for(result: FitResult) -> None:
    assert len(_tested(fit_tables(_sweep(), replace(QUICK, origins=1))).loss) == 1
    assert len(_tested(fit_tables(_sweep(), replace(QUICK, origins=50))).loss) == 4  # one budget alone has no law


def test_the_backtest_draws_what_the_fit_draws() -> None:
    """A cluster to each point makes clusters the same as cases."""
    alone = [f"run{i:03d}" for i in range(54)]
    one, other = (
        _tested(fit_tables(_sweep(cluster_id=alone), replace(QUICK, resample=how, origins=1))).loss[0]
        for how in (Resample.clusters, Resample.cases)
    )
    assert one.low == pytest.approx(other.low) and one.high == pytest.approx(other.high)


def test_a_backtest_of_few_replicates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows = fit_tables(_sweep(), replace(QUICK, replicates=5)).backtest
    assert (
        isinstance(few_rows, Refused)
        and few_rows.reason == "5 replicates are too few for intervals; 20 or more are needed."
    )

    def few(*arguments: object, **named: object) -> tuple[np.ndarray, np.ndarray]:
        theta, good = refit_parametric(*arguments, **named)  # type: ignore[arg-type]
        return theta, good & (np.arange(len(good)) < 7)

    monkeypatch.setattr("analysis.approaches.refit_parametric", few)
    back = fit_tables(_sweep(), QUICK).backtest
    assert isinstance(back, Refused)
    assert "only 7 of 120 replicates gave a fit" in back.reason


def test_one_budget_leaves_nothing_to_hold_out() -> None:
    back = fit_tables(_sweep(budgets=1), QUICK).backtest
    assert isinstance(back, Refused) and "Approach 3 has too little to go on" in back.reason


def test_parameter_intervals_are_no_prediction_intervals(shared_data: Path) -> None:
    """Epoch's 240 rows lie at no common budgets, so quantiles of C are cut."""
    source = keep_where(read_file(shared_data / "chinchilla_fig4_left_epoch.csv"), "epoch_fit_sample == 1")
    test = _tested(fit_tables(source, QUICK))
    assert [at.rows for at in test.loss] == pytest.approx([120, 144, 168, 192], abs=2)
    assert max(at.law_coverage for at in test.loss) < 0.5
    assert all(at.coverage > at.law_coverage + 0.3 for at in test.loss)
    assert test.n_opt == {}
