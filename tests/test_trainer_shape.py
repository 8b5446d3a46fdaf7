from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.shape import Activation, FlopCount, ParamCount, Positions, Shape, params_gopher_family

VOCABULARY, SEQUENCE = 32_000, 2048
TABLE_A4_TOLERANCE = 0.008  # printed with two decimals


def gopher_like(layers: int, d_model: int, heads: int, head_size: int, ffw: int) -> Shape:
    return Shape(
        layers=layers,
        d_model=d_model,
        heads=heads,
        head_size=head_size,
        ffw=ffw,
        vocabulary=VOCABULARY,
        sequence=SEQUENCE,
    )


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def from_row(row: dict[str, float]) -> Shape:
    return gopher_like(*(int(row[key]) for key in ("n_layers", "d_model", "n_heads", "kv_size", "ffw_size")))


CHINCHILLA = gopher_like(80, 8192, 64, 128, 32768)
GOPHER = gopher_like(80, 16384, 128, 128, 65536)


@pytest.mark.parametrize(
    ("shape", "matrices", "family", "forward", "ratio", "palm"),
    [
        (CHINCHILLA, 64_424_509_440, 70_065_209_344, 277_089_815_101_440, 1.0458, 4.042260e11),
        (GOPHER, 257_698_037_760, 279_716_855_808, 1_081_945_211_535_360, 1.0229, 1.581546e12),
    ],
    ids=["chinchilla", "gopher"],
)
def test_published_models(shape: Shape, matrices: int, family: int, forward: int, ratio: float, palm: float) -> None:
    groups = shape.params_by_group()
    assert groups["attention"] + groups["ffw"] == matrices == 12 * shape.layers * shape.d_model**2
    assert params_gopher_family(shape) == family
    training = shape.flops_per_token(FlopCount.chinchilla) * SEQUENCE
    assert training == 3 * forward
    n = matrices + shape.vocabulary * shape.d_model
    assert training / (6 * n * SEQUENCE) == pytest.approx(ratio, abs=5e-5)
    without_norms = shape.flops_per_token(FlopCount.palm) - 6 * groups["norms"]
    assert without_norms == pytest.approx(palm, rel=1e-6)


def test_table_a4(shared_data: Path) -> None:
    """Hoffmann's ratios come out without embedding and logits, over 6 N D with the Gopher family's N."""
    table = rows(shared_data / "chinchilla_table_a4_flop_ratio.csv")
    literal = []
    for row in table:
        shape = from_row(row)
        per_token = shape.flops_per_token(FlopCount.chinchilla)
        literal.append(per_token / (6 * params_gopher_family(shape)))
        tables = 3 * 2 * 2 * shape.vocabulary * shape.d_model
        ratio = (per_token - tables) / (6 * params_gopher_family(shape))
        assert ratio == pytest.approx(row["flop_ratio_ours_over_6nd"], abs=TABLE_A4_TOLERANCE)
    assert len(table) == 6
    assert literal == pytest.approx([1.5799, 1.3152, 1.2312, 1.1444, 1.1152, 1.0279], abs=5e-5)


def test_table_a9(shared_data: Path) -> None:
    """The Gopher family's N is the size the table prints, in millions, of nearly all of its models."""
    table = rows(shared_data / "chinchilla_table_a9_architectures.csv")
    errors = [abs(params_gopher_family(from_row(row)) / row["params"] - 1) for row in table]
    assert len(table) == 50
    assert sorted(errors)[len(errors) // 2] < 0.002
    assert max(errors) < 0.0067  # of 44M, which the table rounds to whole millions
    unequal = [row for row in table if row["n_heads"] * row["kv_size"] != row["d_model"]]
    assert len(unequal) == 6


def test_gpt2_124m() -> None:
    """PaLM's count for GPT-2 at 1024 tokens: N with biases, without learned positions, head tied."""
    shape = Shape(
        layers=12,
        d_model=768,
        heads=12,
        head_size=64,
        ffw=3072,
        vocabulary=50257,
        sequence=1024,
        positions=Positions.learned,
    )
    d = shape.d_model
    biases = shape.layers * (3 * d + d + 4 * d + d) + (2 * shape.layers + 1) * d  # of matrices, of LayerNorms
    assert shape.params_total + biases == 124_439_808
    assert shape.flops_per_token(FlopCount.palm) + 6 * biases == 855_166_464


def test_small_worked_example() -> None:
    shape = Shape(layers=3, d_model=64, heads=4, head_size=16, ffw=256, vocabulary=256, sequence=128)
    assert shape.flops(2 * 128) == 327_155_712
    attention = 3 * 4 * shape.sequence * shape.attention_width * shape.layers * 256
    assert shape.flops(2 * 128) - attention == 251_658_240
    assert shape.flops_per_token(FlopCount.sixnd) == 6 * shape.params_total


@given(
    layers=st.integers(1, 9),
    d_model=st.integers(1, 99),
    heads=st.integers(1, 9),
    half=st.integers(1, 9),
    ffw=st.integers(1, 99),
    vocabulary=st.integers(1, 999),
    sequence=st.integers(1, 99),
    activation=st.sampled_from(Activation),
    positions=st.sampled_from(Positions),
    tied_head=st.booleans(),
)
def test_counts_hold_together(half: int, **values: int) -> None:
    shape = Shape(head_size=2 * half, **values)  # type: ignore[arg-type]
    total = shape.params_non_embedding + shape.params_embedding + shape.params_head
    assert total == shape.params_total == shape.params(ParamCount.total)
    assert shape.params(ParamCount.non_embedding) == shape.params_non_embedding
    # Every matrix is used once per token in the forward pass, the token table as head only.
    head = shape.vocabulary * shape.d_model
    groups = shape.params_by_group()
    products = groups["attention"] + groups["ffw"] + head
    scores = 2 * shape.sequence * shape.attention_width * shape.layers
    assert shape.flops_per_token() == 6 * (products + scores)
    assert shape.flops_per_token(FlopCount.palm) == shape.flops_per_token() + 6 * groups["norms"]
    assert shape.flops(10) == 10 * shape.flops_per_token()


@pytest.mark.parametrize("name", ["layers", "d_model", "heads", "head_size", "ffw", "vocabulary", "sequence"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_a_shape_of_nothing_is_refused(name: str, value: float) -> None:
    values = dict.fromkeys(("layers", "d_model", "heads", "head_size", "ffw", "vocabulary", "sequence"), 2)
    with pytest.raises(UserError, match=rf"model.{name}={value} is not a positive whole number"):
        Shape(**(values | {name: value}))  # type: ignore[arg-type]


def test_rotary_positions_need_an_even_head() -> None:
    values = dict.fromkeys(("layers", "d_model", "heads", "ffw", "vocabulary", "sequence"), 2)
    with pytest.raises(UserError, match=r"model\.head_size=3 is odd"):
        Shape(head_size=3, **values)  # type: ignore[arg-type]
    assert Shape(head_size=3, positions=Positions.learned, **values).params_total > 0  # type: ignore[arg-type]
