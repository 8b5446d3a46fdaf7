"""A worker and its lock: whoever stood still until others took a run over writes nothing more into it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from trainer_runs import make_run, small_corpus

from sweeps.dispatch.worker import execute
from trainer import lock
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
