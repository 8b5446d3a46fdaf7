"""The mirror as a process: what W&B gets of a worker's runs, and that nothing W&B does reaches the runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_trainer_tracking import OFFLINE, ONLINE
from trainer_runs import REPOSITORY, make_run, rows, small_corpus
from wandb_home import at_home
from wandb_stand_in import KEY, StandIn, stand_in

from analysis.ingest.wandb_files import read_attempt
from trainer.config import TrackingConfig
from trainer.mirror import Mirror, tell_rest, untold
from trainer.runfolder import RunFolder
from trainer.story import is_whole, read_mark

WORKER = """
import signal, sys
from pathlib import Path
from sweeps.dispatch.worker import Worker
signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append("SIGTERM"))
Worker(Path(sys.argv[1]), sys.argv[2:], "job", 5).go(lambda: signals[0] if signals else None)
"""
LONG = {"steps": 12000, "log_every": 60, "eval_steps": (6000, 12000), "checkpoint_seconds": 0.2}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    at_home(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as memory:
        at_home(monkeypatch, tmp_path, memory.url)
        yield memory


def made(root: Path, tracking: TrackingConfig, count: int = 1, **changes: Any) -> list[RunFolder]:
    corpus, kernels = small_corpus(root), {"attention": "sdpa"}
    return [make_run(root, corpus, seed=seed, tracking=tracking, kernels=kernels, **changes) for seed in range(count)]


def work(runs: list[RunFolder], **environment: str) -> subprocess.Popen[str]:
    """A worker over the runs, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(runs[0].path.parent), *(run.run_id for run in runs)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(condition: Callable[[], Any], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def told(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of a run's offline files."""
    files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
    return [row for file in files for row in read_attempt(file).rows]


def complaints(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("isoflop: W&B")]


def test_tiny_runs_are_all_told_whole(offline: Path) -> None:
    runs = made(offline, OFFLINE, count=4)
    worker = work(runs)
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0 and complaints(errors) == []
    for run in runs:
        assert is_whole(run) and [row["step"] for row in told(run)] == [row["step"] for row in run.metrics()]


def test_a_worker_that_is_killed_outright_leaves_a_mirror_that_another_one_completes(offline: Path) -> None:
    (run,) = made(offline, OFFLINE, **LONG)
    worker = work([run])
    until(lambda: (run.path / "wandb").is_dir() and len(run.metrics()) > 40)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate(timeout=60)
    assert not run.points() and not is_whole(run)
    second = work([run])
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0 and complaints(errors) == []
    assert len(run.attempts()) == 2
    steps = [row["step"] for row in told(run)]
    assert steps == [row["step"] for row in run.metrics()] and len(set(steps)) == len(steps)
    assert [row["train_loss"] for row in told(run)] == [row["train_loss"] for row in run.metrics()]


def test_killed_online_it_continues_the_same_run_and_no_row_is_sent_twice(offline: Path, server: StandIn) -> None:
    (run,) = made(offline, ONLINE, **LONG)
    worker = work([run])
    until(lambda: run.run_id in server.runs and len(server.runs[run.run_id].rows) > 5)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate(timeout=60)
    second = work([run])
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0 and complaints(errors) == []
    seen = server.runs[run.run_id]
    assert len(run.attempts()) == 2 and seen.opened >= 2
    assert seen.state == "finished" and seen.config["attempt"] == 1
    assert [row["step"] for row in seen.rows] == [row["step"] for row in run.metrics()]
    assert [row["train_loss"] for row in seen.rows] == [row["train_loss"] for row in run.metrics()]


def test_a_worker_that_is_asked_to_leave_says_so_and_the_run_goes_on_later(offline: Path, server: StandIn) -> None:
    (run,) = made(offline, ONLINE, **LONG)
    worker = work([run])
    until(lambda: run.run_id in server.runs and len(server.runs[run.run_id].rows) > 3)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert not run.points()
    if not complaints(errors):  # a machine under load may not finish in the time that a stopped worker has
        until(lambda: server.runs[run.run_id].state == "preempted")


def test_a_mirror_that_dies_is_started_again(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.mirror.RETRY_SECONDS", 0.1)
    (run,) = made(offline, OFFLINE)
    mirror = Mirror(run.path.parent)
    mirror.follow(run, run.read_config())
    first = mirror._process
    assert first is not None
    first.kill()
    first.wait()
    mirror.check()
    time.sleep(0.2)
    mirror.check()
    assert mirror._process is not None and mirror._process.pid != first.pid
    mirror.close()
    assert mirror._process is None


# nothing depends on it


def test_losses_are_the_same_bits_whatever_w_and_b_does(offline: Path, server: StandIn) -> None:
    """No server, a server that hangs, a wrong key, a folder that cannot be written: one warning, the same record."""
    (plain,) = made(offline, TrackingConfig(), sweep="plain")
    assert work([plain]).wait(60) == 0
    wrong = "e" * 40
    cases: dict[str, dict[str, str]] = {
        "nobody": {"WANDB_BASE_URL": "http://127.0.0.1:9"},
        "wrong": {"WANDB_API_KEY": wrong},
        "none": {"WANDB_API_KEY": ""},
        "full": {},
        "hangs": {},
    }
    workers = {}
    for name, environment in cases.items():
        (run,) = made(offline, ONLINE, sweep=name)
        if name == "full":
            (run.path / "wandb").write_text("no folder can be made here")
        if name == "hangs":
            server.hanging.set()
        workers[name] = (run, work([run], **environment))
    for name, (run, worker) in workers.items():
        until(lambda run=run: run.points())  # type: ignore[misc]
        _, errors = worker.communicate(timeout=100)
        assert worker.returncode == 0, (name, errors)
        assert rows(run) == rows(plain), name
        assert len(complaints(errors)) == 1, (name, errors)
        assert wrong not in errors and KEY not in errors
        assert not is_whole(run)


def test_the_key_is_nowhere_on_the_disk(offline: Path, server: StandIn) -> None:
    runs = [*made(offline, ONLINE, sweep="online"), *made(offline, OFFLINE, sweep="offline")]
    for run in runs:
        assert work([run]).wait(90) == 0
        assert is_whole(run)
    files = [path for path in offline.rglob("*") if path.is_file() and not path.is_relative_to(offline / "corpora")]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_what_ended_untold_is_told_later(offline: Path) -> None:
    (run,) = made(offline, OFFLINE)
    worker = work([run])
    until(run.points)
    os.killpg(worker.pid, signal.SIGKILL)  # between the final record and the mirror's end, or near it
    worker.communicate(timeout=60)
    shutil.rmtree(run.path / "wandb", ignore_errors=True)
    assert [found.run_id for found, _ in untold(run.path.parent)] == [run.run_id]
    tell_rest(run.path.parent)
    assert is_whole(run) and not list(untold(run.path.parent))
    assert [row["step"] for row in told(run)] == [row["step"] for row in run.metrics()]


def test_training_never_imports_wandb(tmp_path: Path) -> None:
    code = "import sys, trainer.loop, trainer.mirror, sweeps.dispatch.worker; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_a_mark_says_why_a_run_is_not_in_w_and_b(offline: Path) -> None:
    (run,) = made(offline, ONLINE)
    worker = work([run], WANDB_API_KEY="")
    worker.communicate(timeout=100)
    assert "key" in read_mark(run)["failed"].lower()
    assert "failed" in json.loads((run.path / "wandb" / "mirror.json").read_text())
