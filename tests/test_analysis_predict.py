from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_fits import plain_fit, without

from analysis.fitting.effective import loss_repeated
from analysis.laws.constrained import PUBLISHED
from analysis.laws.law import SurfaceLaw, find_law, known_laws
from analysis.predict import NO_INTERVAL, law_of_fit, predict_fit, predict_law, predict_models
from analysis.predict.question import Kind, Numbers, Question
from analysis.predict.reach import measured_text, reach_text
from analysis.store import StoredFit, read_fit, write_fit
from trainer.errors import UserError

LAW = find_law("besiroglu2024")
assert isinstance(LAW, SurfaceLaw)
THETA = LAW.array()
BACKTEST = {
    "level": 0.95,
    "loss": [{"held_out": 7, "coverage": 1.0, "reach": 3.0}],
    "n_opt": {
        "isoflop": [{"held_out": 5, "coverage": 0.0, "reach": 9.0}, {"held_out": 3, "coverage": 1.0, "reach": 8}]
    },
    "counted_once": {
        "loss": {"measured": 7, "inside": 7, "law_inside": 2, "reach": 3.0},
        "n_opt": {"isoflop": {"measured": 4, "inside": 3, "law_inside": 1, "reach": 8.0}},
    },
}
Answer = Any


def stored(folder: Path, **changes: Any) -> Path:
    """A fit's folder as ``fit`` leaves it: Approach 3 is Besiroglu's law with replicates, Approach 2 its frontier."""
    level, a, loss = np.log(LAW.at_flops(1e19).params) - LAW.a * np.log(1e19), LAW.a, LAW.at_flops(1e19).loss
    lines = {"n_opt": (level, a), "d_opt": (-np.log(6) - level, 1 - a), "loss_opt": (np.log(loss), 0.0)}
    laws = {name: {"log_coefficient": float(c), "exponent": float(e)} for name, (c, e) in lines.items()}
    surface = {name: {"value": getattr(LAW, name)} for name in ("E", "A", "B", "alpha", "beta")}
    raw = {
        "schema": 1,
        "source": "made up",
        "conventions": {"params": "total", "flops": "6nd", "loss": "nats/token"},
        "cost": {"coefficient": 6.0, "exponent": 1.0, "spread": 0.0},
        "interval": {"method": "bootstrap: points drawn; percentiles", "level": 0.9, "replicates": 300, "seed": 0},
        "approaches": {
            "envelope": {"refused": "no curves"},
            "isoflop": {"laws": laws | {"flops_range": [1e18, 1e20]}},
            "parametric": surface,
        },
        "by_convention": [],
        "ranges": {"flops": [1e18, 1e20]},
        "backtest": BACKTEST,
    }
    rng = np.random.default_rng(0)
    many = THETA + rng.standard_normal((300, 5)) * [0.01, 0.02, 0.001, 0.0005, 0.001]
    key = "total/6nd/parametric"
    scatter = {f"{key}/residuals/loss_opt": rng.standard_normal(200) * 0.01, f"{key}/freedom/loss_opt": np.array(195.0)}
    np.savez(folder / "replicates.npz", **{key: many}, **scatter)
    (folder / "fit.json").write_text(json.dumps(raw | changes))
    return folder


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    return stored(tmp_path)


def inside(number: Any) -> bool:
    return number.low < number.value < number.high


def test_a_fit_answers_with_intervals_and_prediction_intervals(fit: Path) -> None:
    isoflop, parametric = predict_fit(fit, flops=1e20)
    at = LAW.at_flops(1e20)
    for said in (isoflop, parametric):
        assert (said.params.value, said.tokens.value) == pytest.approx((at.params, at.tokens), rel=1e-6)
        assert said.kind is Kind.optimum and not said.extra and "times the largest" not in said.statement
    assert isoflop.params.low is None and "No intervals" in isoflop.statement
    assert inside(parametric.params) and inside(parametric.tokens) and inside(parametric.loss)
    assert parametric.flops.low is None
    assert parametric.loss.prediction is not None and parametric.params.prediction is None
    low, high = parametric.loss.prediction
    assert low < parametric.loss.low < parametric.loss.high < high  # type: ignore[operator]
    assert "90% intervals; bootstrap: points drawn" in parametric.statement


def test_a_point_of_ones_own(fit: Path) -> None:
    (said,) = predict_fit(fit, params=1e9, tokens=1e11)
    assert said.kind is Kind.point and said.by == "parametric"
    assert said.loss.value == pytest.approx(LAW.loss(1e9, 1e11)) and inside(said.loss) and said.loss.prediction
    assert said.flops.value == 6e20 and said.flops.low is None and said.params.low is None
    extra = said.extra
    assert inside(extra["overspend"]) and inside(extra["params_ratio"]) and extra["overspend"].value > 1  # type: ignore[operator]
    optimal = LAW.at_flops(6e20 / extra["overspend"].value)  # type: ignore[operator]
    assert optimal.loss == pytest.approx(said.loss.value)
    law = predict_law(LAW, params=1e9, tokens=1e11)
    assert law.extra["overspend"].value == pytest.approx(extra["overspend"].value)
    best = LAW.at_flops(1e20)
    at_ratio = predict_law(LAW, flops=1e20, tokens_per_param=best.tokens / best.params)
    assert at_ratio.extra["overspend"].value == pytest.approx(1) and at_ratio.params.value == pytest.approx(best.params)


def test_few_unique_tokens_in_a_fit(fit: Path, tmp_path: Path) -> None:
    (said,) = predict_fit(fit, flops=1e20, unique_tokens=1e9)
    n, d, loss = (getattr(said, name).value for name in ("params", "tokens", "loss"))
    assert 6 * n * d == pytest.approx(1e20)
    assert loss == pytest.approx(float(loss_repeated(THETA, PUBLISHED, n, d, 1e9)))
    assert inside(said.params) and inside(said.extra["epochs"])
    assert said.extra["epochs"].value == pytest.approx(d / 1e9) and said.extra["loss_fresh"].value < loss
    assert "R_D* = 15.39, R_N* = 5.31 (Muennighoff et al. 2023" in said.statement
    own = {
        "r_d": {"value": 4.0},
        "r_n": {"value": None},
        "law": {k: getattr(LAW, k) for k in ("E", "A", "B", "alpha", "beta")},
    }
    (other,) = predict_fit(stored(tmp_path, repeated=own), flops=1e20, unique_tokens=1e9)
    assert other.loss.value == pytest.approx(
        float(loss_repeated(THETA, np.array([4.0, np.inf]), other.params.value, other.tokens.value, 1e9))  # type: ignore[arg-type]
    )
    assert "R_D* = 4, excess parameters as good as any" in other.statement and other.params.low is None
    (unknown,) = predict_fit(stored(tmp_path, repeated={"refused": "nothing repeats"}), flops=1e20, unique_tokens=1e9)
    assert unknown.loss.value == pytest.approx(loss)


def test_repeats_at_a_point() -> None:
    said = predict_law(LAW, params=1e9, tokens=1e11, unique_tokens=1e10)
    assert said.extra["epochs"].value == pytest.approx(10)
    assert said.loss.value == pytest.approx(float(loss_repeated(THETA, PUBLISHED, 1e9, 1e11, 1e10)))
    assert said.extra["loss_fresh"].value == pytest.approx(LAW.loss(1e9, 1e11))
    assert said.extra["overspend"].value > predict_law(LAW, params=1e9, tokens=1e11).extra["overspend"].value  # type: ignore[operator]
    enough = predict_law(LAW, flops=1e20, unique_tokens=1e13)
    assert enough.params.value == pytest.approx(LAW.at_flops(1e20).params) and enough.extra["epochs"].value == 1


def test_use_after_training(fit: Path) -> None:
    (said,) = predict_fit(fit, flops=1e20, inference_tokens=1e12)
    at = LAW.at_flops(1e20)
    n, d = said.params.value, said.tokens.value
    assert n is not None and d is not None and n < at.params and d > at.tokens
    assert said.loss.value == pytest.approx(at.loss)
    total = 6 * n * d + 2 * n * 1e12
    assert said.extra["flops_total"].value == pytest.approx(total)
    assert said.extra["saving"].value == pytest.approx(1 - total / (1e20 + 2 * at.params * 1e12))
    assert said.flops.value == pytest.approx(6 * n * d) and inside(said.flops) and inside(said.params)
    assert said.statement.startswith(
        "The cheapest way, 1e+12 tokens of use included, to the loss that is compute-optima"
    )


def test_a_refused_approach_3_answers_no_such_question(tmp_path: Path) -> None:
    approaches = {name: {"refused": f"{name} is poor"} for name in ("envelope", "isoflop", "parametric")}
    path = stored(tmp_path, approaches=approaches)
    with pytest.raises(UserError, match=r"Approach 3, which alone answers this, was refused, .*parametric is poor"):
        predict_fit(path, flops=1e20, inference_tokens=1e12)
    with pytest.raises(UserError, match=r"every approach was refused, .*envelope is poor"):
        predict_fit(path, flops=1e20)
    with pytest.raises(UserError, match="Approach 3 was refused, so there is no law"):
        law_of_fit(path)


def test_an_approach_3_that_did_not_converge_is_not_quoted(fit: Path, tmp_path: Path) -> None:
    raw = json.loads((fit / "fit.json").read_text())["approaches"]
    raw["parametric"]["certificate"] = {"converged": False}
    path = stored(tmp_path, approaches=raw)
    assert [said.by for said in predict_fit(path, flops=1e20)] == ["isoflop"]
    with pytest.raises(UserError, match=r"\(parametric: it did not converge\)"):
        predict_fit(path, params=1e9, tokens=1e10)


@pytest.mark.parametrize("name", known_laws())
def test_every_law_can_be_asked(name: str) -> None:
    law = find_law(name)
    said = predict_law(law, flops=1e20)
    assert said.params.value == law.at_flops(1e20).params
    assert NO_INTERVAL in said.statement
    json.dumps(said.to_dict(), allow_nan=False)
    point = predict_law(law, params=1e9, tokens=2e10)
    assert point.extra["params_ratio"].value is not None
    assert (point.loss.value is not None) == isinstance(law, SurfaceLaw)
    assert predict_models(law)[0].model.name == "GPT-3"
    if not isinstance(law, SurfaceLaw):
        for asked in ("unique_tokens", "inference_tokens"):
            with pytest.raises(UserError, match=rf"law={name} knows N\*\(C\) alone, and {asked}= needs L\(N, D\)"):
                predict_law(law, flops=1e20, **{asked: 1e10})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "predict got nothing; give exactly one of flops=, params= and tokens="),
        ({"flops": 1e20, "params": 1e9}, r"got flops=1e\+20 params=1e\+09; give exactly one"),
        ({"flops": 1e20, "params": 1e9, "tokens": 1e9}, "give exactly one"),
        ({"unique_tokens": 1e9}, "predict got unique_tokens=1e\\+09; give exactly one"),
        ({"params": 1e9, "unique_tokens": 1e9}, "got params=1e\\+09 unique_tokens=1e\\+09; .* go with flops="),
        ({"params": 1e9, "tokens": 1e9, "inference_tokens": 1e9}, "go with flops="),
        ({"flops": 1e20, "inference_tokens": 1e9, "unique_tokens": 1e9}, "the last with nothing besides"),
        ({"flops": 1e20, "unique_tokens": -1.0}, "unique_tokens=-1.0 is not a positive number"),
        ({"flops": float("inf")}, "flops=inf is not a positive number"),
    ],
)
def test_what_makes_no_question_is_refused(asked: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Question(**asked)


def test_reach_is_told(fit: Path) -> None:
    for flops, words in ((2.9e20, ""), (4e20, "is 4 times the largest C fitted (1e20): extrapolation"), (1e18 / 2, "")):
        assert words in reach_text(flops, (1e18, 1e20)) and bool(words) == bool(reach_text(flops, (1e18, 1e20)))
    assert reach_text(1e17, (1e18, 1e20)) == "C = 1e17 is 10 times below the smallest C fitted (1e18): extrapolation."
    assert "is 5,000 times the largest C fitted (1e20): far extrapolation; so." in reach_text(5e23, (1e18, 1e20), "so")
    assert reach_text(None, (1.0, 2.0)) == reach_text(1e30, None) == ""
    isoflop, parametric = (said.statement for said in predict_fit(fit, flops=1e22))
    assert "is 100 times the largest C fitted (1e20): far extrapolation; its backtest reached 8 times beyond" in isoflop
    assert "3 of 4 minima of held-out budgets lay in their 95% prediction intervals." in isoflop
    assert "its backtest reached 3 times beyond what it fitted, where 7 of 7 losses of held-out" in parametric
    assert measured_text({"refused": "too few"}, "isoflop") == measured_text(None, "parametric") == ""
    assert measured_text({name: BACKTEST[name] for name in ("level", "loss", "n_opt")}, "isoflop") == ""  # an older one
    assert "44 times the largest C fitted" in predict_law(LAW, flops=5.76e23).statement


def test_a_fit_without_ranges_or_backtest_says_nothing_of_reach(tmp_path: Path) -> None:
    path = stored(tmp_path, ranges=None, backtest=None)
    assert all("fitted" not in said.statement for said in predict_fit(path, flops=1e26))


def test_a_fit_is_a_law_too(fit: Path) -> None:
    law = law_of_fit(fit)
    assert law.array() == pytest.approx(THETA) and law.flops_range == (1e18, 1e20)
    assert law.at_flops(1e20).params == pytest.approx(LAW.at_flops(1e20).params)


@pytest.mark.parametrize("count", ["6nd", "matmul", "logged", "chinchilla"])
def test_a_fit_as_a_law_counts_as_the_fit_does(tmp_path: Path, count: str) -> None:
    conventions = {"params": "non_embedding", "flops": count, "loss": "nats/token"}
    ranges = {"flops": [1e18, 1e20], "params": [1e7, 1e9]}
    law = law_of_fit(stored(tmp_path, conventions=conventions, ranges=ranges))  # matmuls may come to 6 N D
    assert (law.params.value, law.flops.value, law.params_range) == ("non_embedding", count, (1e7, 1e9))


def test_an_extrapolated_cost_is_told(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    ranges, cost = {"flops": [1e18, 1e20], "params": [1e7, 1e9]}, {"coefficient": 200.0, "exponent": 0.85}
    conventions = {"params": "total", "flops": "matmul", "loss": "nats/token"}
    path = stored(tmp_path, conventions=conventions, ranges=ranges, cost=cost | {"spread": 0.01})
    words = "C = 200 N^0.85 D was measured on N from 10M to 1B and is extrapolated to N = "
    assert words in predict_fit(path, params=1e11, tokens=1e12)[0].statement
    assert words not in predict_fit(path, params=1e8, tokens=1e12)[0].statement
    assert [words in said.statement for said in predict_fit(path, flops=1e26)] == [False, True]  # isoflop has D* itself
    shown = " ".join(isoflop("predict", f"path={path}", "models=true").out.split())
    assert words in shown and "N counts total parameters, C by the matmul count" in shown
    rows = {row["name"]: row for row in isoflop("predict", f"path={path}", "models=true", "format=json").json}
    assert rows["Gopher"]["flops_of_law"] == pytest.approx(200 * 280e9**0.85 * 300e9)
    assert rows["Gopher"]["conventions"] == conventions and "0.64 times 6 N D" in rows["Gopher"]["beware"]
    law = " ".join(isoflop("predict", "law=kaplan2020", "models=true").out.split())
    assert "N counts non-embedding parameters, C by the 6nd count" in law and "extrapolated" not in law


# In memory and on disk


def test_a_fit_in_memory_says_what_its_folder_says(tmp_path: Path) -> None:
    result = plain_fit()
    write_fit(result, tmp_path)
    questions: list[dict[str, float]] = [{"flops": 1e22}, {"params": 1e9}, {"params": 1e9, "tokens": 1e11}]
    questions += [{"flops": 1e20, "unique_tokens": 1e9}, {"flops": 1e20, "inference_tokens": 1e12}]
    for asked in questions:
        said = [one.to_dict() for one in predict_fit(result, **asked)]  # type: ignore[arg-type]
        assert said and any(one["params"]["low"] or one["loss"]["low"] for one in said)
        for there in (tmp_path, str(tmp_path / "fit.json"), read_fit(tmp_path)):
            assert [one.to_dict() for one in predict_fit(there, **asked)] == said  # type: ignore[arg-type]
    assert law_of_fit(result) == law_of_fit(tmp_path) == law_of_fit(str(tmp_path))
    in_memory, read = StoredFit.of(result), read_fit(tmp_path)
    assert json.loads(json.dumps(in_memory.raw)) == read.raw
    assert in_memory.replicates.keys() == read.replicates.keys()
    assert all(np.array_equal(in_memory.replicates[key], read.replicates[key]) for key in read.replicates)


def test_a_refusal_in_memory_names_the_source() -> None:
    refused = without(plain_fit(), "envelope", "isoflop", "parametric")
    with pytest.raises(UserError, match="the fit of made up: every approach was refused, so the fit predicts nothing"):
        predict_fit(refused, flops=1e22)
    with pytest.raises(UserError, match="the fit of made up: Approach 3 was refused, so there is no law"):
        law_of_fit(refused)


def test_the_keywords_of_a_question_are_stated_once() -> None:
    assert [field.name for field in fields(Question)] == list(Numbers.__annotations__)
    with pytest.raises(TypeError, match="flop"):
        predict_law(LAW, flop=1e20)  # type: ignore[call-arg]


# The verb


def test_a_law_and_a_fit_answer_together(isoflop: Callable[..., Answer], fit: Path) -> None:
    both = ("predict", "law=hoffmann2022_tex", f"path={fit}")
    said = isoflop(*both, "flops=1e20", "format=json").json
    assert [one["by"] for one in said] == ["isoflop", "parametric", "hoffmann2022_tex"]
    assert said[:2] == isoflop("predict", f"path={fit}", "flops=1e20", "format=json").json
    assert said[2:] == isoflop("predict", "law=hoffmann2022_tex", "flops=1e20", "format=json").json
    shown = isoflop(*both, "flops=1e20").out
    assert shown.count("N counts total parameters") == 1  # they count alike, so one table holds them
    assert "loss in nats/token; of hoffmann2022_tex in nats/token" in " ".join(shown.split())
    assert shown.index("2 isoFLOP") < shown.index("3 parametric") < shown.rindex("hoffmann2022_tex")
    assert "90% intervals" in shown and NO_INTERVAL in " ".join(shown.split())
    shown = isoflop("predict", "law=kaplan2020", f"path={fit}", "params=1e9", "tokens=1e10").out
    total, other = shown.index("N counts total"), shown.index("N counts non-embedding")
    assert total < shown.index("3 parametric") < other < shown.index("kaplan2020")
    rows = isoflop(*both, "models=true", "format=json").json
    assert [row["by"] for row in rows if row["name"] == "Gopher"] == ["parametric", "hoffmann2022_tex"]
    shown = isoflop(*both, "models=true").out
    assert shown.count("Published models beside") == 2 and shown.count("were this law true of it") == 1


def test_the_verb_answers_in_json_and_in_a_table(isoflop: Callable[..., Answer], fit: Path) -> None:
    said = isoflop("predict", "law=muennighoff2023", "flops=9.3e21", "unique_tokens=25e9", "format=json").json[0]
    assert said["kind"] == "constrained" and said["epochs"]["value"] == pytest.approx(9.1, abs=0.05)
    shown = isoflop("predict", "law=muennighoff2023", "flops=9.3e21", "unique_tokens=25e9").out
    assert all(word in shown for word in ("epochs", "loss, all fresh", "R_D* = 15.39", "9.3 times the largest C"))
    shown = isoflop("predict", f"path={fit}", "flops=1e20").out
    assert "2 isoFLOP" in shown and "3 parametric" in shown and "one measured" in shown
    shown = isoflop("predict", "law=gadre2024_c4", "flops=1e18", "tokens_per_param=320").out
    assert "C/C* of this loss" in shown and "320" in shown
    shown = isoflop("predict", "law=kaplan2020", "params=1e9", "tokens=1e10").out
    assert "non-embedding" in shown and "–" in shown


def test_the_verb_lists_models(isoflop: Callable[..., Answer], fit: Path) -> None:
    rows = {row["name"]: row for row in isoflop("predict", "law=besiroglu2024", "models=true", "format=json").json}
    assert rows["Gopher"]["overspend"] == pytest.approx(2.01, abs=0.01) and rows["Gopher"]["flops"] == 5.04e23
    same = {row["name"]: row for row in isoflop("predict", f"path={fit}", "models=true", "format=json").json}
    assert same["Gopher"]["overspend"] == pytest.approx(rows["Gopher"]["overspend"])
    shown = isoflop("predict", "law=kaplan2020", "models=true").out
    assert "LLaMA 65B" in shown and "Published models beside kaplan2020" in shown
    said = isoflop("predict", "law=besiroglu2024", "models=true", "flops=1e20")
    assert said.code == 2 and said.sentence.startswith(
        "predict got models=true and flops=1e+20; models=true asks about"
    )


def test_a_frontier_law_centres_a_sweep_and_predicts_no_loss(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    base = ["plan", "sweep=chinchilla", f"root={tmp_path}", "format=json", "sweep.budgets=[1e21]"]
    sizes = {}
    for name in ("kaplan2020", "porian2024_refinedweb", "besiroglu2024"):
        points = isoflop(*base, f"sweep.centre.law={name}", f"law={name}").json["points"]
        assert all((p["predicted_loss"] is None) == (name != "besiroglu2024") for p in points)
        sizes[name] = float(np.median([p["params_non_embedding"] for p in points]))
        law = find_law(name)
        n = float(np.median([p[f"params_{law.params.value}"] for p in points]))
        assert law.at_flops(1e21).params == pytest.approx(n, rel=0.35)
    assert len(set(sizes.values())) == 3
