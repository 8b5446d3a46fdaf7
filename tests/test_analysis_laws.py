from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from analysis.laws import Law, LawConfig, find_law, known_laws
from analysis.predict import predict_law
from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount


def test_published_laws_are_found_by_name() -> None:
    assert known_laws() == ["besiroglu2024", "hoffmann2022", "hoffmann2022_tex"]
    for name in known_laws():
        law = find_law(name)
        assert law.name == name and law.source
        assert (law.params, law.flops) == (ParamCount.total, FlopCount.sixnd)


def test_unknown_law_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"law=chinchila is not known; choose one of besiroglu2024, hoffmann2022, "):
        find_law("chinchila")
    with pytest.raises(UserError, match="law=none is not known"):
        find_law("none")


def test_a_labs_own_law_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    text = {"defaults": ["schema", "_self_"], "name": "ours2026", "E": 1, "A": 2, "B": 3, "alpha": 0.5, "beta": 0.5}
    (tmp_path / "law" / "ours2026.yaml").write_text(yaml.safe_dump(text | {"params": "non_embedding"}))
    law = find_law("ours2026", [tmp_path])
    assert law.params is ParamCount.non_embedding
    assert "ours2026" in known_laws([tmp_path])


def test_every_yaml_fits_the_schema() -> None:
    folder = Path(__file__).parents[1] / "conf" / "law"
    for path in folder.glob("*.yaml"):
        raw = OmegaConf.load(path)
        assert raw.pop("defaults") == ["schema", "_self_"]
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LawConfig), raw))
        assert isinstance(merged, LawConfig)
        if path.stem != "none":
            assert Law.from_config(merged) == find_law(path.stem)


def test_law_none_cannot_be_asked() -> None:
    with pytest.raises(UserError, match=r"law=none lacks E, A, B, alpha, beta; choose one of besiroglu2024"):
        Law.from_config(LawConfig())


@pytest.mark.parametrize(("field", "value"), [("A", -1.0), ("alpha", 0.0), ("E", float("nan")), ("beta", -0.3)])
def test_numbers_without_an_optimum_are_refused(field: str, value: float) -> None:
    numbers = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3} | {field: value}
    with pytest.raises(UserError, match=rf"law\.{field}={value} must be a positive number"):
        Law(name="wrong", **numbers)


def test_printed_digits_spoil_table_a3_and_the_tex_digits_do_not(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "chinchilla_tables_3_and_A3.csv").query("approach == 3")
    pairs = list(zip(table["params"], table["tokens"], strict=True))
    printed = [find_law("hoffmann2022").at_params(n).tokens / d for n, d in pairs]
    full = [find_law("hoffmann2022_tex").at_params(n).tokens / d for n, d in pairs]
    assert (min(printed), max(printed)) == pytest.approx((1.57, 2.22), abs=0.006)
    assert (min(full), max(full)) == pytest.approx((1.06, 1.19), abs=0.006)


def test_gophers_budget() -> None:
    law = find_law("hoffmann2022_tex")
    at = law.at_flops(5.76e23)
    assert at.params == pytest.approx(40.36e9, rel=1e-3)
    assert at.tokens == pytest.approx(2.3785e12, rel=1e-3)
    assert law.a == pytest.approx(0.4565, abs=1e-4)
    assert law.a + law.b == pytest.approx(1)


@given(st.sampled_from(["hoffmann2022", "hoffmann2022_tex", "besiroglu2024"]), st.floats(1e12, 1e28))
def test_the_three_questions_agree_and_the_answer_is_a_minimum(name: str, flops: float) -> None:
    law = find_law(name)
    at = law.at_flops(flops)
    assert 6 * at.params * at.tokens == pytest.approx(flops)
    assert law.at_params(at.params).flops == pytest.approx(flops, rel=1e-9)
    assert law.at_tokens(at.tokens).flops == pytest.approx(flops, rel=1e-9)
    assert at.loss <= min(law.loss(at.params * f, at.tokens / f) for f in (0.98, 1.02))


@pytest.mark.parametrize(("given", "value"), [("params", 1e300), ("tokens", 1e200), ("params", 1e-300)])
def test_an_optimum_that_no_float_holds_is_refused(given: str, value: float) -> None:
    words = (
        rf"^{given}={re.escape(f'{value:g}')}: the optimum of law=hoffmann2022_tex there, N = 1e-?\d+ and D = 1e-?\d+,"
    )
    with pytest.raises(UserError, match=words):
        predict_law(find_law("hoffmann2022_tex"), **{given: value})


def test_a_law_in_other_flops_is_refused_as_its_optima_would_not_be_those() -> None:
    numbers = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    with pytest.raises(
        UserError, match=r"law\.flops=matmul: .* so law\.flops must be sixnd; fit with fit\.flops=sixnd"
    ):
        Law.from_config(LawConfig(name="ours", flops=FlopCount.matmul, **numbers))


def test_a_law_file_with_an_unknown_count_is_refused(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "ours.yaml").write_text("{name: ours, E: 1, A: 2, B: 3, alpha: 0.5, beta: 0.5, flops: 6nd}")
    with pytest.raises(UserError, match=r"ours\.yaml: flops=6nd is not known; choose one of matmul, sixnd, "):
        find_law("ours", [tmp_path])
