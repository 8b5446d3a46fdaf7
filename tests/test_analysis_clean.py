from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.ingest.clean import clean, flops_convention, keep_where, params_conventions, split, usable_rows
from analysis.ingest.defects import counter_faults
from analysis.ingest.frames import read_frame
from analysis.ingest.tables import Tables, complete_curves
from trainer.errors import UserError
from trainer.shape import ParamCount


def _tables(rows: int = 4, **columns: Any) -> Tables:
    """Sound points, with further or other columns."""
    number = np.arange(rows)
    frame = pd.DataFrame({"params": 1e8 * 2.0**number, "tokens": 2e9, "loss": 3.5 - number / 10})
    return read_frame(frame.assign(**columns))


def _cleaned(tables: Tables, flops: str = "auto") -> Tables:
    return clean(tables, ParamCount.total, flops_convention(tables.points, flops))


def _reasons(tables: Tables, flops: str = "auto") -> dict[str, str]:
    return {out.row: out.reason for out in _cleaned(tables, flops).excluded}


def _rows(text: str) -> Tables:
    """Points from lines of a table."""
    header, *lines = text.split("\n")
    return read_frame(pd.DataFrame([line.split(",") for line in lines], columns=header.split(",")))


def test_each_bad_row_is_listed_with_its_reason() -> None:
    tables = _rows(
        "params,tokens,loss,verdict\n1e8,2e9,3.5,done\n1e8,2e9,3.5,done\n1e8,2e9,nan,done\n1e8,2e9,-1,\n"
        "0,2e9,3,\n1e8,,3,\n1e8,2e9,9,diverged\n1e8,2e9,,failed: out of memory\n2e8,2e9,inf,\nabc,2e9,3,"
    )
    assert _reasons(tables) == {
        "row 2": "a duplicate: an earlier row has the same N, D, C and loss",
        "row 3": "loss is missing or not a number",
        "row 4": "loss is not positive",
        "row 5": "params_total is not positive",
        "row 6": "tokens is missing or not a number",
        "row 7": "diverged",
        "row 8": "failed: out of memory",
        "row 9": "loss is missing or not a number",
        "row 10": "params_total='abc' is text, not a number",
    }


def test_verdicts_are_read_as_people_write_them() -> None:
    tables = _tables(4, verdict=["Done", "finished", None, "killed"])
    assert _reasons(tables) == {"row 4": "verdict=killed"}


def test_what_could_be_filled_says_how() -> None:
    tables = _rows("params,tokens,flops,loss\n1e8,2e9,1.2e18,3.5\n1e8,,1.2e18,3.5\n,2e9,1.2e18,3.5\n,,1.2e18,3.5")
    assert _reasons(tables) == {
        "row 2": "tokens is missing; fit.fill=tokens takes it from C = 6 N D",
        "row 3": "params_total is missing; fit.fill=params takes it from C = 6 N D",
        "row 4": "tokens is missing or not a number",
    }


def test_an_overflowed_c_is_left_out_and_a_huge_one_is_not() -> None:
    tables = _tables(tokens=4e15, flops=[2.4e24, 4.8e24, 9.6e24, -(2**62)])
    assert _reasons(tables, "logged") == {"row 4": "flops_logged is not positive"}
    exact = _tables(tokens=4e15, flops=[24 * 10**23, 48 * 10**23, 96 * 10**23, 192 * 10**23])
    assert _cleaned(exact, "logged").points["flops_logged"].tolist() == [2.4e24, 4.8e24, 9.6e24, 1.92e25]


def test_a_run_off_its_schedule_is_left_out() -> None:
    tables = _tables(horizon=[2e9, 2.05e9, 4e9, None])
    assert _reasons(tables) == {"row 3": "its schedule was for 4e+09 tokens, it ended at 2e+09"}
    longer = _tables(horizon=[2e9, 1e9, 2e9, 2e9])
    assert _reasons(longer) == {"row 2": "its schedule was for 1e+09 tokens, it ended at 2e+09"}


# the units


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"params": [70.0, 140.0, 280.0, 400.0]}, r"params_total is at most 400, so it seems to count millions or"),
        ({"tokens": 300.0}, r"tokens is at most 300, .*multiply it out in the source"),
        ({"tokens": 300.0, "flops": 1e20}, r"tokens is at most 300"),
        (
            {"flops": [0.0139, 0.0278, 0.0556, 0.111]},
            r"PF-days: multiply it by 8\.64e\+19 in the source, or leave C to",
        ),
        ({"flops": [1.2, 2.4, 4.8, 9.6]}, r"flops_logged is 1e-18 times 6 N D \(1e-18 to 1e-18\), .* EFLOPs \(1e18\)"),
        ({"flops": 1e30}, r"so it seems to be in another unit, or leave C to fit\.flops=sixnd\."),
    ],
)
def test_another_unit_is_refused_with_the_fix(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _cleaned(_tables(**columns))


def test_c_in_another_unit_does_not_hurt_where_it_is_not_used() -> None:
    assert len(_cleaned(_tables(flops=[0.0139, 0.0278, 0.0556, 0.111]), "6nd").points) == 4


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (0.6, False), (0.4, True), (3.0, True)])
def test_a_c_that_is_not_about_6nd_is_told(factor: float, told: bool) -> None:
    flops = factor * 6 * 2e9 * 1e8 * 2.0 ** np.arange(4)
    notes = _cleaned(_tables(flops=flops)).notes
    assert [f"C as the source gives it is {factor:g} times 6 N D (median; {factor:g} to {factor:g})." in notes] == [
        told
    ]


@pytest.mark.parametrize(
    ("loss", "kind"), [(33.0, "a perplexity or a sum over tokens"), (0.01, "a loss of another kind")]
)
def test_a_loss_that_is_no_cross_entropy_is_told(loss: float, kind: str) -> None:
    (note,) = (note for note in _cleaned(_tables(loss=loss)).notes if "median loss" in note)
    assert note.startswith(f"The median loss is {loss:g}, which is no cross-entropy") and kind in note


def test_tiny_runs_of_our_own_are_no_units_at_all() -> None:
    tables = _tables(params=8000.0, tokens=2304.0, flops_matmul=6 * 8000 * 2304.0)
    assert len(_cleaned(tables).points) == 4


# what does not compare


def test_mixed_corpora_are_refused() -> None:
    with pytest.raises(UserError, match=r"2 corpora \(c4, web\).*where=\"corpus == 'c4'\" or .*group_by=corpus"):
        _cleaned(_tables(corpus=["c4", "c4", "web", "web"]))


def test_several_evaluations_of_each_point_are_refused() -> None:
    number = np.arange(6)
    columns = {"params": 1e8 * (1 + number // 2), "loss": 3 - number / 10, "eval": ["c4", "pile"] * 3}
    with pytest.raises(
        UserError, match=r"all 2 values of eval \(c4, pile\).*where=\"eval == 'c4'\" or .*group_by=eval\."
    ):
        _cleaned(_tables(6, **columns))
    one = _tables(6, **columns | {"eval": ["c4", "pile", "c4", "c4", "c4", "c4"]})
    assert not any("eval" in note for note in _cleaned(one).notes)
    most = _tables(6, **columns | {"eval": ["c4", "pile", "c4", "pile", "c4", "c4"]})
    assert any("differ in eval (c4, pile); " in note and "group_by=eval." in note for note in _cleaned(most).notes)


@pytest.mark.parametrize(("rows", "told"), [(20, True), (19, False)])
def test_experiments_that_could_be_fits_of_their_own_are_told(rows: int, told: bool) -> None:
    size = 1e8 * 1.1 ** np.arange(2 * rows)
    kinds = np.where(np.arange(2 * rows) < rows, "tuned", "base")
    notes = _cleaned(_tables(2 * rows, params=size, loss=3 - np.log(size) / 20, hparams=kinds)).notes
    assert any("differ in hparams (base, tuned); " in note and "group_by=hparams." in note for note in notes) == told


def test_porians_experiments_are_told(shared_data: Any) -> None:
    from analysis.ingest.files import read_file

    notes = _cleaned(read_file(shared_data / "porian_isoflop_points.csv")).notes
    assert any("group_by=dataset,hparams,warmup,decay,param_count,val." in note for note in notes)


def test_gadres_eight_evaluations_are_told_apart(shared_data: Any) -> None:
    from analysis.ingest.files import read_file

    tables = read_file(shared_data / "gadre_models.csv")
    with pytest.raises(UserError, match=r"all 8 values of eval_data"):
        _cleaned(tables)
    kept = _cleaned(keep_where(tables, "eval_data == 'c4_val'"))
    assert len(kept.points) == 104 and any("group_by=train_dataset" in note for note in kept.notes)


# counters


def _run(name: str, step: Any, tokens: Any) -> pd.DataFrame:
    return pd.DataFrame({"run_id": name, "step": np.asarray(step, float), "tokens": np.asarray(tokens, float)})


def test_counters_that_cannot_be_right_are_named() -> None:
    step = np.arange(100.0)
    even = (step + 1) * 1e6
    resumed = np.where(step < 50, even, even + 60e6)  # the second attempt inherits the first one's counter
    faults = counter_faults(
        complete_curves(
            pd.concat(
                [
                    _run("sound", step, even),
                    _run("inherited", step, resumed),
                    _run("anew", step, np.where(step < 50, even, even - 50e6)),
                    _run("restarted", [*range(50), *range(50)], even),
                    _run("twice", [*step, *step[50:]], [*even, *even[50:]]),
                    _run("unknown", np.full(100, np.nan), even),
                    _run("short", [0, 1], [1e6, 2e6]),
                ]
            ).sample(frac=1, random_state=0)
        )
    )
    assert set(faults) == {"inherited", "anew", "restarted"}
    assert faults["inherited"].startswith(
        "its tokens per step range from 1e+06 to 7e+06: correct the counter, or leave"
    )
    assert faults["anew"] == "its tokens fall from 5e+07 to 1e+06 as its steps rise"
    assert "fall from 5.1e+07 to 2e+06" in faults["restarted"]


@given(
    batch=st.floats(1, 1e9),
    steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True),
    offset=st.integers(0, 1),
    digits=st.integers(9, 15),
)
def test_a_counter_that_is_right_is_never_blamed(batch: float, steps: list[int], offset: int, digits: int) -> None:
    """Whatever the logging interval, whether the first step is 0 or 1, and however the tokens are rounded."""
    tokens = [float(f"{batch * (step + offset):.{digits}g}") for step in sorted(steps)]
    assert counter_faults(complete_curves(_run("a", sorted(steps), tokens))) == {}


def test_points_of_runs_with_wrong_counters_are_left_out() -> None:
    step = np.arange(1, 21)
    frames = [
        pd.DataFrame(
            {"run_id": run, "step": step, "params": 1e8, "tokens": step * 1e6 + jump * (step > 10), "loss": 3.0}
        )
        for run, jump in (("a", 0.0), ("b", 5e7))
    ]
    reasons = _reasons(read_frame(pd.concat(frames)))
    assert list(reasons) == ["b"] and reasons["b"].startswith("its tokens per step range from 1e+06 to ")


# conventions


def test_one_blank_does_not_change_the_convention_of_all() -> None:
    flops = 1.8 * 6 * 2e9 * 1e8 * 2.0 ** np.arange(10)
    tables = _tables(10, flops=[*flops[:9], None])
    assert flops_convention(tables.points, "auto") == "logged"
    assert _reasons(tables) == {"row 10": "flops_logged is missing or not a number"}
    few = _tables(10, flops=[*flops[:5], *[None] * 5])
    assert flops_convention(few.points, "auto") == "6nd"
    assert "flops_logged is given in 5 of 10 usable rows only, so flops_6nd is used instead." in _cleaned(few).notes
    sizes = _tables(10).points.assign(params_non_embedding=7e7)
    sizes.loc[3, "params_total"] = np.nan
    assert params_conventions(sizes, ParamCount.total)[0] is ParamCount.total
    failed = sizes.assign(verdict=np.where(np.arange(10) < 5, "failed: no node", ""))
    assert usable_rows(failed).index.tolist() == [5, 6, 7, 8, 9]


def test_seeds_and_runs_whose_rounded_losses_agree_are_no_duplicates() -> None:
    columns = {"params": 1e8, "loss": 3.5}
    assert len(_cleaned(_tables(4, **columns)).points) == 1
    assert len(_cleaned(_tables(4, **columns, seed=[0, 1, 2, 2])).points) == 3
    assert len(_cleaned(_tables(4, **columns, run_id=list("abcc"))).points) == 3


def test_categories_and_blanks_are_kinds_of_their_own() -> None:
    columns = {"params": 1e8 * (1 + np.arange(6) // 2), "loss": 3 - np.arange(6) / 10}
    with pytest.raises(UserError, match=r"all 2 values of eval \(c4, pile\)"):
        _cleaned(_tables(6, **columns, eval=pd.Categorical(["c4", "pile"] * 3)))
    for name, words in (("corpus", "corpora"), ("loss_unit", "loss units")):
        with pytest.raises(UserError, match=rf"2 {words} \(c4, blank\).*where=\"{name} == 'c4'\""):
            _cleaned(_tables(4, **{name: ["c4", None, "c4", "c4"]}))
        assert len(_cleaned(_tables(4, **{name: None})).points) == 4


# choosing


def test_where_takes_an_unknown_for_false() -> None:
    tables = _tables(3, depth=pd.array([None, 2, 4], dtype="Int64"))
    assert keep_where(tables, "depth > 3").points["point_id"].tolist() == ["row 3"]


def test_where_lists_what_it_leaves_out_and_refuses_nonsense() -> None:
    tables = _tables(2, decay=["cosine", "const"])
    kept = keep_where(tables, "decay == 'cosine'")
    assert kept.points["point_id"].tolist() == ["row 1"]
    assert [(out.row, out.reason) for out in kept.excluded] == [("row 2", "where=decay == 'cosine' leaves it out")]
    for nonsense in ("decay = 1", "colour == 'red'", "decay ==", "'a'"):
        with pytest.raises(UserError, match=r"where=.*is no query of the columns run_id, point_id"):
            keep_where(tables, nonsense)


def test_split_by_several_columns() -> None:
    tables = _tables(3, data=["a", "a", "b"], lr=[1, 2, 2])
    groups = list(split(tables, ["data", "lr"]))
    assert [group for group, _ in groups] == [
        {"data": "a", "lr": "1.0"},
        {"data": "a", "lr": "2.0"},
        {"data": "b", "lr": "2.0"},
    ]
    assert [len(part.points) for _, part in groups] == [1, 1, 1]
    with pytest.raises(UserError, match=r"group_by=date: there is no column date; the columns are"):
        list(split(tables, ["date"]))
