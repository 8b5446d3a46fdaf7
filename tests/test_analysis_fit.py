from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_fits import plain_fit, unconverged
from analysis_surfaces import A_TRUE, ALPHA, BETA, isoflop_design, tables

from analysis.approaches import fit_law
from analysis.config import FitConfig, Form, Resample, Valley
from analysis.fit import fit_tables
from analysis.fitting.values import Estimate, ParametricFit, Refused
from analysis.ingest.clean import keep_where, split
from analysis.ingest.files import read_file
from analysis.ingest.tables import Tables
from analysis.laws.law import find_law
from analysis.predict import NO_INTERVAL, law_of_fit, predict_fit, predict_law
from analysis.result import Envelope, FitResult, Isoflop, Parametric
from analysis.store import read_fit, write_fit
from analysis.warn import warnings
from trainer.errors import UserError
from trainer.shape import ParamCount

QUICK = FitConfig(replicates=120)


def _sweep(budgets: int = 5, sizes: int = 9, noise: float = 0.002, **columns: object) -> Tables:
    return tables(*isoflop_design(np.geomspace(1e18, 1e21, budgets), sizes=sizes, spacing=1.4, noise=noise), **columns)


@pytest.fixture(scope="module")
def result() -> FitResult:
    return fit_tables(_sweep(), QUICK)


@pytest.fixture(scope="module")
def folder(result: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit")
    write_fit(result, out)
    return out


def test_all_three_approaches_find_the_exponent(result: FitResult) -> None:
    for approach in result.primary.approaches.values():
        assert not isinstance(approach, Refused)
        assert approach.a.low is not None and approach.a.high is not None and approach.a.value is not None
        assert approach.a.low <= approach.a.value <= approach.a.high
        assert approach.a.value == pytest.approx(A_TRUE, abs=0.05)
        assert len(approach.optima) == 5
    assert isinstance(result.primary.parametric, Parametric)
    assert result.primary.parametric.alpha.value == pytest.approx(ALPHA, abs=0.02)
    assert result.primary.parametric.beta.value == pytest.approx(BETA, abs=0.02)


def test_fit_json_is_the_contract(folder: Path, result: FitResult) -> None:
    raw = json.loads((folder / "fit.json").read_text())
    assert raw["schema"] == 1 and raw["rows"] == {"used": 45, "excluded": []}
    assert raw["conventions"] == {"params": "total", "flops": "matmul", "loss": "nats/token"}
    assert raw["interval"]["level"] == 0.95 and raw["interval"]["replicates"] == 120
    assert list(raw["approaches"]) == ["envelope", "isoflop", "parametric"]
    for approach in raw["approaches"].values():
        for letter in ("a", "b"):
            assert set(approach[letter]) == {"value", "low", "high"}
        for name in ("n_opt", "d_opt", "loss_opt"):
            assert all(set(at) >= {"budget", "value", "low", "high"} for at in approach[name])
            assert len(approach[name]) == 5
    assert raw["ranges"]["flops"] == pytest.approx([1e18, 1e21])
    parametric = raw["approaches"]["parametric"]
    assert isinstance(result.primary.parametric, Parametric)
    assert parametric["A"]["value"] == result.primary.parametric.fit.A  # every digit
    assert {"gradient_norm", "starts", "starts_agreeing", "converged", "unidentified"} <= set(parametric["certificate"])
    assert parametric["certificate"]["converged"] is True
    assert [fit["conventions"]["params"] for fit in raw["by_convention"]] == ["total"]


def test_the_folder_holds_the_tables(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["exclusions.csv", "exponents.csv", "fit.json", "points.csv", "replicates.npz"]
    exponents = pd.read_csv(folder / "exponents.csv")
    assert exponents["approach"].tolist() == ["envelope", "isoflop", "parametric"]
    assert (exponents["a_low"] < exponents["a"]).all() and exponents["refused"].isna().all()
    assert len(pd.read_csv(folder / "points.csv")) == 45


def test_points_csv_can_be_fitted_again(folder: Path, result: FitResult) -> None:
    again = fit_tables(read_file(folder / "points.csv"), QUICK)
    assert isinstance(again.primary.parametric, Parametric) and isinstance(result.primary.parametric, Parametric)
    assert again.primary.parametric.fit.array() == pytest.approx(result.primary.parametric.fit.array(), rel=1e-9)
    assert isinstance(again.primary.envelope, Refused)


def test_predictions_at_the_stated_budgets_are_the_fits(folder: Path, result: FitResult) -> None:
    budget = float(result.primary.rows.budgets[2])
    found = {prediction.by: prediction for prediction in predict_fit(folder, flops=budget)}
    for name, approach in result.primary.approaches.items():
        assert not isinstance(approach, Refused)
        at, said = approach.optima[2], found[name]
        for ours, theirs in ((said.params, at.n_opt), (said.tokens, at.d_opt), (said.loss, at.loss_opt)):
            for bound in ("value", "low", "high"):
                wanted = getattr(theirs, bound)
                assert getattr(ours, bound) == (wanted if wanted is None else pytest.approx(wanted, rel=1e-9))
        assert "95% intervals" in said.statement


def test_the_envelopes_loss_has_no_interval(result: FitResult) -> None:
    """Resampling takes lowest runs away and adds none lower, so its losses lie above the envelope's own."""
    assert isinstance(result.primary.envelope, Envelope)
    for at in result.primary.envelope.optima:
        assert at.loss_opt.value is not None and at.loss_opt.low is None and at.loss_opt.high is None
        assert at.n_opt.low is not None


def test_predictions_invert(folder: Path) -> None:
    for said in predict_fit(folder / "fit.json", flops=3e20):
        for name in ("params", "tokens"):
            back = {p.by: p for p in predict_fit(folder, **{name: getattr(said, name).value})}[said.by]
            assert back.flops.value == pytest.approx(3e20, rel=1e-6)
            assert getattr(back, name).low is None


def test_beyond_the_budgets_only_the_surface_knows_the_loss(folder: Path) -> None:
    found = {prediction.by: prediction for prediction in predict_fit(folder, flops=1e24)}
    assert found["isoflop"].loss.value is None and "not known" in found["isoflop"].statement
    assert found["parametric"].loss.value is not None and found["parametric"].loss.low is not None
    json.dumps(found["isoflop"].to_dict(), allow_nan=False)


def test_a_law_predicts_without_intervals() -> None:
    said = predict_law(find_law("hoffmann2022_tex"), flops=5.76e23)
    assert said.params.value == pytest.approx(40.36e9, rel=1e-3) and said.params.low is None
    assert said.statement.startswith(NO_INTERVAL)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "predict got nothing; give exactly one"),
        ({"flops": 1e20, "params": 1e9}, r"got flops=1e\+20 params=1e\+09; give exactly one"),
        ({"tokens": -1.0}, r"tokens=-1.0 is not a positive number"),
    ],
)
def test_exactly_one_question(folder: Path, asked: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        predict_law(find_law("hoffmann2022"), **asked)
    with pytest.raises(UserError, match=words):
        predict_fit(folder, **asked)


def test_stored_fits_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no fit\.json"):
        read_fit(tmp_path)
    raw = json.loads((folder / "fit.json").read_text())
    for change, words in (
        ({"schema": 2}, "written by a newer isoflop"),
        ({"schema": "x"}, "not a version number"),
        ({"cost": None}, "lacks cost"),
    ):
        text = {key: value for key, value in (raw | change).items() if value is not None}
        (tmp_path / "fit.json").write_text(json.dumps(text))
        with pytest.raises(UserError, match=words):
            read_fit(tmp_path)
    (tmp_path / "fit.json").write_text("{")
    with pytest.raises(UserError, match="not a readable"):
        read_fit(tmp_path)


def test_without_replicates_no_interval_is_claimed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text((folder / "fit.json").read_text())
    for said in predict_fit(tmp_path, flops=1e20):
        assert said.params.value is not None and said.params.low is None
        assert said.statement.startswith("No intervals")


def test_every_convention_is_fitted_and_a_moving_exponent_is_said() -> None:
    n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, 5), sizes=9, spacing=1.4, noise=0.002)
    fit = fit_tables(tables(n, d, flops, loss, params_non_embedding=n - 2e4 * n**0.4), QUICK)
    assert [one.conventions.params for one in fit.by_convention] == ["total", "non_embedding"]
    assert {one.conventions.flops for one in fit.by_convention} == {"matmul"}
    assert any("with N = total" in warning and "with N = non_embedding" in warning for warning in fit.warnings)
    first = fit_tables(
        tables(n, d, flops, loss, params_non_embedding=n / 2), replace(QUICK, params=ParamCount.non_embedding)
    )
    assert first.primary.conventions.params == "non_embedding"


def test_every_count_of_flops_is_fitted_besides() -> None:
    n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, 5), sizes=9, spacing=1.4, noise=0.002)
    made = tables(n, d, flops, loss, flops_6nd=flops, flops_chinchilla=flops * (n / 1e9) ** -0.02)
    fit = fit_tables(made, QUICK)
    pairs = [(one.conventions.params, one.conventions.flops) for one in fit.by_convention]
    assert pairs == [("total", "matmul"), ("total", "chinchilla")]  # 6nd counts as matmul does here
    first, second = (one.parametric for one in fit.by_convention)
    assert isinstance(first, Parametric) and isinstance(second, Parametric)
    assert (first.fit.array() == second.fit.array()).all()  # L(N, D) knows no C
    assert first.a.value != second.a.value


def test_intervals_under_every_way_to_resample() -> None:
    seeds = np.tile([0.0, 1, 2], 15)
    fit = fit_tables(_sweep(seed=seeds), replace(QUICK, compare=True))
    assert set(fit.compared) == {"budgets", "cases", "sizes", "seeds", "bayesian", "residuals", "subsample"}
    widths = {how: a["parametric"].high - a["parametric"].low for how, a in fit.compared.items()}  # type: ignore[operator]
    assert widths["subsample"] < 0.8 * min(widths["cases"], widths["bayesian"], widths["residuals"])
    assert "seeds" not in fit_tables(_sweep(), replace(QUICK, compare=True)).compared
    assert fit.compared["bayesian"]["envelope"].low is None  # every run is always there


def test_valleys_and_windows(result: FitResult) -> None:
    two = result.primary.isoflop
    assert isinstance(two, Isoflop)
    assert two.windows[-1].factor is None and two.windows[-1].a == pytest.approx(two.a.value)
    assert two.fit.bias is not None and np.abs(two.fit.bias).max() < 0.05
    cubic = fit_tables(_sweep(), replace(QUICK, valley=Valley.cubic, unbias=True)).primary.isoflop
    assert isinstance(cubic, Isoflop) and cubic.fit.unbiased and cubic.fit.valley is Valley.cubic
    assert cubic.a.value == pytest.approx(A_TRUE, abs=0.05)


def test_flops_conventions() -> None:
    n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, 4))
    made = tables(n, d, flops, loss, flops_chinchilla=flops * 1.1, flops_6nd=6 * n * d)
    assert fit_tables(made, replace(QUICK, flops="chinchilla")).primary.rows.flops == pytest.approx(flops * 1.1)
    most = tables(n, d, np.where(np.arange(len(n)) < 3, flops, np.nan), loss, flops_logged=flops, flops_6nd=flops)
    assert fit_tables(most, QUICK).primary.conventions.flops == "logged"  # the first of the two that every row has
    written = [fit_tables(made, replace(QUICK, flops=spelling)).primary for spelling in ("sixnd", "6nd")]
    assert [fit.conventions.flops for fit in written] == ["6nd", "6nd"]
    assert written[0].rows.flops == pytest.approx(6 * n * d)
    with pytest.raises(UserError, match=r"fit\.flops=flopz is not a way to count FLOPs; choose auto, matmul"):
        fit_tables(made, replace(QUICK, flops="flopz"))


def test_one_budget_refuses_all_three_and_is_still_written(tmp_path: Path) -> None:
    fit = fit_tables(_sweep(budgets=1), QUICK)
    assert all(isinstance(approach, Refused) for approach in fit.primary.approaches.values())
    write_fit(fit, tmp_path)
    raw = json.loads((tmp_path / "fit.json").read_text())
    assert all(set(approach) == {"refused"} for approach in raw["approaches"].values())
    with pytest.raises(UserError, match="every approach was refused"):
        predict_fit(tmp_path, flops=1e20)


def test_no_usable_row_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"made up holds no usable row \(45 x diverged\)"):
        fit_tables(_sweep(verdict="diverged"), QUICK)
    sweep = _sweep()
    with pytest.raises(UserError, match="made up holds no points"):
        fit_tables(replace(sweep, points=sweep.points.iloc[:0], curves=sweep.curves.iloc[:0]), QUICK)
    with pytest.raises(UserError, match=r"no usable row \(45 x where=loss > 100 leaves it out\)"):
        fit_tables(keep_where(sweep, "loss > 100"), QUICK)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"level": 95}, r"fit\.level=95 is out of range; give a number between 0 and 1"),
        ({"delta": 0.0}, r"fit\.delta=0\.0"),
        ({"tail": 1.0}, r"fit\.tail=1\.0"),
        ({"window": 0.5}, r"fit\.window=0\.5"),
        ({"replicates": -1}, r"fit\.replicates=-1"),
        ({"origins": 0}, r"fit\.origins=0"),
        ({"E": 1.7}, r"fit\.form=free with fit\.E=1\.7"),
        ({"form": Form.fixed_E}, r"fit\.form=fixed_E with fit\.E=None"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit_tables(_sweep(), replace(QUICK, **setting))


def test_no_replicates_no_intervals() -> None:
    fit = fit_tables(_sweep(), replace(QUICK, replicates=0))
    assert isinstance(fit.primary.isoflop, Isoflop) and fit.primary.isoflop.a.low is None
    assert isinstance(fit.backtest, Refused)
    json.dumps(fit.to_dict(), allow_nan=False)


def test_training_losses_serve_where_validation_is_missing() -> None:
    sweep = _sweep()
    curves = sweep.curves.assign(train_loss=sweep.curves["val_loss"], val_loss=np.nan)
    fit = fit_tables(replace(sweep, curves=curves), QUICK)
    assert isinstance(fit.primary.envelope, Envelope)
    assert any("training losses" in note for note in fit.notes)


def test_replicates_that_lose_a_budget_are_counted_and_said(result: FitResult) -> None:
    n, d, flops, loss = isoflop_design(np.geomspace(1e18, 1e21, 5), sizes=9, spacing=1.4, noise=0.002)
    loss[:9] *= np.exp(0.03 * np.random.default_rng(3).standard_normal(9))  # the least budget's valley is hardly one
    fit = fit_tables(tables(n, d, flops, loss), QUICK)
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop) and len(two.lost) == len(two.fit.accepted) == 5
    shares = list(two.lost.values())
    assert shares[0] > 0.05 and max(shares[1:]) < 0.05
    said = [text for text in fit.warnings if "have no minimum in more than 5% of the replicates" in text]
    assert len(said) == 1 and f"1e18 ({shares[0]:.0%})" in said[0] and "1e21" not in said[0]
    stored = fit.to_dict()["approaches"]["isoflop"]["valleys"]
    assert [at["replicates_lost"] for at in stored] == shares
    assert not any("have no minimum" in text for text in result.warnings)


def test_one_law_through_several_values_of_an_axis_is_warned_of() -> None:
    rates = {"axis.optim.lr": np.tile([1e-3, 3e-3, 1e-2], 15), "axis.optim.clip": 1.0}
    mixed = _sweep(**rates)
    said = [text for text in fit_tables(mixed, QUICK).warnings if "group_by" in text]
    assert said == [
        "One law is fitted to points that differ in optim.lr (3 values); fit each one with group_by=axis.optim.lr."
    ]
    for group, part in split(mixed, ["axis.optim.lr"]):
        assert not any("group_by" in text for text in fit_tables(part, QUICK, group).warnings)


def test_what_is_odd_about_the_rows_stands_in_the_fit() -> None:
    kinds = np.repeat(["base", "tuned"], [20, 25])
    assert any("group_by=hparams." in note for note in fit_tables(_sweep(hparams=kinds), QUICK).notes)
    told = fit_tables(_sweep(**{"axis.optim.rule": kinds}), QUICK)
    assert not any("group_by" in note for note in told.notes) and any("group_by" in text for text in told.warnings)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("params", [1e300, 1e-300])
def test_far_out_a_fit_says_that_it_knows_nothing(folder: Path, params: float) -> None:
    for said in predict_fit(folder, params=params):
        assert said.flops.value is None and said.tokens.value is None
        assert (
            said.statement
            == f"Not known: there is no optimum at params={params:g} that a floating-point number can hold."
        )


def test_clusters_are_resampled_together() -> None:
    clusters = [f"c{i % 9}" for i in range(45)]
    fit = fit_tables(_sweep(cluster_id=clusters), replace(QUICK, resample=Resample.clusters))
    assert "clusters" in fit.interval.method
    assert isinstance(fit.primary.parametric, Parametric) and fit.primary.parametric.a.low is not None


def test_warnings_about_the_rows() -> None:
    worn = replace(QUICK, epochs=None)
    few = fit_tables(_sweep(budgets=2, sizes=5, unique_tokens=1e8, flags="undertuned"), worn).warnings
    assert any(text.startswith("Only 10 points") for text in few)
    assert any("repeat" in text or "more than 4 times" in text for text in few)
    assert any("10 of 10 points carry the flag undertuned" in text for text in few)
    assert any("two budgets" in text for text in few)


def test_rows_that_repeat_their_data_are_left_out_of_the_law() -> None:
    sweep = _sweep()
    unique = np.where(np.arange(45) < 7, sweep.points["tokens"] / 4.5, sweep.points["tokens"] / 3)
    fit = fit_tables(_sweep(unique_tokens=unique), QUICK)
    assert len(fit.primary.rows) == 38
    assert {out.reason for out in fit.excluded} == {"it sees its data more than 4 times (fit.epochs=null keeps it)"}
    assert [out.row for out in fit.excluded] == [f"run{i:03d}" for i in range(7)]
    assert len(fit_tables(_sweep(unique_tokens=unique), replace(QUICK, epochs=None)).primary.rows) == 45
    assert isinstance(fit.repeated, Refused)  # no row sees its data once: there is no law of fresh tokens


# An Approach 3 that did not converge


def test_what_did_not_converge_is_quoted_in_no_file(tmp_path: Path) -> None:
    fit, why = unconverged(plain_fit()), "did not converge: relative gradient 0.02"
    write_fit(fit, tmp_path)
    exponents = pd.read_csv(tmp_path / "exponents.csv").groupby("approach").nth(0).set_index("approach")
    assert exponents.loc["parametric", "refused"] == why and pd.isna(exponents.loc["isoflop", "refused"])
    assert exponents.loc["parametric", ["a", "a_low", "a_high", "b", "b_low", "b_high"]].isna().all()
    assert exponents.loc["isoflop", ["a", "b"]].notna().all()
    said = json.loads((tmp_path / "fit.json").read_text())["approaches"]["parametric"]
    assert said["refused"] == why and said["certificate"]["converged"] is False
    assert not {"a", "b", "n_opt", "d_opt", "loss_opt", "E", "A", "alpha", "if_bent"} & set(said)
    with pytest.raises(UserError, match=r"there is no law \(did not converge: relative gradient"):
        law_of_fit(tmp_path)


def test_approach_2_leans_on_no_surface_that_did_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*arguments: Any) -> ParametricFit:
        law = fit_law(*arguments)
        assert isinstance(law, ParametricFit)
        return replace(law, certificate=replace(law.certificate, converged=False))

    monkeypatch.setattr("analysis.fit.fit_law", stuck)
    config = replace(QUICK, replicates=0)
    plain = fit_tables(_sweep(), config).primary.isoflop
    assert isinstance(plain, Isoflop) and plain.fit.bias is None and plain.fit.surface is None
    for changes in ({"unbias": True}, {"valley": Valley.surface}):
        found = fit_tables(_sweep(), replace(config, **changes)).primary.isoflop  # type: ignore[arg-type]
        assert isinstance(found, Refused) and "there is none that converged" in found.reason


def test_no_warning_quotes_what_did_not_converge() -> None:
    fit = plain_fit()
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    far = replace(
        fit, primary=replace(fit.primary, parametric=replace(law, a=Estimate(value=0.9, low=0.89, high=0.91)))
    )
    for one, quoted in ((far, True), (unconverged(far), False)):
        said = warnings((one.primary, *fit.by_convention[1:]), fit.points, fit.backtest, Resample.cases)
        assert any("0.900" in text for text in said) is quoted
        assert any("do not overlap" in text for text in said) is quoted
        assert any("Newton's method stopped" in text for text in said) is not quoted
