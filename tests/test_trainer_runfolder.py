from __future__ import annotations

import errno
import json
import math
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_runs import make_run

from trainer.errors import MachineFault, UserError
from trainer.files import append_line, disk_faults, read_lines, read_yaml, write_json, write_whole, write_yaml
from trainer.recipe import SCHEMA
from trainer.runfolder import RunFolder, final_record

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, "corpus")


def write_row(folder: RunFolder, attempt: int, step: int, loss: float = 1.0) -> None:
    folder.append_metrics({"step": step, "train_loss": loss, "attempt": attempt})


def seen(folder: RunFolder) -> list[tuple[int, int]]:
    return [(row["attempt"], row["step"]) for row in folder.metrics()]


# files


def test_write_whole_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, "old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        MachineFault, match=rf"cannot write {path}: the disk is full; free some space and start again\."
    ):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_other_faults_of_the_disk_name_their_remedy_and_other_errors_pass() -> None:
    with pytest.raises(MachineFault, match="read-only; choose another folder"), disk_faults(Path("x")):
        raise OSError(errno.EROFS, "read-only")
    with pytest.raises(MachineFault, match="cannot write x: Stale file handle"), disk_faults(Path("x")):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    with pytest.raises(ValueError, match="a bug"), disk_faults(Path("x")):
        raise ValueError("a bug")


@given(value=VALUES)
def test_yaml_and_json_come_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("values")
    write_json(folder / "json", value)
    assert json.loads((folder / "json").read_text()) == value


def test_yaml_keeps_order_and_floats(tmp_path: Path) -> None:
    value = {"b": 1e20, "a": [0.1, 1e-7, None, True, "3e11"], "c": {"x": "text: with # signs"}}
    write_yaml(tmp_path / "y", value)
    assert read_yaml(tmp_path / "y") == value and list(read_yaml(tmp_path / "y")) == ["b", "a", "c"]


@given(
    records=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1, max_size=5), data=st.data()
)
def test_a_torn_line_costs_itself_only(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    for record in records:
        append_line(path, record)
    assert read_lines(path) == records
    last = len(path.read_bytes().splitlines()[-1])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - data.draw(st.integers(2, last)))
    assert read_lines(path) == records[:-1]
    append_line(path, {"after": 1})
    assert read_lines(path) == [*records[:-1], {"after": 1}]


def test_lines_that_are_no_objects_and_absent_files_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_bytes(b'1\n[]\n"x"\n\xff\xfe\n{"a": 1}\n\n{"b"')
    assert read_lines(path) == [{"a": 1}]


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        append_line(tmp_path / "x", {"a": math.nan})


# config.yaml


def test_config_comes_back(folder: RunFolder) -> None:
    config = folder.read_config()
    assert config.run_id == folder.run_id == folder.path.name
    again = replace(config, kernels={"attention": "sdpa"}, axes={"optim.lr": 0.1}, provenance={"commit": "abc"})
    folder.write_config(again)
    assert folder.read_config() == again
    raw = read_yaml(folder.config_path)
    assert raw["schema"] == SCHEMA and raw["tokens"] == config.recipe.tokens
    assert sum(raw["params"]["groups"].values()) == raw["params"]["total"] == config.recipe.model.params_total
    assert raw["flops"]["matmul"] == config.recipe.flops()


def test_an_edited_recipe_is_refused(folder: RunFolder) -> None:
    text = folder.config_path.read_text()
    folder.config_path.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    assert folder.config_path.read_text() != text
    with pytest.raises(UserError, match=r"its recipe has the id .* not the folder's name, so it was edited or moved"):
        folder.read_config()


def test_a_moved_folder_is_refused(folder: RunFolder) -> None:
    moved = folder.path.rename(folder.path.with_name("elsewhere"))
    with pytest.raises(UserError, match="edited or moved; restore it"):
        RunFolder(moved).read_config()


def test_a_newer_schema_is_refused(folder: RunFolder) -> None:
    raw = read_yaml(folder.config_path)
    for schema, message in ((SCHEMA + 1, "written by a newer isoflop"), ("x", "is not a version number")):
        write_yaml(folder.config_path, raw | {"schema": schema})
        with pytest.raises(UserError, match=message):
            folder.read_config()


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"{", b"\xff\xfe\x00", b"a: [1,\n"])
def test_a_damaged_config_is_refused(folder: RunFolder, content: bytes) -> None:
    folder.config_path.write_bytes(content)
    with pytest.raises(UserError, match=r"config.yaml is damaged; move the folder away and submit again"):
        folder.read_config()


@pytest.mark.parametrize("key", ["recipe", "runtime", "sweep", "kernels"])
def test_a_config_with_a_key_missing_is_refused(folder: RunFolder, key: str) -> None:
    raw = read_yaml(folder.config_path)
    del raw[key]
    write_yaml(folder.config_path, raw)
    with pytest.raises(UserError, match=f"lacks or garbles '{key}'"):
        folder.read_config()


@given(data=st.data())
def test_a_garbled_config_is_always_the_users_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is put in place of a value: read as it was, or refused in a sentence; never another exception."""
    folder = make_run(tmp_path_factory.mktemp("garbled"), "corpus")
    raw = read_yaml(folder.config_path)
    part = data.draw(
        st.sampled_from([raw, raw["recipe"], raw["recipe"]["model"], raw["runtime"], raw["runtime"]["tracking"]])
    )
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(st.none() | st.integers(-3, 3) | st.text(max_size=3))
    write_yaml(folder.config_path, raw)
    with suppress(UserError):
        assert folder.read_config().run_id == folder.run_id


def test_no_config_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder; run `isoflop submit`"):
        RunFolder(tmp_path).read_config()


# metrics and attempts


def test_an_attempt_that_resumes_voids_rows_from_there(folder: RunFolder) -> None:
    assert folder.start_attempt("", 0) == 0
    for step in (4, 9, 14):
        write_row(folder, 0, step)
    assert folder.start_attempt("", 8) == 1
    write_row(folder, 1, 9)
    assert seen(folder) == [(0, 4), (1, 9)]
    write_row(folder, 1, 14)
    assert folder.start_attempt("", 0) == 2
    write_row(folder, 2, 4)
    assert seen(folder) == [(2, 4)]


def test_rows_of_a_writer_that_was_thought_dead_do_not_count(folder: RunFolder) -> None:
    folder.start_attempt("", 0)
    write_row(folder, 0, 4)
    folder.start_attempt("", 5)
    write_row(folder, 1, 9, loss=2.0)
    write_row(folder, 0, 9, loss=3.0)
    write_row(folder, 1, 14)
    assert seen(folder) == [(0, 4), (1, 9), (1, 14)]
    assert folder.metrics()[1]["train_loss"] == 2.0


def test_a_row_written_twice_counts_once_and_torn_rows_not_at_all(folder: RunFolder) -> None:
    folder.start_attempt("", 0)
    write_row(folder, 0, 4)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train_lo')
    folder.start_attempt("", 5)
    write_row(folder, 1, 9, loss=2.0)
    write_row(folder, 1, 9, loss=3.0)
    assert [(row["step"], row["train_loss"]) for row in folder.metrics()] == [(4, 1.0), (9, 3.0)]


def test_values_that_json_cannot_hold_become_null(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1, "train_loss": math.nan, "grad_norm": math.inf, "attempt": 0})
    assert folder.metrics() == [{"step": 1, "train_loss": None, "grad_norm": None, "attempt": 0}]


def test_attempts_merge_their_lines_and_a_killed_one_has_no_end(folder: RunFolder) -> None:
    folder.start_attempt("job7", None)
    folder.end_attempt(0, "stopped: cancelled")
    folder.start_attempt("job8", 12)
    first, second = folder.attempts()
    assert first["why"] == "stopped: cancelled" and first["end"] >= first["start"] and first["job"] == "job7"
    assert second["resume_step"] == 12 and "why" not in second and second["pid"] == os.getpid()


# points


def record_of(folder: RunFolder, verdict: str = "done", loss: float | None = 2.5, **changes: Any) -> dict[str, Any]:
    config = folder.read_config()
    record = final_record(
        config, point_id=config.run_id, tokens=config.recipe.tokens, loss=loss, verdict=verdict, bits_per_byte=3.6
    )
    return record | changes


def test_a_final_record_has_every_count(folder: RunFolder) -> None:
    folder.write_point(record_of(folder))
    point = folder.points()[folder.run_id]
    recipe = folder.read_config().recipe
    assert point["params_non_embedding"] + point["params_embedding"] + point["params_head"] == point["params_total"]
    assert {key for key in point if key.startswith("flops_")} == {
        "flops_6nd",
        "flops_matmul",
        "flops_palm",
        "flops_chinchilla",
    }
    assert point["flops_6nd"] == 6 * recipe.model.params_total * recipe.tokens
    assert (point["loss"], point["loss_unit"], point["horizon"]) == (2.5, "nats/token", recipe.tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": None},
        {"loss": math.nan},
        {"tokens": 1},
        {"run_id": "another"},
        {"verdict": "perhaps"},
        {"verdict": None},
        {"point_id": None},
    ],
)
def test_a_record_that_proves_nothing_does_not_count(folder: RunFolder, changes: dict[str, Any]) -> None:
    folder.write_point(record_of(folder) | changes)
    assert folder.points() == {}


def test_the_last_valid_record_counts_and_a_torn_one_does_not(folder: RunFolder) -> None:
    folder.write_point(record_of(folder, "failed: out of memory", None))
    folder.write_point(record_of(folder, loss=2.0))
    with (folder.path / "points.jsonl").open("a") as file:
        file.write(json.dumps(record_of(folder, loss=9.0))[:-5])
    assert folder.points()[folder.run_id]["loss"] == 2.0


def test_a_failure_can_be_forgotten_a_measurement_not(folder: RunFolder) -> None:
    folder.write_point(record_of(folder, "failed: out of memory", None))
    folder.forget_failure()
    assert folder.points() == {} and not (folder.path / "points.jsonl").exists()
    folder.write_point(record_of(folder))
    folder.forget_failure()
    assert folder.points()[folder.run_id]["verdict"] == "done"
