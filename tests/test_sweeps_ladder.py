"""The shape ladder and the designs drawn from it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.laws.law import find_law
from sweeps.config import CentreConfig, Design, SweepConfig
from sweeps.planning.design import Target, spaced, targets
from sweeps.planning.ladder import REACH, ladder, nearest_head_size, pick
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.shape import Activation

TOY = ModelConfig(head_size=16, aspect=24, aspect_spread=2.1, width_step=8, max_width=256)
LARGE = ModelConfig(head_size=128, aspect=80, aspect_spread=1.7, width_step=128, max_width=8192)


def draw(model: ModelConfig = TOY, **sweep: object) -> list[Target]:
    config = SweepConfig(name="t", **sweep)  # type: ignore[arg-type]
    return targets(config, model, vocabulary=256, sequence=128, law=find_law)


def test_the_ladder_rises_and_no_two_shapes_are_alike() -> None:
    shapes = ladder(TOY, vocabulary=256, sequence=128)
    sizes = [shape.params_non_embedding for shape in shapes]
    assert sizes == sorted(sizes)
    assert len({(shape.layers, shape.d_model) for shape in shapes}) == len(shapes)


@pytest.mark.parametrize("model", [TOY, LARGE])
def test_shapes_are_sane(model: ModelConfig) -> None:
    for shape in ladder(model, vocabulary=256, sequence=128):
        assert shape.attention_width == shape.d_model
        assert shape.head_size % 2 == 0
        assert shape.ffw == 4 * shape.d_model
        aspect = shape.d_model / shape.layers
        one_layer = shape.layers == 1 and aspect < model.aspect
        assert one_layer or 1 / model.aspect_spread <= aspect / model.aspect <= model.aspect_spread


def test_swiglu_takes_a_narrower_feed_forward() -> None:
    llama = ModelConfig(activation=Activation.swiglu, ffw_ratio=2.6667, width_step=64, max_width=512)
    shape = next(s for s in ladder(llama, vocabulary=256, sequence=128) if s.d_model == 384)
    assert shape.ffw == 1024
    assert shape.params_by_group()["ffw"] == shape.layers * 3 * 384 * 1024


@pytest.mark.parametrize(
    ("width", "wanted", "size"), [(16, 16, 16), (24, 16, 12), (48, 16, 16), (40, 16, 20), (64, 64, 64)]
)
def test_heads_take_the_nearest_even_size_that_divides(width: int, wanted: int, size: int) -> None:
    assert nearest_head_size(width, wanted) == size


@settings(max_examples=50)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=8, unique=True), st.floats(4e3, 5e3))
def test_sizes_find_near_shapes_all_different(steps: list[int], least: float) -> None:
    sizes = [least * 2.0**step for step in steps]
    chosen = pick(ladder(TOY, vocabulary=256, sequence=128), sizes, TOY)
    assert len(set(chosen)) == len(sizes)
    for shape, size in zip(chosen, sizes, strict=True):
        assert abs(math.log(shape.params_non_embedding / size)) <= math.log(REACH)


@pytest.mark.parametrize("size", [1.0, 1e12])
def test_a_size_off_the_ladder_is_refused_with_its_ends(size: float) -> None:
    with pytest.raises(UserError, match=r"sweep.sizes: no shape .* shapes from 792 to .*; choose sizes"):
        draw(design=Design.grid, sizes=[size], tokens_per_param=[20.0])


@given(st.floats(1e3, 1e12), st.integers(1, 12), st.floats(1.01, 10))
def test_spaced_sizes_surround_their_centre(centre: float, count: int, spacing: float) -> None:
    sizes = spaced(centre, count, spacing)
    assert len(sizes) == count
    assert math.exp(sum(math.log(size) for size in sizes) / count) == pytest.approx(centre, rel=1e-9)
    assert all(b / a == pytest.approx(spacing, rel=1e-9) for a, b in pairwise(sizes))


def test_isoflop_spends_each_budget_at_each_size() -> None:
    centre = CentreConfig(n_opt=4.4e4, at=1e12, exponent=0.6)
    found = draw(budgets=[3e11, 1e12], sizes=6, spacing=2.15, centre=centre)
    assert [target.budget for target in found] == [3e11] * 6 + [1e12] * 6
    for target in found:
        assert target.budget is not None
        assert target.tokens * target.shape.flops_per_token() == pytest.approx(target.budget)
    first = [target.shape.params_non_embedding for target in found[:6]]
    assert first == sorted(first)
    assert first[0] == pytest.approx(3.1e3, rel=0.05)
    assert first[-1] == pytest.approx(148e3, rel=0.05)


def test_a_law_centres_sizes_where_its_loss_is_least() -> None:
    law = find_law("hoffmann2022_tex")
    found = draw(LARGE, budgets=[1e20], sizes=9, spacing=1.4, centre=CentreConfig(law="hoffmann2022_tex"))
    losses = [law.loss(target.shape.params_total, target.tokens) for target in found]
    assert losses.index(min(losses)) in (3, 4, 5)


def test_horizons_cross_sizes_with_tokens() -> None:
    found = draw(design=Design.horizons, sizes=[1e4, 1e5], horizons=[1e6, 4e6, 16e6])
    assert [target.tokens for target in found] == [1e6, 4e6, 16e6] * 2
    assert len({target.shape for target in found}) == 2
    assert all(target.budget is None for target in found)


def test_grid_crosses_sizes_with_tokens_per_parameter() -> None:
    found = draw(design=Design.grid, sizes=[1e4, 1e5], tokens_per_param=[5.0, 20.0])
    assert [target.tokens / target.shape.params_total for target in found] == [5.0, 20.0, 5.0, 20.0]


def test_points_are_read_from_a_csv(tmp_path: Path) -> None:
    by_size, by_shape = tmp_path / "size.csv", tmp_path / "shape.csv"
    by_size.write_text("params,tokens\n12000,1e6\n12000,2e6\n50000,1e6\n")
    by_shape.write_text("layers,d_model,tokens\n2,48,1e6\n")
    sized = draw(design=Design.points, points=str(by_size))
    assert [target.tokens for target in sized] == [1e6, 2e6, 1e6]
    assert sized[0].shape == sized[1].shape != sized[2].shape
    (shaped,) = draw(design=Design.points, points=str(by_shape))
    assert (shaped.shape.layers, shaped.shape.d_model) == (2, 48)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has columns a, b and 1 rows; it needs params and tokens"),
        ("params,tokens\n", "and 0 rows"),
        ("params,tokens\n12000,-5\n", "row 1: tokens=-5 must be a positive number"),
        ("params,tokens\n12000,\n", "row 1: tokens=nan must be"),
        ("params,tokens\n12000,many\n", "row 1: tokens=many must be"),
        ("layers,d_model,tokens\n9,16,1e6\n", "row 1: layers=9, d_model=16 is off the shape ladder"),
    ],
)
def test_bad_points_are_refused_by_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        draw(design=Design.points, points=str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budgets": []}, r"sweep.budgets=\[\] must list at least one"),
        ({"budgets": [0.0]}, r"sweep.budgets holds 0.0; every entry must be a positive number"),
        ({"budgets": [-1e12]}, r"sweep.budgets holds -1000"),
        ({"budgets": [math.nan]}, r"sweep.budgets holds nan"),
        ({"budgets": [math.inf]}, r"sweep.budgets holds inf"),
        ({"budgets": [1e12, 1e12]}, r"names a value twice"),
        ({"sizes": [1e4, 1.001e4, 1.002e4, 1.003e4, 1.004e4]}, r"not already taken lies near .* further apart"),
        ({"sizes": 0}, r"sweep.sizes=0 must be 1 to 100"),
        ({"sizes": "six"}, r"sweep.sizes='six' must list"),
        ({"spacing": 1.0}, r"sweep.spacing=1.0 must be above 1"),
        ({"centre": CentreConfig()}, r"sweep.centre has law=None and n_opt=None; state one of them"),
        ({"centre": CentreConfig(n_opt=1e4)}, r"sweep.centre.at holds None"),
        ({"centre": CentreConfig(law="nobody1999")}, r"law=nobody1999 is not known; choose one of besiroglu2024"),
        ({"centre": CentreConfig(law="hoffmann2022")}, r"the optimum of hoffmann2022 lies off the shape ladder"),
        (
            {"design": Design.horizons, "horizons": [1e6]},
            r"design horizons needs a list of non-embedding parameter counts",
        ),
        ({"design": Design.horizons, "sizes": [1e4]}, r"sweep.horizons=\[\] must list"),
        ({"design": Design.grid, "sizes": [1e4]}, r"sweep.tokens_per_param=\[\] must list"),
        ({"design": Design.points}, r"sweep.points is empty"),
        ({"design": Design.points, "points": "/no/such.csv"}, r"sweep.points=/no/such.csv cannot be read"),
    ],
)
def test_bad_designs_are_refused_by_field(fields: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"budgets": [1e23], "centre": CentreConfig(n_opt=1e4, at=1e23)}
    with pytest.raises(UserError, match=message):
        draw(**(good | fields))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width_step", 7, "model.width_step=7 is odd"),
        ("head_size", 0, "model.head_size=0 is not positive"),
        ("aspect", math.nan, "model.aspect=nan must be a number above 0"),
        ("aspect_spread", 0.5, "model.aspect_spread=0.5 must be a number above 1"),
    ],
)
def test_bad_families_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ladder(ModelConfig(**{field: value}), vocabulary=256, sequence=128)  # type: ignore[arg-type]
