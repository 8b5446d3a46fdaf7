from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import make_run, small_corpus
from wandb_home import at_home
from wandb_stand_in import KEY, StandIn, stand_in

from analysis.ingest.wandb_files import read_attempt
from trainer import checkpoint
from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.loop import train
from trainer.runfolder import RunFolder, final_record
from trainer.story import PATIENCE, is_whole, mark_failed, mark_whole, read_mark, story_of
from trainer.tracking import Story, WandbRun, is_tracked, summary_of, told_row

ONLINE = TrackingConfig(backend=Backend.wandb, mode=WandbMode.online, project="study", entity="lab", share=1.0)
OFFLINE = TrackingConfig(backend=Backend.wandb, mode=WandbMode.offline, project="study", every_seconds=0.1, share=1.0)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as memory:
        at_home(monkeypatch, tmp_path, memory.url)
        yield memory


def trained(root: Path, **changes: Any) -> RunFolder:
    folder = make_run(root, small_corpus(root), kernels={"attention": "sdpa"}, **changes)
    assert train(folder, root, job="12_3") == "done"
    return folder


def begun(root: Path, steps: int = 40, **changes: Any) -> RunFolder:
    """A run that has an attempt and rows at every fifth step, and nothing else."""
    folder = make_run(root, "corpus", steps=steps, **changes)
    folder.start_attempt("", 0)
    for step in range(4, steps, 5):
        folder.append_metrics({"step": step, "tokens": 96 * (step + 1), "train_loss": 3.0, "attempt": 0, "time": 2e9})
    return folder


def tell(folder: RunFolder, story: Story, tracking: TrackingConfig, rows: int | None = None, **how: Any) -> int:
    """Open the run in W&B, hand over some rows and close it; how many rows it had."""
    run = WandbRun(folder.path, story, tracking, **how)
    had = run.handed_over
    run.hand_over(story.rows[:rows])
    run.finish(story.summary if rows is None else {})
    return had


# what is told


def test_only_rows_that_no_kill_can_take_back_are_told(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    assert story_of(folder).rows == []
    checkpoint.save(folder.checkpoints, folder.run_id, step=20, state={}, newest=None)
    assert [row["step"] for row in story_of(folder).rows] == [4, 9, 14, 19]
    checkpoint.save(folder.checkpoints, folder.run_id, step=30, state={}, newest="a.ckpt")
    assert [row["step"] for row in story_of(folder).rows] == [4, 9, 14, 19, 24, 29]
    (folder.checkpoints / "b.ckpt").write_bytes(b"torn")
    assert len(story_of(folder).rows) == 4


def test_a_row_that_waited_long_for_its_checkpoint_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path)
    monkeypatch.setattr("trainer.story.time.time", lambda: 2e9 + PATIENCE + 1)
    assert len(story_of(folder).rows) == 8


def test_an_ended_run_is_told_whole_with_its_final_values(tmp_path: Path) -> None:
    folder = trained(tmp_path, peak_flops=1e12)
    story, (point,) = story_of(folder), folder.points().values()
    assert [row["step"] for row in story.rows] == [row["step"] for row in folder.metrics()]
    assert story.summary["loss"] == point["loss"] and story.summary["final_tokens"] == point["tokens"]
    assert json.loads(story.summary["points"]) == [point]
    assert story.config["job"] == "12_3" and story.config["attempt"] == 0
    assert json.loads(story.config["exact"]) == folder.read_config().to_dict()


def test_a_row_is_told_with_its_time_and_mfu_and_without_what_is_empty(tmp_path: Path) -> None:
    config = make_run(tmp_path, "corpus", peak_flops=1e9).read_config()
    told = told_row({"step": 4, "val_loss": None, "tokens_per_second": 1000.0, "time": 5.5}, config, devices=2)
    mfu = 1000 * config.recipe.model.flops(1) / 2e9
    assert told == {"step": 4, "tokens_per_second": 1000.0, "_timestamp": 5.5, "mfu": mfu}
    assert told_row({"mfu": 0.4, "tokens_per_second": 1.0}, config)["mfu"] == 0.4
    without = make_run(tmp_path, "corpus", seed=1).read_config()
    assert "mfu" not in told_row({"tokens_per_second": 1.0}, without)


def test_of_several_points_the_longest_names_the_summary(tmp_path: Path) -> None:
    config = make_run(tmp_path, "corpus").read_config()
    points = {
        name: final_record(config, point_id=name, tokens=tokens, loss=loss, verdict="done")
        for name, tokens, loss in (("b", 200, 2.5), ("a", 100, 3.0))
    }
    told = summary_of(points)
    assert (told["loss"], told["final_tokens"]) == (2.5, 200) and len(json.loads(told["points"])) == 2


def test_what_a_mirror_noted_holds_for_the_records_it_saw(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    config = folder.read_config()
    assert not is_whole(folder)
    failed = final_record(config, point_id=config.run_id, tokens=0, loss=None, verdict="failed: OOM")
    folder.write_point(failed)
    mark_whole(folder, "online")
    assert is_whole(folder) and read_mark(folder)["mode"] == "online"
    folder.forget_failure()
    folder.write_point(failed | {"verdict": "done", "loss": 2.0, "tokens": config.recipe.tokens})
    assert not is_whole(folder)
    mark_failed(folder, "no route to host")
    assert not is_whole(folder) and read_mark(folder) == {"failed": "no route to host"}


@pytest.mark.parametrize("mode", WandbMode)
def test_who_asks_for_a_mirror(mode: WandbMode) -> None:
    assert not is_tracked(TrackingConfig(mode=mode))
    assert is_tracked(TrackingConfig(backend=Backend.wandb, mode=mode)) == (mode is not WandbMode.disabled)


# W&B's client, offline


def test_an_offline_run_is_one_file_however_often_it_was_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_home(monkeypatch, tmp_path)
    folder = trained(tmp_path, sweep="night")
    story = story_of(folder)
    assert tell(folder, story, OFFLINE, rows=3) == 0
    (early,) = (folder.path / "wandb").glob("offline-run-*")
    early.rename(early.with_name(f"offline-run-20200101_000000-{story.run_id}"))  # as if it were long ago
    assert tell(folder, story, OFFLINE) == 0
    (file,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    read = read_attempt(file)
    assert (read.run_id, read.group, read.job_type, read.state) == (story.run_id, "night", "train", "finished")
    assert [row["step"] for row in read.rows] == [row["step"] for row in folder.metrics()]
    assert [row["_step"] for row in read.rows] == list(range(len(read.rows)))
    for mine, theirs in zip(folder.metrics(), read.rows, strict=True):
        assert all(theirs[key] == value for key, value in mine.items() if key != "time" and value is not None)
        assert theirs["_timestamp"] == pytest.approx(mine["time"], abs=1e-3)
    assert all(read.summary[name] == value for name, value in story.summary.items())
    assert all(read.config[name] == value for name, value in story.config.items() if value not in ({}, None))
    content = file.read_bytes()
    assert all(tag.encode() in content for tag in story.tags)


def test_a_folder_that_w_and_b_cannot_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(monkeypatch, tmp_path)
    folder = begun(tmp_path)
    (folder.path / "wandb").write_text("a file")
    with pytest.raises(OSError, match="exists"):
        tell(folder, story_of(folder), OFFLINE)
    (folder.path / "wandb").unlink()
    monkeypatch.setattr("trainer.tracking.os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written to"):
        tell(folder, story_of(folder), OFFLINE)


def test_a_file_that_w_and_b_did_not_finish_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(monkeypatch, tmp_path)
    monkeypatch.setattr("trainer.tracking.WRITE_SECONDS", 0.5)
    folder = trained(tmp_path)
    story = story_of(folder)
    run = WandbRun(folder.path, story, OFFLINE)
    run.hand_over(story.rows)
    monkeypatch.setattr("trainer.tracking.records", lambda raw, faults: faults.append("is cut short") or iter(()))
    with pytest.raises(OSError, match=r"did not write all of .*\.wandb; is its disk full"):
        run.finish(story.summary)


# W&B's client, online


def test_a_run_that_is_taken_up_again_goes_on_where_the_server_stands(tmp_path: Path, server: StandIn) -> None:
    folder = trained(tmp_path, sweep="night")
    story = story_of(folder)
    assert tell(folder, story, ONLINE, rows=2) == 0
    run = server.runs[story.run_id]
    assert run.state == "preempted" and len(run.rows) == 2
    assert tell(folder, story, ONLINE) == 2
    assert tell(folder, story, ONLINE) == len(story.rows)  # once more, for nothing
    assert run.state == "finished" and server.sent == len(story.rows)
    assert [row["step"] for row in run.rows] == [row["step"] for row in folder.metrics()]
    assert [row["_step"] for row in run.rows] == list(range(len(story.rows)))
    assert {name: run.summary[name] for name in story.summary} == dict(story.summary)
    assert run.config["exact"] == story.config["exact"] and server.unknown == []
    given = run.attributes
    assert (given["groupName"], given["jobType"], given["displayName"]) == ("night", "train", story.run_id)
    assert given["tags"] == list(story.tags)
    assert KEY not in json.dumps(given)


def test_a_run_that_goes_on_elsewhere_is_left_running(tmp_path: Path, server: StandIn) -> None:
    folder = trained(tmp_path)
    tell(folder, story_of(folder), ONLINE, rows=2, final=False)
    assert server.runs[folder.run_id].state == "running" and len(server.runs[folder.run_id].rows) == 2


def test_a_failed_run_is_failed_in_w_and_b(tmp_path: Path, server: StandIn) -> None:
    folder = begun(tmp_path)
    config = folder.read_config()
    folder.write_point(final_record(config, point_id=config.run_id, tokens=0, loss=None, verdict="failed: OOM"))
    tell(folder, story_of(folder), ONLINE)
    run = server.runs[folder.run_id]
    assert run.state == "failed" and run.summary["verdict"] == "failed: OOM" and len(run.rows) == 8


def test_a_wrong_key_is_an_error_that_does_not_show_it(
    tmp_path: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "f" * 40
    monkeypatch.setenv("WANDB_API_KEY", wrong)
    monkeypatch.setattr("trainer.tracking.INIT_SECONDS", 5.0)
    folder = begun(tmp_path)
    with pytest.raises(Exception, match=r"401|not logged in|API key") as error:
        tell(folder, story_of(folder), ONLINE)
    assert wrong not in str(error.value)
    shutil.rmtree(folder.path / "wandb")
