"""``plan forecast=true``: what a sweep may be expected to show, from which prior and which noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Answer
from sweep_runs import Command, smoke

from analysis.config import FitConfig
from analysis.fitting.optimum import exponents, optimum
from analysis.fitting.values import Cost
from sweeps.config import Config, ForecastConfig
from sweeps.paths import SweepFolder
from sweeps.planning.prior import ASSUMED_NOISE, find_noise, find_prior
from sweeps.planning.results import read_results
from trainer.errors import UserError
from trainer.shape import ParamCount

QUICK = ("forecast=true", "forecast.replicates=200")
LAW = "law=hoffmann2022_tex"  # that the trainer answers from


@pytest.fixture
def told(isoflop: Command, tmp_path: Path) -> Callable[..., Answer]:
    """``isoflop plan sweep=chinchilla forecast=true``."""

    def command(*overrides: str, form: str = "json") -> Answer:
        return isoflop("plan", "sweep=chinchilla", f"root={tmp_path}", f"format={form}", *QUICK, *overrides)

    return command


def _half_width(approach: dict[str, Any], name: str = "n_opt") -> float:
    at = approach[name][-1]
    return math.log(at["high"] / at["low"]) / 2


def test_a_forecast_stands_in_the_plan_and_is_the_same_again(told: Callable[..., Answer], tmp_path: Path) -> None:
    said = told("forecast.targets=[5.76e23,3e21]").json
    assert said == json.loads((tmp_path / "chinchilla" / "plan.json").read_text())
    found = said["forecast"]
    assert found["targets"] == [3e21, 5.76e23]
    assert found["prior"] == "law hoffmann2022_tex" and found["params"] == "total"
    assert found["noise"]["value"] == ASSUMED_NOISE and found["noise"]["source"].startswith("assumed")
    three, two, one = (found["approaches"][name] for name in ("parametric", "isoflop", "envelope"))
    assert "no horizons" in one["refused"]
    for approach in (two, three):
        assert approach["a"]["low"] < 0.466 < approach["a"]["high"]
        assert [at["flops"] for at in approach["n_opt"]] == [3e21, 5.76e23]
    assert _half_width(three) == pytest.approx(1.96 * found["error"], rel=0.2)
    assert [at["points"] for at in found["budgets"]] == [9] * 9
    assert sum(at["share"] for at in found["budgets"]) == pytest.approx(1)
    assert sum(at["hours"] for at in found["budgets"]) == pytest.approx(said["totals"]["device_hours"])
    assert all(at["error"] >= found["error"] for at in found["budgets"])
    assert max(found["bent"].values()) > 2 * found["error"], "what rests on the form alone"
    assert told("forecast.targets=[5.76e23,3e21]").json == said


def test_the_tables_say_what_to_drop(told: Callable[..., Answer]) -> None:
    said = told(form="table")
    for text in ("Forecast: the median of fits and where 95% of them will lie", "3 parametric", "2 isoFLOP",
                 "1 envelope: not fed by this design: there are no horizons", "What each budget costs, and adds",
                 "N* without it", "3e23"):  # fmt: skip
        assert text in said.out
    assert "prior: law hoffmann2022_tex; noise of log loss: 0.005 (assumed" in said.err
    assert "all this holds if the form of the law does: with curvature_n left open" in said.err


def test_louder_losses_widen_it_and_the_fits_settings_count(told: Callable[..., Answer]) -> None:
    quiet = told("forecast.noise=0.002", "fit.objective=squared").json["forecast"]
    loud = told("forecast.noise=0.004", "fit.objective=squared").json["forecast"]
    for name in ("parametric", "isoflop"):
        ratio = _half_width(loud["approaches"][name]) / _half_width(quiet["approaches"][name])
        assert ratio == pytest.approx(2, rel=0.15), name
    assert loud["noise"] == {"value": 0.004, "source": "given", "freedom": 0}


def test_a_target_at_the_largest_budget_is_told_once(told: Callable[..., Answer]) -> None:
    """Points miss their budgets by up to a percent."""
    assert told("sweep.target.flops=3.003e21").json["forecast"]["targets"] == [3.003e21]
    near, far = told("sweep.target.flops=1e22").json["forecast"]["targets"]
    assert near == pytest.approx(3e21, rel=1e-2) and far == 1e22


def test_horizons_feed_approach_1(told: Callable[..., Answer]) -> None:
    design = ("sweep.design=horizons", "sweep.sizes=[5e7,1e8,2e8,4e8,8e8,1.6e9]", "sweep.tolerance=1")
    found = told(*design, "sweep.horizons=[1e9,2e9,4e9,8e9,1.6e10,3.2e10]").json["forecast"]
    one = found["approaches"]["envelope"]
    assert one["a"]["low"] < one["a"]["value"] < one["a"]["high"]


def test_axes_are_no_part_of_a_law(told: Callable[..., Answer]) -> None:
    said = told("sweep.axes.optim.lr=[1e-4,2e-4]", form="table")
    assert "forecast of 81 of the 162 points" in said.err


def test_noise_and_prior_come_from_what_the_root_holds(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder, "sweep.seeds=[0,1]"))
    said = isoflop("plan", *smoke(folder, LAW, *QUICK), "format=json").json["forecast"]
    assert said["noise"]["source"] == "seeds" and said["noise"]["freedom"] == 12
    assert 0.0015 < said["noise"]["value"] < 0.005, "the trainer's is 0.003"
    assert find_noise(Config(fit=FitConfig()), SweepFolder(folder.root, "new")).source == "seeds", "a neighbour's"
    fit = str(folder.fit)
    from_fit = isoflop("plan", *smoke(folder, f"forecast.prior={fit}", *QUICK), "format=json").json["forecast"]
    assert from_fit["prior"].startswith(f"the fit in {fit}, ")
    from_results = isoflop("plan", *smoke(folder, "forecast.prior=results", *QUICK), "format=json")
    assert from_results.code == 2 or "own 24 results" in from_results.json["forecast"]["prior"]


def test_without_seeds_the_residuals_tell_the_noise(isoflop: Command, folder: SweepFolder) -> None:
    wide = ("sweep.budgets=[1e11,3e11,1e12]", "sweep.sizes=6", "data.tokens=1e9")
    assert isoflop("run", *smoke(folder, *wide, "fit.replicates=0")).code == 0
    config = Config(root=str(folder.root), fit=FitConfig())
    noise = find_noise(config, folder)
    assert (noise.source, noise.freedom) == ("residuals", 13)
    assert 0.0015 < noise.value < 0.006, "the trainer's is 0.003"
    elsewhere = SweepFolder(folder.root, "other")
    assert find_noise(config, elsewhere) == noise, "another sweep of the root tells it as well"
    found = read_results([folder], ParamCount.total, runs={folder.runs()[0].run_id})
    assert len(found) == 1 and found.family[0] == 0


def test_submit_keeps_the_forecast_of_the_same_points(isoflop: Command, folder: SweepFolder) -> None:
    told = isoflop("plan", *smoke(folder, LAW, *QUICK), "format=json").json["forecast"]
    isoflop("submit", *smoke(folder, LAW))
    assert json.loads(folder.plan_path.read_text())["forecast"] == told
    assert isoflop("submit", *smoke(folder, LAW, "sweep.budgets=[1e10,2e10]")).code == 0
    assert json.loads(folder.plan_path.read_text())["forecast"] is None, "of other points it says nothing"


def test_a_stated_n_opt_is_that_of_all_its_laws(tmp_path: Path) -> None:
    config, folder, cost = Config(), SweepFolder(tmp_path, "x"), Cost(coefficient=9.0, exponent=0.95)
    config.sweep.centre.n_opt, config.sweep.centre.at, config.sweep.centre.exponent = 4.4e4, 1e12, 0.6
    prior = find_prior(config, folder, cost)
    assert not prior.level_known and prior.params is ParamCount.non_embedding
    assert optimum(prior.laws, cost, 1e12)[0] == pytest.approx(np.full(9, 4.4e4))
    assert exponents(prior.laws, cost)[0] == pytest.approx(np.full(9, 0.6))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("law=hoffmann2022_approach2", "law=hoffmann2022_approach2 knows N*(C) but no loss off it"),
        ("forecast.noise=0", "forecast.noise=0 must lie between 0 and 1"),
        ("forecast.targets=[1e20,-1]", "forecast.targets holds -1"),
        ("forecast.replicates=10", "forecast.replicates=10 must be 100 or more"),
        ("forecast.prior=nowhere", "path=nowhere: there is no fit.json"),
        ("forecast.prior=results", "forecast.prior=results: 0 results are too few"),
    ],
)
def test_bad_input_is_one_sentence(told: Callable[..., Answer], setting: str, sentence: str, tmp_path: Path) -> None:
    said = told(setting)
    assert said.code == 2 and sentence in said.sentence
    assert not (tmp_path / "chinchilla" / "plan.json").exists(), "nothing is half-written"


def test_no_law_at_all_is_said(tmp_path: Path) -> None:
    config = Config(forecast=ForecastConfig(on=True))
    with pytest.raises(UserError, match="a forecast starts from a law: state law=<name>"):
        find_prior(config, SweepFolder(tmp_path, "x"))
