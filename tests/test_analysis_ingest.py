from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from trainer_runs import make_run, small_shape

from analysis.clean import clean, keep_where, split
from analysis.csvfile import read_csv
from analysis.runs import read_runs
from analysis.tables import CURVE_COLUMNS, POINT_COLUMNS, complete_points, numbers
from trainer.errors import UserError
from trainer.runfolder import RunFolder, final_record
from trainer.shape import ParamCount


def _csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _reasons(path: Path, flops: str = "6nd") -> dict[str, str]:
    cleaned = clean(read_csv(path), ParamCount.total, flops)
    return {out.row: out.reason for out in cleaned.excluded}


def test_numbers_hold_what_integers_do_not() -> None:
    column = pd.Series([10**24, "3e9", None, "n/a", 2], dtype=object)
    assert numbers(column)[[0, 1, 4]] == pytest.approx([1e24, 3e9, 2])
    assert np.isnan(numbers(column)[[2, 3]]).all()
    numbers(pd.Series([1.0, 2.0]))[0] = 5  # new arrays can be written to


def test_complete_points_types_and_keeps_further_columns() -> None:
    table = complete_points(pd.DataFrame({"loss": ["3.5"], "corpus": [None], "wd": [0.1]}))
    assert list(table)[: len(POINT_COLUMNS)] == list(POINT_COLUMNS)
    assert table["loss"][0] == 3.5 and table["corpus"][0] == "" and table["wd"][0] == 0.1


def test_csv_with_other_names_and_huge_flops(tmp_path: Path) -> None:
    path = _csv(
        tmp_path / "a.csv", "n,d,c,val\n1e8,2e9,1200000000000000000000000,3.5\n2e8,4e9,99999999999999999999,3.1\n"
    )
    tables = read_csv(path, {"params": "n", "tokens": "d", "flops": "c", "loss": "val"})
    points = tables.points
    assert points["flops_logged"].tolist() == [1.2e24, 1e20]
    assert points["flops_6nd"].tolist() == pytest.approx([1.2e18, 4.8e18])
    assert points["point_id"].tolist() == ["row 1", "row 2"]
    assert tables.curves.empty and list(tables.curves)[: len(CURVE_COLUMNS)] == list(CURVE_COLUMNS)


def test_csv_without_flops_says_what_c_is(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", "params,tokens,loss\n1e8,2e9,3.5\n")
    assert any("C = 6 N D" in note for note in read_csv(path).notes)
    assert any("N is taken for all parameters" in note for note in read_csv(path).notes)


def test_a_column_mapped_to_non_embedding_is_not_total_as_well(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", "params,tokens,loss\n1e8,2e9,3.5\n")
    points = read_csv(path, {"params_non_embedding": "params"}).points
    assert points["params_non_embedding"].tolist() == [1e8]
    assert points["params_total"].isna().all()


def test_an_overflowed_flops_6nd_is_counted_anew(shared_data: Path) -> None:
    tables = read_csv(shared_data / "gadre_models.csv", {"params_non_embedding": "params_no_embed"})
    points = tables.points
    assert (points["flops_6nd"] == 6 * points["params_total"] * points["tokens"]).all()
    assert any("counted anew" in note for note in tables.notes)


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("n,tokens,loss\n1,1,1\n", {}, r"no column params, only n, tokens, loss; .*columns\.params=<its column>"),
        ("n,d,x\n1,1,1\n", {}, r"no column params, tokens, loss, only n, d, x"),
        ("params,tokens,loss\n1,1,1\n", {"loss": "val"}, r"columns\.loss=val: .* only params, tokens, loss"),
        ("params,tokens,loss\n1,1,1\n", {"los": "loss"}, r"columns\.los=loss: there is no column los here"),
        ("params,tokens,loss\n", {}, "a header but no rows"),
        ("", {}, "cannot be read as CSV"),
    ],
)
def test_wrong_files_are_refused_in_one_sentence(
    tmp_path: Path, text: str, columns: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_csv(_csv(tmp_path / "a.csv", text), columns)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_binary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(UserError, match="is a folder, not a CSV file"):
        read_csv(tmp_path)
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match="cannot be read as CSV"):
        read_csv(tmp_path / "a.bin")


def test_each_bad_row_is_listed_with_its_reason(tmp_path: Path) -> None:
    path = _csv(
        tmp_path / "a.csv",
        "params,tokens,loss,verdict\n1e8,2e9,3.5,done\n1e8,2e9,3.5,done\n1e8,2e9,nan,done\n1e8,2e9,-1,\n"
        "0,2e9,3,\n1e8,,3,\n1e8,2e9,9,diverged\n1e8,2e9,,failed: out of memory\n2e8,2e9,inf,\nabc,2e9,3,\n",
    )
    assert _reasons(path) == {
        "row 2": "a duplicate: an earlier row has the same N, D, C and loss",
        "row 3": "loss is missing or not a number",
        "row 4": "loss is not positive",
        "row 5": "params_total is not positive",
        "row 6": "tokens is missing or not a number",
        "row 7": "diverged",
        "row 8": "failed: out of memory",
        "row 9": "loss is missing or not a number",
        "row 10": "params_total is missing or not a number",
    }


def test_where_lists_what_it_leaves_out_and_refuses_nonsense(tmp_path: Path) -> None:
    tables = read_csv(_csv(tmp_path / "a.csv", "params,tokens,loss,decay\n1e8,2e9,3.5,cosine\n1e8,3e9,3.4,const\n"))
    kept = keep_where(tables, "decay == 'cosine'")
    assert kept.points["point_id"].tolist() == ["row 1"]
    assert [(out.row, out.reason) for out in kept.excluded] == [("row 2", "where=decay == 'cosine' leaves it out")]
    for nonsense in ("decay = 1", "colour == 'red'", "decay ==", "'a'"):
        with pytest.raises(UserError, match=r"where=.*is no query of the columns run_id, point_id"):
            keep_where(tables, nonsense)


def test_split_by_several_columns(tmp_path: Path) -> None:
    text = "params,tokens,loss,data,lr\n1e8,2e9,3.5,a,1\n1e8,3e9,3.4,a,2\n1e8,3e9,3.4,b,2\n"
    tables = read_csv(_csv(tmp_path / "a.csv", text))
    groups = list(split(tables, ["data", "lr"]))
    assert [group for group, _ in groups] == [
        {"data": "a", "lr": "1.0"},
        {"data": "a", "lr": "2.0"},
        {"data": "b", "lr": "2.0"},
    ]
    assert [len(part.points) for _, part in groups] == [1, 1, 1]
    with pytest.raises(UserError, match=r"group_by=date: there is no column date; the columns are"):
        list(split(tables, ["date"]))


def test_mixed_corpora_are_refused(tmp_path: Path) -> None:
    tables = read_csv(_csv(tmp_path / "a.csv", "params,tokens,loss,corpus\n1e8,2e9,3.5,c4\n1e8,3e9,3.4,web\n"))
    with pytest.raises(UserError, match=r"2 corpora \(c4, web\).*where=\"corpus == 'c4'\" or .*group_by=corpus"):
        clean(tables, ParamCount.total, "6nd")


def test_curves_in_a_csv(shared_data: Path) -> None:
    columns = {"run_id": "run", "loss": "loss_c4_en", "params_non_embedding": "params"}
    tables = read_csv(shared_data / "olmo_ladder_curves.csv", columns)
    assert len(tables.points) == 30 and len(tables.curves) == 3569
    assert (tables.points["verdict"] == "done").all()
    assert tables.curves.groupby("run_id")["progress"].max().tolist() == [1.0] * 30
    assert (
        tables.curves.groupby("run_id")["val_loss"].last().to_numpy() == tables.points.sort_values("run_id")["loss"]
    ).all()


def test_a_curve_that_stops_early_is_unfinished(tmp_path: Path) -> None:
    text = "run_id,params,tokens,loss,progress\na,1e8,1e9,4,0.5\na,1e8,2e9,3.5,1\nb,1e8,1e9,4,0.5\n"
    path = _csv(tmp_path / "a.csv", text)
    assert _reasons(path) == {"b": "unfinished: its last row is before the end of its schedule"}


def _finish(folder: RunFolder, verdict: str = "done", loss: float | None = 3.25) -> None:
    config = folder.read_config()
    attempt = folder.start_attempt("", None)
    for step in range(3, 24, 4):
        tokens = (step + 1) * config.recipe.optim.batch
        flops = config.recipe.model.flops(tokens)
        folder.append_metrics(
            {"step": step, "tokens": tokens, "flops": flops, "train_loss": 4.0 - step / 50, "attempt": attempt}
            | ({"val_loss": 4.1 - step / 50} if step > 12 else {})
        )
    record = final_record(
        config, point_id=config.run_id, tokens=config.recipe.tokens, loss=loss, verdict=verdict, flags=["undertuned"]
    )
    folder.write_point(record)


def test_run_folders_give_points_and_curves(tmp_path: Path) -> None:
    done = make_run(tmp_path, "corpus1", seed=0)
    _finish(done)
    _finish(make_run(tmp_path, "corpus1", seed=1), verdict="diverged", loss=None)
    _finish(make_run(tmp_path, "corpus1", seed=2), verdict="failed: out of memory", loss=None)
    waiting = make_run(tmp_path, "corpus1", seed=3)
    damaged = make_run(tmp_path, "corpus1", seed=4)
    damaged.config_path.write_text("{")
    tables = read_runs(tmp_path, ["s"])
    assert {out.row: out.reason.split(";")[0] for out in tables.excluded} == {
        waiting.run_id: "unfinished: no final record",
        damaged.run_id: f"{damaged.config_path} is damaged",
    }
    row = tables.points.set_index("run_id").loc[done.run_id]
    shape = small_shape()
    assert row["params_total"] == shape.params_total and row["params_non_embedding"] == shape.params_non_embedding
    assert row["flops_matmul"] == shape.flops(row["tokens"])
    assert (row["loss"], row["loss_unit"], row["corpus"], row["flags"]) == (3.25, "nats/token", "corpus1", "undertuned")
    curve = tables.curves[tables.curves["run_id"] == done.run_id]
    assert curve["step"].tolist() == [3, 7, 11, 15, 19, 23]
    assert curve["progress"].iloc[-1] == 1.0
    assert curve["val_loss"].notna().sum() == 3
    cleaned = clean(tables, ParamCount.total, "matmul")
    assert cleaned.points["run_id"].tolist() == [done.run_id]
    assert {"diverged", "failed: out of memory"} <= {out.reason for out in cleaned.excluded}


def test_a_record_of_required_keys_alone_is_completed_from_the_config(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "corpus1", lr=0.02)
    config = replace(folder.read_config(), axes={"optim.lr": 0.02, "tracking.tags": ["a", "b"]})
    folder.write_config(config)
    recipe, shape = config.recipe, config.recipe.model
    required = {"schema": 1, "run_id": config.run_id, "point_id": config.run_id, "verdict": "done"}
    required |= {"tokens": recipe.tokens, "horizon": recipe.tokens, "loss": 3.5}
    folder.write_point(required | {"params_total": 7})
    row = read_runs(tmp_path, ["s"]).points.iloc[0]
    assert (row["sweep"], row["corpus"], row["cluster_id"], row["schedule"]) == (
        "s",
        "corpus1",
        config.run_id,
        "cosine",
    )
    assert (row["lr"], row["batch"], row["steps"], row["unique_tokens"]) == (0.02, 96, 24, recipe.tokens)
    assert row["params_embedding"] == shape.params_embedding and row["flops_matmul"] == shape.flops(recipe.tokens)
    assert row["params_total"] == 7  # the record's own word counts
    assert (row["axis.optim.lr"], row["axis.tracking.tags"]) == (0.02, '["a", "b"]')


def test_a_failure_without_a_loss_is_still_a_row(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "corpus1")
    record = {"schema": 1, "run_id": folder.run_id, "point_id": folder.run_id, "verdict": "failed: no node"}
    folder.write_point(record | {"tokens": 0})
    cleaned = clean(read_runs(tmp_path, ["s"]), ParamCount.total, "matmul")
    assert [(out.row, out.reason) for out in cleaned.excluded] == [(folder.run_id, "failed: no node")]


def test_a_sweep_that_is_not_there(tmp_path: Path) -> None:
    make_run(tmp_path, "corpus1", sweep="ours")
    with pytest.raises(UserError, match=r"sweep\.name='theirs': there is no folder .*holds ours"):
        read_runs(tmp_path, ["theirs"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run yet"):
        read_runs(tmp_path, ["empty"])
