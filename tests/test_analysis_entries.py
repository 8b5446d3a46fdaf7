"""What public functions take: any columns, plain strings for choices; and what they say of anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_surfaces import cosine_curves, isoflop_design, rows_of
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import analysis
from analysis.config import CHOICES, Fill, FitConfig, Form, Objective, Resample, Valley, chosen
from analysis.fitting.columns import columns
from analysis.fitting.curves import Curves
from analysis.fitting.values import Refused, Rows
from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount

N, D, C, L = isoflop_design(np.geomspace(1e18, 1e21, 4), noise=0.002)
UNIQUE = np.where(np.arange(len(L)) % 3, np.nan, D / 4)
BUDGET = analysis.group_budgets(C)
LAW = analysis.fit_parametric(N, D, L)
CURVES = cosine_curves(N, D, rows=12)
Column = Any


def _curves(names: Any, params: Column, tokens: Column, flops: Column, loss: Column, progress: Column) -> Curves:
    return Curves.of_rows(run_id=names, params=params, tokens=tokens, flops=flops, loss=loss, progress=progress)


def _envelope(*given: Column) -> Any:
    return analysis.fit_envelope(_curves(np.array(CURVES.names, dtype=object)[CURVES.run], *given))


def _rows(*given: Column) -> Any:
    return rows_of(*given[:4], budget=given[4], seed=[1.0] * len(L))


ENTRIES: dict[str, tuple[Callable[..., Any], dict[str, np.ndarray], Callable[[Any], Any]]] = {
    "group_budgets": (analysis.group_budgets, {"flops": C}, lambda found: found),
    "fit_cost": (analysis.fit_cost, {"params": N, "tokens": D, "flops": C}, lambda found: found.coefficient),
    "fit_parametric": (
        analysis.fit_parametric, {"params": N, "tokens": D, "loss": L}, lambda found: found.array(),
    ),
    "fit_isoflop": (
        analysis.fit_isoflop, {"params": N, "tokens": D, "flops": C, "loss": L, "budget": BUDGET},
        lambda found: found.laws.array(),
    ),
    "window_sweep": (
        analysis.window_sweep, {"params": N, "tokens": D, "flops": C, "loss": L, "budget": BUDGET},
        lambda found: [at.a for at in found],
    ),
    "profile": (
        lambda *rows: analysis.profile(*rows, LAW), {"params": N, "tokens": D, "loss": L},
        lambda found: found["alpha"].deviance,
    ),
    "fit_repeated": (
        lambda *rows: analysis.fit_repeated(*rows, replicates=0),
        {"params": N, "tokens": D, "unique_tokens": UNIQUE, "loss": L}, lambda found: found.residuals,
    ),
    "fit_envelope": (
        _envelope,
        {"params": CURVES.params[CURVES.run], "tokens": CURVES.tokens, "flops": CURVES.flops, "loss": CURVES.loss,
         "progress": CURVES.progress},
        lambda found: found.laws.array(),
    ),
    "rows": (
        _rows, {"params": N, "tokens": D, "flops": C, "loss": L, "budget": BUDGET},
        lambda found: np.concatenate([found.params, found.take(np.array([3, 5])).budget]),
    ),
}  # fmt: skip
MAY_BE_BLANK = {("fit_repeated", "unique_tokens"), ("fit_envelope", "progress")}


@pytest.mark.parametrize("name", ENTRIES)
def test_any_columns_are_taken_by_position(name: str) -> None:
    entry, given, numbers = ENTRIES[name]
    found = numbers(entry(*given.values()))
    table = pd.DataFrame(given).sample(frac=1, random_state=0)
    table.loc[:, :] = np.column_stack(list(given.values()))  # the index is shuffled, the values are not
    assert list(table.index) != sorted(table.index)
    lists = [column.tolist() for column in given.values()]
    for other in (lists, [table[column] for column in given], [column.astype(object) for column in given.values()]):
        assert np.array_equal(numbers(entry(*other)), found)
    mixed = [pd.Series(column, index=np.roll(np.arange(len(column)), at)) for at, column in enumerate(given.values())]
    assert np.array_equal(numbers(entry(*mixed)), found)


@pytest.mark.parametrize("name", ENTRIES)
def test_other_columns_are_refused_by_name(name: str) -> None:
    entry, given, _ = ENTRIES[name]
    for column, values in given.items():
        for bad, words in ((np.nan, "nan"), (-1.0, "-1"), (np.inf, "inf")):
            if np.isnan(bad) and (name, column) in MAY_BE_BLANK:
                continue
            spoilt = values.copy()
            spoilt[2] = bad
            with pytest.raises(UserError, match=rf"^{column} holds {words}; its numbers must be finite and"):
                entry(*(given | {column: spoilt}).values())
        with pytest.raises(UserError, match=rf"^{column} has the shape \({len(values)}, 1\); give a flat column"):
            entry(*(given | {column: values[:, None]}).values())
        with pytest.raises(UserError, match=rf"^{column} is no column of numbers \(.*\); give a list, an array"):
            entry(*(given | {column: ["many"] * len(values)}).values())
        if len(given) > 1:
            with pytest.raises(UserError, match=rf"has {len(values) - 1}( value|;)"):
                entry(*(given | {column: values[:-1]}).values())


@given(st.lists(st.floats(), max_size=5), st.booleans(), st.booleans())
def test_columns_let_through_exactly_what_is_in_range(values: list[float], blank: bool, zero: bool) -> None:
    allowed = [(blank and np.isnan(x)) or (np.isfinite(x) and (x > 0 or (zero and x == 0))) for x in values]
    names = (("x",) if blank else ()), (("x",) if zero else ())
    if all(allowed):
        (found,) = columns(blank=names[0], zero=names[1], x=values)
        assert np.array_equal(found, np.array(values), equal_nan=True) and found.dtype == np.float64
    else:
        with pytest.raises(UserError, match=r"^x holds "):
            columns(blank=names[0], zero=names[1], x=values)


def test_no_rows_are_no_fit() -> None:
    none = np.empty(0)
    assert analysis.group_budgets([]).shape == (0,)
    assert isinstance(analysis.fit_isoflop(none, none, none, none, none), Refused)
    assert isinstance(analysis.fit_parametric([], [], []), Refused)
    assert isinstance(analysis.fit_repeated([], [], [], []), Refused)
    assert analysis.window_sweep([], [], [], [], []) == ()
    with pytest.raises(UserError, match="params is empty"):
        analysis.fit_cost([], [], [])


def test_curves_know_their_runs() -> None:
    columns_of = {"tokens": [1.0, 2.0], "flops": [1.0, 2.0], "loss": [3.0, 2.0], "progress": [np.nan, 0.0]}
    made = Curves(names=("a",), params=[1e6], run=[0, 0], lr=[0.0, np.nan], **columns_of)  # type: ignore[arg-type]
    assert made.run.dtype == np.int64 and made.loss.dtype == np.float64
    for run in ([0, 1], [-1, 0], [0.0, 0.0]):
        with pytest.raises(UserError, match="run must hold whole numbers from 0 to 0"):
            replace(made, run=run)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"run has 1 value\(s\) and tokens has 2"):
        replace(made, run=[0])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"names has 2 value\(s\) and params has 1"):
        replace(made, names=("a", "b"))
    with pytest.raises(UserError, match="lr holds -1; its numbers must be finite and 0 or more"):
        replace(made, lr=[-1.0, 1.0])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="run_id is missing in row 2"):
        _curves(["a", None], [1.0, 1.0], *columns_of.values())
    with pytest.raises(UserError, match=r"run_id has 1 value\(s\) and params has 2"):
        _curves(["a"], [1.0, 1.0], *columns_of.values())


def test_rows_have_a_name_each() -> None:
    rows = rows_of(N, D, C, L, budget=BUDGET)
    assert isinstance(Rows.take(rows, np.array([1])).run_id, tuple)
    with pytest.raises(UserError, match=r"run_id has 1 value\(s\) and params has 28"):
        replace(rows, run_id=("run",))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: analysis.group_budgets(C, 0), "fit.budget_gap=0 is out of range"),
        (lambda: analysis.fit_isoflop(N, D, C, L, BUDGET, window=1), "fit.window=1 is out of range"),
        (lambda: analysis.fit_envelope(CURVES, tail=1.0), "fit.tail=1 is out of range"),
        (lambda: analysis.profile(N, D, L, LAW, level=95), "fit.level=95 is out of range"),
        (lambda: analysis.profile(N[1:], D[1:], L[1:], LAW), r"loss has 27 value\(s\) and fit.residuals has 28"),
        (lambda: analysis.fit_repeated(N, D, UNIQUE, L, level=0), "fit.level=0 is out of range"),
        (lambda: analysis.fit_repeated(N, D, UNIQUE, L, weights=np.ones(28)), r"weights has the shape \(28,\); give"),
    ],
)
def test_settings_out_of_range_are_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()


# Choices

TABLE = pd.DataFrame({"params": N, "tokens": np.where(np.arange(28) % 2, D, np.nan), "flops": C, "loss": L})
CALLS: dict[str, tuple[type[StrEnum], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "fit_isoflop": (Valley, lambda how: analysis.fit_isoflop(N, D, C, L, BUDGET, valley=how, surface=LAW),
                    lambda fit: (fit.valley, *fit.laws.array())),
    "window_sweep": (Valley, lambda how: analysis.window_sweep(N, D, C, L, BUDGET, valley=how, surface=LAW),
                     lambda found: [(at.a, at.b) for at in found]),
    "objective": (Objective, lambda how: analysis.fit_parametric(N, D, L, objective=how),
                  lambda fit: (fit.how, *fit.array())),
    "form": (Form, lambda how: analysis.fit_parametric(N, D, L, form=how, E=1.6 if how == "fixed_E" else None),
             lambda fit: (fit.form, *fit.array())),
    "read_frame": (Fill, lambda how: analysis.read_frame(TABLE, fill=how),
                   lambda tables: (tables.notes, tables.points["tokens"].count())),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_choice_by_its_name_is_that_choice(name: str) -> None:
    kind, call, told = CALLS[name]
    said = []
    for one in kind:
        said.append(told(call(one)))
        by_name = told(call(one.value))
        assert by_name == said[-1] and all(type(x) is type(y) for x, y in zip(by_name, said[-1], strict=True))
    assert any(one != said[0] for one in said)
    with pytest.raises(UserError, match=rf"=nobody is not known; choose one of {', '.join(kind.__members__)}\."):
        call("nobody")


def test_repeated_data_take_the_forms_name() -> None:
    unique = np.where(np.arange(28) % 4 == 0, D / 4, np.nan)
    tied = analysis.fit_repeated(N, D, unique, L, form="tied", replicates=0)
    assert tied.law.form is Form.tied and tied.law.alpha == tied.law.beta
    with pytest.raises(UserError, match=r"fit\.form=Tied is not known"):
        analysis.fit_repeated(N, D, unique, L, form="Tied")


def test_settings_take_names() -> None:
    config = FitConfig(params="non_embedding", fill="tokens", resample="cases", objective="lad", form="tied",
                       valley="cubic")  # type: ignore[arg-type]  # fmt: skip
    assert config == FitConfig(params=ParamCount.non_embedding, fill=Fill.tokens, resample=Resample.cases,
                               objective=Objective.lad, form=Form.tied, valley=Valley.cubic)  # fmt: skip
    assert all(isinstance(getattr(config, name), kind) for name, kind in CHOICES.items())
    enums = {name for name, value in vars(FitConfig()).items() if isinstance(value, StrEnum)}
    assert enums == set(CHOICES)
    for name, kind in CHOICES.items():
        with pytest.raises(UserError, match=rf"^fit\.{name}=Huber is not known; choose one of {next(iter(kind)).name}"):
            FitConfig(**{name: "Huber"})
        with pytest.raises(UserError, match=rf"^fit\.{name}=None is not known"):
            FitConfig(**{name: None})
    assert FitConfig(**config.to_dict()) == config
    assert {type(value) for value in config.to_dict().values()} <= {str, int, float, bool, type(None)}


def test_hydra_still_builds_the_settings() -> None:
    schema = OmegaConf.structured(FitConfig)
    made = OmegaConf.to_object(OmegaConf.merge(schema, {"valley": "cubic", "form": "fixed_E", "E": 1.5}))
    assert made == FitConfig(valley=Valley.cubic, form=Form.fixed_E, E=1.5)


def test_a_law_takes_names_of_conventions() -> None:
    law: dict[str, Any] = {"name": "l", "E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
    made = analysis.SurfaceLaw(**law, params="non_embedding", flops="6nd")
    assert made.params is ParamCount.non_embedding and made.flops is FlopCount.sixnd
    with pytest.raises(UserError, match=r"law\.flops=8nd is not known; choose one of .*sixnd"):
        analysis.SurfaceLaw(**law, flops="8nd")
    with pytest.raises(UserError, match=r"law\.flops=matmul: optima need C as a law"):
        analysis.SurfaceLaw(**law, flops="matmul")


def test_a_member_of_another_choice_is_no_choice() -> None:
    with pytest.raises(UserError, match="x=free is not known; choose one of parabola, cubic, akima, surface"):
        chosen(Valley, Form.free, "x")
