from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.optimize import minimize_scalar

from analysis.config import LawConfig
from analysis.fitting.optimum import optimum_for_loss
from analysis.fitting.values import SIX_ND, Cost
from analysis.laws.constrained import PUBLISHED, optimum_constrained
from analysis.laws.inference import optimum_with_inference
from analysis.laws.law import FrontierLaw, SurfaceLaw, find_law, known_laws, law_from_config
from analysis.laws.models import distance_from_optimal, published_models
from analysis.laws.offoptimum import at_ratio, overspend
from analysis.laws.search import lowest
from analysis.report.views import law_frontier
from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount

SURFACES = [name for name in known_laws() if isinstance(find_law(name), SurfaceLaw)]
NUMBERS = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}


def test_published_laws_are_found_by_name() -> None:
    assert {"besiroglu2024", "hoffmann2022", "hoffmann2022_tex", "kaplan2020", "muennighoff2023"} <= set(known_laws())
    for name in known_laws():
        law = find_law(name)
        assert law.name == name and re.search(r"20\d\d", law.source)
        assert law.flops is FlopCount.sixnd
        kaplans = "kaplan" in name
        assert law.params is (ParamCount.non_embedding if kaplans else ParamCount.total)
        assert law.flops_range is None or law.flops_range[0] < law.flops_range[1]


@pytest.mark.parametrize("name", known_laws())
def test_every_law_draws_a_frontier(name: str) -> None:
    law, flops = find_law(name), np.geomspace(1e18, 1e24, 5)
    params, tokens = law_frontier(law, flops)
    assert 6 * params * tokens == pytest.approx(flops)
    assert np.diff(np.log(params)) / np.diff(np.log(flops)) == pytest.approx(law.a)
    assert np.diff(np.log(tokens)) / np.diff(np.log(flops)) == pytest.approx(law.b)


@settings(max_examples=50)
@given(st.sampled_from(known_laws()), st.floats(1e14, 1e27))
def test_the_three_questions_agree(name: str, flops: float) -> None:
    law = find_law(name)
    at = law.at_flops(flops)
    assert 6 * at.params * at.tokens == pytest.approx(flops)
    for back in (law.at_params(at.params), law.at_tokens(at.tokens)):
        assert (back.flops, back.params) == pytest.approx((flops, at.params), rel=1e-8)
        assert back.loss == (None if at.loss is None else pytest.approx(at.loss))
    off = [law.excess(at.params * f, at.tokens / f) for f in (0.9, 1.1)]
    assert law.excess(at.params, at.tokens) < min(off)


def test_unknown_law_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"law=chinchila is not known; choose one of besiroglu2024, gadre2024_c4, "):
        find_law("chinchila")
    with pytest.raises(UserError, match="law=none is not known"):
        find_law("none")


def test_a_labs_own_law_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    text = {"defaults": ["schema", "_self_"], "name": "ours2026", "E": 1, "A": 2, "B": "3e2", "alpha": 0.5, "beta": 0.5}
    (tmp_path / "law" / "ours2026.yaml").write_text(yaml.safe_dump(text | {"params": "non_embedding"}))
    law = find_law("ours2026", [tmp_path])
    assert law.params is ParamCount.non_embedding and isinstance(law, SurfaceLaw) and law.B == 300
    assert "ours2026" in known_laws([tmp_path])


def test_every_yaml_fits_the_schema() -> None:
    folder = Path(__file__).parents[1] / "conf" / "law"
    for path in folder.glob("*.yaml"):
        raw = OmegaConf.load(path)
        assert raw.pop("defaults") == ["schema", "_self_"]
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LawConfig), raw))
        assert isinstance(merged, LawConfig)
        if path.stem != "none":
            assert law_from_config(merged) == find_law(path.stem)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "law=none lacks E, A, B, alpha, beta; choose one of besiroglu2024"),
        ({"name": "x", **NUMBERS, "beta": None}, "law=x lacks beta; choose one of"),
        ({"name": "x", **NUMBERS, "A": "much"}, r"law\.A=much of law=x is not a number"),
        ({"name": "x", **NUMBERS, "A": -1.0}, r"law\.A=-1.0 must be a positive number"),
        ({"name": "x", **NUMBERS, "alpha": 0.0}, r"law\.alpha=0.0 must be a positive number"),
        ({"name": "x", **NUMBERS, "E": float("nan")}, r"law\.E=nan must be a positive number"),
        ({"name": "x", **NUMBERS, "cost_exponent": 0.0}, r"law\.cost_exponent=0.0 must be a positive number"),
        ({"name": "x", **NUMBERS, "n_exponent": 0.5}, "law=x states A, B, alpha, beta, n_exponent; give a surface"),
        ({"name": "x", "n_exponent": 0.5}, "law=x states n_exponent; give a surface"),
        ({"name": "x", "n_coefficient": 1.0, "n_exponent": 1.2}, "D\\* ~ C\\^-0.2, but both must grow with C"),
        ({"name": "x", "d_coefficient": -1.0, "d_exponent": 0.5}, r"law\.d_coefficient=-1.0 must be a positive"),
        (
            {"name": "x", "n_coefficient": 1.0, "n_exponent": 0.5, "loss_exponent": 0.1},
            "state both law.loss_coefficient and law.loss_exponent",
        ),
        (
            {"name": "x", **NUMBERS, "flops": FlopCount.matmul},
            r"law\.flops=matmul: .* state law\.cost_coefficient and law\.cost_exponent",
        ),
    ],
)
def test_what_gives_no_law_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        law_from_config(LawConfig(**config))  # type: ignore[arg-type]


def test_a_law_file_with_an_unknown_count_is_refused(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "ours.yaml").write_text("{name: ours, E: 1, A: 2, B: 3, alpha: 0.5, beta: 0.5, flops: 6nd}")
    with pytest.raises(UserError, match=r"ours\.yaml: flops=6nd is not known; choose one of matmul, sixnd, "):
        find_law("ours", [tmp_path])


def test_a_law_in_other_flops_has_its_own_optima() -> None:
    """With C = k N^g D the optimum moves, and is the lowest loss along that budget."""
    cost = Cost(coefficient=9.0, exponent=0.95)
    law = law_from_config(
        LawConfig(name="x", flops=FlopCount.matmul, cost_coefficient=9.0, cost_exponent=0.95, **NUMBERS)
    )
    assert law.cost == cost and isinstance(law, SurfaceLaw)
    at = law.at_flops(1e21)
    assert cost.flops_per_token(at.params) * at.tokens == pytest.approx(1e21)
    sizes = at.params * np.array([0.97, 1, 1.03])
    assert np.argmin([law.loss(n, 1e21 / float(cost.flops_per_token(n))) for n in sizes]) == 1
    assert replace(law, cost=SIX_ND, flops=FlopCount.sixnd).at_flops(1e21).params != pytest.approx(at.params, rel=0.01)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        *(
            ("hoffmann2022_tex", given, value)
            for given, value in (("params", 1e300), ("tokens", 1e200), ("params", 1e-300))
        ),
        *(("kaplan2020", given, value) for given, value in (("params", 1e300), ("tokens", 1e200))),
    ],
)
def test_an_optimum_that_no_float_holds_is_refused(name: str, given: str, value: float) -> None:
    with pytest.raises(
        UserError, match=rf"^{given}={re.escape(f'{value:g}')}: the optimum of law={name} there lies bey"
    ):
        getattr(find_law(name), f"at_{given}")(value)


# Tables and numbers as they were published


def test_printed_digits_spoil_table_a3_and_the_tex_digits_do_not(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "chinchilla_tables_3_and_A3.csv").query("approach == 3")
    pairs = list(zip(table["params"], table["tokens"], strict=True))
    printed = [find_law("hoffmann2022").at_params(n).tokens / d for n, d in pairs]
    full = [find_law("hoffmann2022_tex").at_params(n).tokens / d for n, d in pairs]
    assert (min(printed), max(printed)) == pytest.approx((1.57, 2.22), abs=0.006)
    assert (min(full), max(full)) == pytest.approx((1.06, 1.19), abs=0.006)


def test_the_exponents_of_table_2(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "chinchilla_table2_exponents.csv").set_index("approach")
    names = {1: "hoffmann2022_approach1", 2: "hoffmann2022_approach2", 3: "hoffmann2022_tex"}
    for approach, name in names.items():
        law = find_law(name)
        assert law.a == pytest.approx(table.loc[approach, "a"], abs=0.006)
        assert law.b == pytest.approx(table.loc[approach, "b"], abs=0.006)


@pytest.mark.parametrize("approach", [1, 2])
def test_approaches_1_and_2_are_their_printed_rows(approach: int, shared_data: Path) -> None:
    rows = pd.read_csv(shared_data / "chinchilla_tables_3_and_A3.csv").query(f"approach == {approach}")
    law = find_law(f"hoffmann2022_approach{approach}")
    assert isinstance(law, FrontierLaw)
    exponent, level = np.polyfit(np.log(rows["flops"]), np.log(rows["params"]), 1)
    assert (law.a, law.n_opt.log_coefficient) == pytest.approx((exponent, level), rel=1e-9)
    for c, n, d in zip(rows["flops"], rows["params"], rows["tokens"], strict=True):
        assert law.at_flops(c).params == pytest.approx(n, rel=0.035)
        assert law.at_flops(c).tokens == pytest.approx(d, rel=0.06)


def test_gophers_budget() -> None:
    law = find_law("hoffmann2022_tex")
    at = law.at_flops(5.76e23)
    assert at.params == pytest.approx(40.36e9, rel=1e-3)
    assert at.tokens == pytest.approx(2.3785e12, rel=1e-3)
    assert law.a == pytest.approx(0.4565, abs=1e-4)


def test_kaplan_in_petaflop_days() -> None:
    law, day = find_law("kaplan2020"), 8.64e19
    for days in (1.0, 1e3):
        at = law.at_flops(days * day)
        assert at.params == pytest.approx(1.3e9 * days**0.73, rel=1e-9)
        assert at.loss == pytest.approx((3.1e8 / days) ** 0.05, rel=1e-9)
        # Table 6 has D_opt = 2e10 C^0.27 at the critical batch size, where tokens and compute are twice these.
        assert 2 * at.tokens == pytest.approx(2e10 * days**0.27, rel=0.12)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("porian2024_refinedweb", ("rw", "tuned", "short", "const", "standard", "val")),
        ("porian2024_openwebtext2", ("owt2", "tuned", "short", "const", "standard", "val")),
        ("porian2024_kaplan_refinedweb", ("rw", "base", "long", "kaplan", "kaplan", "train")),
        ("porian2024_kaplan_openwebtext2", ("owt2", "base", "long", "kaplan", "kaplan", "train")),
    ],
)
def test_porians_rows(name: str, key: tuple[str, ...], shared_data: Path) -> None:
    names = ["dataset", "hparams", "warmup", "decay", "param_count", "val"]
    fits = pd.read_csv(shared_data / "porian_published_fits.csv").query("fit == 'basic'").set_index(names)
    pairs = pd.read_csv(shared_data / "porian_optimal_pairs.csv").set_index(names).sort_index().loc[key]
    row, law = fits.sort_index().loc[key].squeeze(), find_law(name)
    assert isinstance(law, FrontierLaw)
    assert (law.a, np.exp(law.n_opt.log_coefficient)) == pytest.approx((row["n_exponent"], row["n_coef"]), rel=1e-12)
    assert law.flops_range == (pairs["flops"].min(), pairs["flops"].max())
    at = [law.at_flops(c) for c in pairs["flops"]]
    assert [one.params for one in at] == pytest.approx(pairs["n"], rel=0.16)
    assert [one.loss for one in at] == pytest.approx(pairs["loss"], rel=0.04)


@pytest.mark.parametrize(
    ("name", "dataset", "printed"),
    [
        ("gadre2024_c4", "c4_original", (141, 190, 0.121, 1.51)),
        ("gadre2024_redpajama", "rpj", (212, 367, 0.136, 1.84)),
        ("gadre2024_refinedweb", "rw_original", (157, 246, 0.127, 1.73)),
    ],
)
def test_gadres_law_is_a_surface(
    name: str, dataset: str, printed: tuple[float, float, float, float], shared_data: Path
) -> None:
    law = find_law(name)
    assert isinstance(law, SurfaceLaw) and law.alpha == law.beta
    eta = law.alpha / 2
    a, b = law.A * 6**eta, law.B * 6**eta
    assert (round(a), round(b), round(eta, 3), round(law.E, 2)) == printed
    for c, m in ((1e19, 5.0), (1e21, 20.0), (1e23, 640.0)):
        n, d = (float(x) for x in at_ratio(SIX_ND, c, m))
        assert (6 * n * d, d / n) == pytest.approx((c, m))
        assert law.loss(n, d) == pytest.approx(law.E + (a * m**eta + b * m**-eta) * c**-eta, rel=1e-12)
    rows = pd.read_csv(shared_data / "gadre_models.csv").query(f"train_dataset == '{dataset}' & eval_data == 'c4_val'")
    kept = rows[rows["run"].str.contains(r"d=\d+_l=\d+_h=\d+-1\.0$|d=96_l=8_h=4-16\.0$")]
    assert len(kept) == 5
    miss = [law.loss(n, d) - loss for n, d, loss in kept[["params", "tokens", "loss"]].itertuples(index=False)]
    assert np.abs(miss).max() < 0.02 and np.mean(miss) == pytest.approx(0, abs=1e-6)


def test_muennighoffs_digits() -> None:
    law = find_law("muennighoff2023")
    assert isinstance(law, SurfaceLaw)
    assert law.array() == pytest.approx([6.255414, 7.3049974, 0.6254804, 0.3526596, 0.3526596], rel=1e-12)
    assert law.at_flops(5.76e23).params == pytest.approx(69962173313.52, rel=1e-9)  # the authors' notebook


def test_llama_3s_two_digits() -> None:
    law = find_law("grattafiori2024")
    assert law.at_flops(3.8e25).tokens == pytest.approx(0.29 * 3.8e25**0.53, rel=1e-9)
    assert law.at_flops(3.8e25).loss is None


# What follows from a surface


@settings(max_examples=40)
@given(st.sampled_from(SURFACES), st.floats(1e18, 1e25), st.floats(0.02, 50), st.floats(0.9, 1.1), st.floats(1, 40))
def test_overspend_is_the_compute_of_the_optimum_of_equal_loss(
    name: str, flops: float, factor: float, exponent: float, coefficient: float
) -> None:
    cost = Cost(coefficient=coefficient, exponent=exponent)
    law = replace(find_law(name), cost=cost)
    assert isinstance(law, SurfaceLaw)
    at = law.at_flops(flops)
    c, n, d = optimum_for_loss(law.array(), cost, at.loss)
    assert (float(c), float(n), float(d)) == pytest.approx((flops, at.params, at.tokens), rel=1e-6)
    params, tokens = at.params * factor, flops / float(cost.flops_per_token(at.params * factor))
    wasted = float(overspend(law.array(), cost, params, tokens))
    assert wasted >= 1 - 1e-9
    assert law.at_flops(flops / wasted).loss == pytest.approx(law.loss(params, tokens), rel=1e-9)


def test_below_the_irreducible_loss_there_is_no_optimum() -> None:
    law = find_law("besiroglu2024")
    assert isinstance(law, SurfaceLaw)
    assert np.isnan(optimum_for_loss(law.array(), SIX_ND, [1.0, law.E])).all()
    assert np.isnan(optimum_with_inference(law.array(), SIX_ND, 1.5, 1e12)[0])


@settings(max_examples=30)
@given(st.sampled_from(SURFACES), st.floats(1e19, 1e24), st.floats(0, 1e14))
def test_the_inference_optimum_is_one(name: str, flops: float, served: float) -> None:
    law = find_law(name)
    assert isinstance(law, SurfaceLaw)
    at = law.at_flops(flops)
    assert at.loss is not None
    n, d, total = (float(x) for x in optimum_with_inference(law.array(), SIX_ND, at.loss, served))
    assert law.loss(n, d) == pytest.approx(at.loss, rel=1e-9)
    assert total == pytest.approx(6 * n * d + 2 * n * served, rel=1e-9)
    assert total <= (6 * at.params * at.tokens + 2 * at.params * served) * (1 + 1e-12)
    assert n <= at.params * 1.0001

    def cost(log_n: float) -> float:
        room = at.loss - law.E - law.A * np.exp(-law.alpha * log_n)
        tokens = (law.B / room) ** (1 / law.beta) if room > 0 else np.inf
        return float(np.log(6 * np.exp(log_n) * tokens + 2 * np.exp(log_n) * served))

    other = minimize_scalar(cost, bounds=(np.log(n) - 0.1, np.log(n) + 0.1), method="bounded", options={"xatol": 1e-10})
    assert np.log(total) == pytest.approx(float(other.fun), abs=1e-9)


def test_without_use_the_inference_optimum_is_chinchillas() -> None:
    law = find_law("hoffmann2022")
    assert isinstance(law, SurfaceLaw)
    at = law.at_flops(1e22)
    n, _, total = optimum_with_inference(law.array(), SIX_ND, at.loss, 0.0)
    assert (float(n), float(total)) == pytest.approx((at.params, 1e22), rel=1e-5)


def test_few_unique_tokens() -> None:
    """Figure 1 of Muennighoff et al.: at 9.3e21 FLOPs and 25B tokens, 6.34B parameters beat 8.67B."""
    law = find_law("muennighoff2023")
    assert isinstance(law, SurfaceLaw)
    n, d, loss = (float(x) for x in optimum_constrained(law.array(), PUBLISHED, SIX_ND, 9.3e21, 25e9))
    assert 6 * n * d == pytest.approx(9.3e21)
    assert loss < 2.2256440889984477 and n == pytest.approx(6.8e9, rel=0.01)
    fresh = law.at_flops(9.3e21)
    assert n < fresh.params and loss > fresh.loss
    enough = [float(x) for x in optimum_constrained(law.array(), PUBLISHED, SIX_ND, 9.3e21, 1e12)]
    assert enough == pytest.approx([fresh.params, fresh.tokens, fresh.loss], rel=1e-12)
    many = optimum_constrained(np.stack([law.array()] * 3), PUBLISHED, SIX_ND, 9.3e21, np.array([25e9, 25e9, 1e12]))
    assert many[0] == pytest.approx([n, n, fresh.params], rel=1e-9)
    endless = optimum_constrained(law.array(), np.array([np.inf, np.inf]), SIX_ND, 9.3e21, 25e9)
    assert float(endless[2]) == pytest.approx(fresh.loss, rel=1e-12)


@given(st.floats(-50, 50), st.floats(0.1, 10))
def test_the_grids_close_in(at: float, steepness: float) -> None:
    batch = np.array([at, -at])
    found = lowest(lambda x: steepness * np.abs(x - batch[:, None]) ** 1.5, [-60.0, -60.0], 60.0)
    assert found == pytest.approx(batch, abs=1e-6)


# Published models


def test_published_models() -> None:
    models = {model.name: model for model in published_models()}
    assert len(models) >= 25 and len(models) == len(published_models())
    assert {"GPT-3", "Gopher", "Jurassic-1", "MT-NLG", "Chinchilla", "LLaMA 65B"} <= set(models)
    assert models["Chinchilla"].flops == pytest.approx(5.88e23)
    for model in models.values():
        assert 0.1 < model.tokens / model.params < 5000 and model.source and 2020 <= model.year <= 2025
    years = [model.year for model in published_models()]
    assert years == sorted(years)


def test_how_far_models_lie_from_optimal() -> None:
    models = {model.name: model for model in published_models()}
    law = find_law("besiroglu2024")
    gopher, chinchilla = (distance_from_optimal(law, models[name]) for name in ("Gopher", "Chinchilla"))
    assert gopher.overspend == pytest.approx(2.01, abs=0.01) and gopher.params_ratio > 4
    assert chinchilla.overspend == pytest.approx(1, abs=0.005) and chinchilla.params_ratio == pytest.approx(1, abs=0.1)
    assert gopher.loss == law.loss(280e9, 300e9)
    assert chinchilla.loss is not None and gopher.loss is not None and chinchilla.loss < gopher.loss
    frontier = distance_from_optimal(find_law("kaplan2020"), models["Gopher"])
    assert frontier.overspend is None and frontier.loss is None and frontier.params_ratio < 1
