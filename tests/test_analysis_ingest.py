from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from trainer_runs import make_run, small_shape

from analysis.ingest import runs
from analysis.ingest.clean import clean
from analysis.ingest.frames import read_frame
from analysis.ingest.runs import read_runs
from analysis.ingest.tables import POINT_COLUMNS, complete_curves, complete_points, joined, numbers
from trainer.errors import MachineFault, UserError
from trainer.runfolder import RunFolder, final_record
from trainer.shape import ParamCount


def test_numbers_hold_what_integers_do_not() -> None:
    column = pd.Series([10**24, "3e9", None, "n/a", 2], dtype=object)
    assert numbers(column)[[0, 1, 4]] == pytest.approx([1e24, 3e9, 2])
    assert np.isnan(numbers(column)[[2, 3]]).all()
    numbers(pd.Series([1.0, 2.0]))[0] = 5  # new arrays can be written to


def test_complete_points_types_and_keeps_further_columns() -> None:
    table = complete_points(pd.DataFrame({"loss": ["3.5"], "corpus": [None], "wd": [0.1]}))
    assert list(table)[: len(POINT_COLUMNS)] == list(POINT_COLUMNS)
    assert table["loss"][0] == 3.5 and table["corpus"][0] == "" and table["wd"][0] == 0.1


def test_runs_of_curves_are_few_texts_whatever_they_were() -> None:
    run_id = complete_curves(pd.DataFrame({"run_id": [1, "1", None, "b", np.nan]}))["run_id"]
    assert run_id.tolist() == ["1", "1", "", "b", ""] and run_id.cat.categories.tolist() == ["1", "", "b"]
    again = complete_curves(pd.DataFrame({"run_id": run_id}))["run_id"]
    assert again.tolist() == run_id.tolist()


def test_sources_are_joined() -> None:
    one, two = (
        read_frame(pd.DataFrame({"run_id": run, "step": [1, 2], "params": 1e8, "tokens": [1e9, 2e9], "loss": [3, 2]}))
        for run in ("a", "b")
    )
    both = joined([one, two], "both")
    assert both.source == "both" and both.points["run_id"].tolist() == ["a", "b"]
    assert both.curves["run_id"].tolist() == ["a", "a", "b", "b"] and both.notes == one.notes == two.notes


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


def test_any_of_several_validation_sets_may_be_fitted(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "corpus1")
    config = folder.read_config()
    sets = {"validation": {"loss": 3.0, "bits_per_byte": 1.5}, "web": {"loss": 4.0, "bits_per_byte": 2.0}}
    for step in range(1, 9):
        row = {"step": step, "tokens": 96 * step, "train_loss": 4.0, "val_loss": 3.0 + 1 / step, "attempt": 0}
        folder.append_metrics(row | {"val_loss_web": 4.0 + 1 / step})
    folder.write_point(
        final_record(
            config, point_id=config.run_id, tokens=config.recipe.tokens, loss=3.0, bits_per_byte=1.5, verdict="done",
            validation_sets=sets,
        )
    )  # fmt: skip
    for name, loss, bits in ((None, 3.0, 1.5), ("validation", 3.0, 1.5), ("web", 4.0, 2.0)):
        tables = read_runs(tmp_path, ["s"], name)
        assert tables.points[["loss", "bits_per_byte"]].values.tolist() == [[loss, bits]]
        assert tables.points[["val_loss_validation", "val_loss_web"]].values.tolist() == [[3.0, 4.0]]
        assert tables.curves["val_loss"].tolist() == [loss + 1 / step for step in range(1, 9)]
    with pytest.raises(UserError, match=r"validation=code: no run measured such a set; choose of validation, web\."):
        read_runs(tmp_path, ["s"], "code")


def test_a_failure_without_a_loss_is_still_a_row(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "corpus1")
    record = {"schema": 1, "run_id": folder.run_id, "point_id": folder.run_id, "verdict": "failed: no node"}
    folder.write_point(record | {"tokens": 0})
    cleaned = clean(read_runs(tmp_path, ["s"]), ParamCount.total, "matmul")
    assert [(out.row, out.reason) for out in cleaned.excluded] == [(folder.run_id, "failed: no node")]


def test_many_folders_read_side_by_side_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(9):
        folder = make_run(tmp_path, "corpus1", seed=seed)
        if seed != 4:
            _finish(folder)
    make_run(tmp_path, "corpus1", seed=9).config_path.write_text("{")
    alone = read_runs(tmp_path, ["s"])
    monkeypatch.setattr(runs, "SIDE_BY_SIDE", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    many = read_runs(tmp_path, ["s"])
    pd.testing.assert_frame_equal(many.points, alone.points, check_exact=True)
    pd.testing.assert_frame_equal(many.curves, alone.curves, check_exact=True)
    assert many.excluded == alone.excluded and len(many.excluded) == 2 and len(many.points) == 8


def test_a_reader_that_is_killed_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        _finish(make_run(tmp_path, "corpus1", seed=seed))
    monkeypatch.setattr(runs, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(RunFolder, "metrics", lambda self: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(MachineFault, match=r"a process reading .* was killed; free some memory and start again"):
        read_runs(tmp_path, ["s"])


def test_a_curve_holds_the_rows_that_count_and_nothing_infinite(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "corpus1")
    _finish(folder)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 24, "tokens": 2400, "lr": 0.1}) + "\n")  # no loss
        file.write('{"step": 25, "tokens": 2496, "train_loss": 1e999, "val_loss": "3.5"}\n{"step": 26, "tok')
    curve = read_runs(tmp_path, ["s"]).curves
    assert curve["step"].tolist()[-2:] == [23, 25] and curve["val_loss"].tolist()[-1] == 3.5
    assert np.isnan(curve["train_loss"].tolist()[-1]) and curve["progress"].tolist()[-1] == 2496 / 2304


def test_a_sweep_that_is_not_there(tmp_path: Path) -> None:
    make_run(tmp_path, "corpus1", sweep="ours")
    with pytest.raises(UserError, match=r"sweep\.name='theirs': there is no folder .*holds ours"):
        read_runs(tmp_path, ["theirs"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run yet"):
        read_runs(tmp_path, ["empty"])
