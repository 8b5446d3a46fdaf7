"""A worker and its lock: whoever stood still until others took a run over writes nothing more into it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from trainer_runs import make_run, small_corpus, small_shape

from sweeps.dispatch.execute import execute, execute_together
from sweeps.dispatch.worker import Worker
from trainer import lock
from trainer.errors import MachineFault
from trainer.lock import Lock
from trainer.mirror import Mirror
from trainer.runfolder import RunFolder


def contents(folder: RunFolder) -> dict[str, bytes]:
    kept = {"config.yaml", "attempts.jsonl", "metrics.jsonl", "points.jsonl", "lock"}
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name in kept}


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunFolder], dict[str, bytes]]:
    """Give a run's lock to another machine until its holder has noticed; returns what the folder then holds."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)

    def take(folder: RunFolder) -> dict[str, bytes]:
        ours = json.loads((folder.path / "lock").read_text())
        (folder.path / "lock").write_text(json.dumps(ours | {"token": "another", "host": "elsewhere"}))
        (beating,) = [thread for thread in threading.enumerate() if thread.name == f"heartbeat {folder.path.name}"]
        beating.join(10)
        return contents(folder)

    return take


@pytest.mark.parametrize("command", [None, "{python} -m trainer.examples.law_trainer {folder}"])
def test_frozen_before_its_first_line(
    tmp_path: Path, taken_over: Callable[[RunFolder], dict[str, bytes]], command: str | None
) -> None:
    folder = make_run(tmp_path, small_corpus(tmp_path))
    config = folder.read_config()
    if command is not None:
        config = replace(config, recipe=replace(config.recipe, command=command))
        folder = RunFolder(tmp_path / "s" / config.run_id)
        folder.write_config(config)
    then: list[dict[str, bytes]] = []
    verdict = execute(
        folder, "old", lambda: None, Mirror(folder.path.parent), prepare=lambda: then.append(taken_over(folder))
    )
    assert verdict == "stopped: the lock was lost"
    assert contents(folder) == then[0]
    assert set(then[0]) == {"config.yaml", "lock"}


def test_frozen_while_it_chose_its_kernels(
    tmp_path: Path, taken_over: Callable[[RunFolder], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import loop

    folder = make_run(tmp_path, small_corpus(tmp_path))
    choose, then = loop.choose_kernels, []

    def slowly(*arguments: object) -> object:
        then.append(taken_over(folder))
        return choose(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "choose_kernels", slowly)
    assert execute(folder, "old", lambda: None, Mirror(folder.path.parent)) == "stopped: the lock was lost"
    assert contents(folder) == then[0]


def same_shape(root: Path) -> list[RunFolder]:
    """Four runs that differ in seed and rate, and one of another shape."""
    corpus = small_corpus(root)
    varied: list[dict[str, Any]] = [{"seed": seed, "lr": rate} for seed in (0, 1) for rate in (0.01, 0.02)]
    odd = {"shape": small_shape(d_model=32)}
    return [make_run(root, corpus, **one, kernels={"step": "torch", "attention": "manual"}) for one in [*varied, odd]]


def test_runs_of_one_shape_are_trained_as_one_model(tmp_path: Path) -> None:
    alone, together = same_shape(tmp_path / "alone"), same_shape(tmp_path / "together")
    for folders, most in ((alone, 1), (together, 3)):
        worker = Worker(folders[0].path.parent, [folder.run_id for folder in folders], "w", 3, together=most)
        assert worker.go(lambda: None) == 0
    said = [[(attempt["why"], attempt.get("together")) for attempt in folder.attempts()] for folder in together]
    assert said == [[("done", 3)]] * 3 + [[("done", None)]] * 2, "three at a time; what is left, and is odd, by itself"
    for mine, other in zip(together, alone, strict=True):
        assert mine.points()[mine.run_id]["loss"] == pytest.approx(other.points()[other.run_id]["loss"], rel=1e-5)
        assert not (mine.path / "lock").exists()


def test_a_corpus_that_changes_under_a_run_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = small_corpus(tmp_path)
    folder = make_run(tmp_path, corpus, kernels={"step": "torch", "attention": "manual"})
    shard, append = tmp_path / "corpora" / corpus / "train.bin", RunFolder.append_metrics

    def change(run: RunFolder, row: Any) -> None:
        append(run, row)
        os.truncate(shard, 100)

    monkeypatch.setattr(RunFolder, "append_metrics", change)
    verdict = execute(folder, "w", lambda: None, None)
    assert (
        verdict == f"failed: the shard {shard} was changed or removed after it was opened; restore it, and submit "
        "again with retry=all."
    )
    assert capsys.readouterr().err == f"isoflop: {verdict.removeprefix('failed: ')}\n"
    assert folder.points()[folder.run_id]["verdict"] == verdict


def test_of_runs_trained_together_each_may_be_held_cancelled_or_fail(tmp_path: Path) -> None:
    folders = same_shape(tmp_path)[:4]
    held, cancelled, broken, fine = folders
    broken.config_path.write_text("nonsense")
    cancelled.cancel_path.touch()
    with Lock(held.path, job="another") as lock:
        assert lock is not None
        verdicts = execute_together(folders, "w", lambda: None, Mirror(held.path.parent))
    assert verdicts[0] is None and not held.attempts()
    assert verdicts[1] == "stopped: cancelled" and not cancelled.points()
    assert verdicts[2] is not None and verdicts[2].startswith("failed: ") and "is damaged" in verdicts[2]
    assert verdicts[3] == "done" and fine.points()


def test_a_fault_of_the_disk_under_one_of_them_stops_the_worker_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = same_shape(tmp_path)[:2]
    append = RunFolder.append_metrics

    def full(folder: RunFolder, row: Any) -> None:
        if folder.path == folders[0].path:
            raise MachineFault("no space left")
        append(folder, row)

    monkeypatch.setattr(RunFolder, "append_metrics", full)
    with pytest.raises(MachineFault, match="no space left"):
        execute_together(folders, "w", lambda: None, Mirror(folders[0].path.parent))
    assert not folders[0].points() and folders[1].points()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["device.together=4", "device.memory_gb=0.1"], "lower device.together"),
        (["device.together=2", "device.per_run=2"], "set one of them to 1"),
        (["device.together=-1"], "device.together=-1 must be 0 or more"),
    ],
)
def test_what_cannot_be_together_is_refused(
    isoflop: Callable[..., Answer], tmp_path: Path, overrides: list[str], told: str
) -> None:
    answer = isoflop("submit", "sweep=smoke", f"root={tmp_path}", *overrides)
    assert answer.code == 2 and told in answer.sentence
    assert not list(tmp_path.glob("smoke/*/config.yaml"))
