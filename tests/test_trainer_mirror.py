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
from dataclasses import replace
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
from trainer.pace import Pace, idle_seconds
from trainer.runfolder import RunFolder
from trainer.story import is_whole, read_mark

WORKER = """
import os, signal, sys, time
from pathlib import Path
from sweeps.dispatch import worker
from trainer import mirror
from trainer.runfolder import RunFolder

worker.BEAT_SECONDS = 0.02
mirror.START_SECONDS, mirror.DRAIN_SECONDS = 0.0, float(os.environ.get("DRAIN", mirror.DRAIN_SECONDS))
sweep, runs, signals = Path(sys.argv[1]), sys.argv[2:], []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append("SIGTERM"))
hold = int(os.environ.get("HOLD", 10**9))

def stop():
    while not signals and len(RunFolder(sweep / runs[0]).metrics()) > hold:
        time.sleep(0.01)
    return signals[0] if signals else None

worker.Worker(sweep, runs, "job", 5, together=int(os.environ.get("TOGETHER", 1))).go(stop)
"""
"""With HOLD set it stands still once the first run has more than so many rows, so that a test finds it midway."""
LONG = {"steps": 600, "log_every": 5, "eval_steps": (300, 600), "checkpoint_seconds": 0.1}


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
    worker = work([run], HOLD="40")
    until(lambda: any((run.path / "wandb").glob("offline-run-*/*.wandb")) and len(run.metrics()) > 40)
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
    worker = work([run], HOLD="40")
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
    worker = work([run], HOLD="40")
    until(lambda: run.run_id in server.runs and len(server.runs[run.run_id].rows) > 3)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert not run.points()
    if not complaints(errors):  # a machine under load may not finish in the time that a stopped worker has
        until(lambda: server.runs[run.run_id].state == "preempted")


def test_runs_that_are_trained_together_are_followed_together(offline: Path, server: StandIn) -> None:
    """All are seen while they go, the first's end is not the others', and each is told whole."""
    runs = [
        *made(offline, ONLINE, **(LONG | {"steps": 30, "eval_steps": (30,)})),
        *made(offline, ONLINE, 3, **LONG)[1:],
    ]
    worker = work([runs[1], runs[0], runs[2]], HOLD="40", TOGETHER="3")
    until(lambda: all(run.run_id in server.runs and len(server.runs[run.run_id].rows) > 3 for run in runs))
    assert [bool(run.points()) for run in runs] == [True, False, False]
    until(lambda: server.runs[runs[0].run_id].state == "finished")
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert not runs[1].points() and not runs[2].points()
    second = work(runs, TOGETHER="3")
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0 and complaints(errors) == []
    for run in runs:
        seen = server.runs[run.run_id]
        assert run.attempts()[0]["together"] == 3 and seen.state == "finished" and is_whole(run)
        assert [row["step"] for row in seen.rows] == [row["step"] for row in run.metrics()]


def test_tiny_runs_that_are_trained_together_are_all_told(offline: Path) -> None:
    runs = made(offline, OFFLINE, count=5)
    worker = work(runs, TOGETHER="3")
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0 and complaints(errors) == []
    assert all(is_whole(run) and len(told(run)) == len(run.metrics()) for run in runs)


def test_a_mirror_that_dies_is_started_again(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.mirror.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("trainer.mirror.START_SECONDS", 0.0)
    (run,) = made(offline, OFFLINE)
    mirror = Mirror(run.path.parent)
    mirror.follow((run, run.read_config()))
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
        workers[name] = (run, work([run], DRAIN="6", **environment))
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


# how much of the machine it takes


def test_a_share_of_the_time_is_allowed_where_no_core_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used, idle = [0.0], [2.0], [0.0]
    monkeypatch.setattr("trainer.pace.time.monotonic", lambda: now[0])
    monkeypatch.setattr("trainer.pace.processor_seconds", lambda: used[0])
    monkeypatch.setattr("trainer.pace.idle_seconds", lambda: idle[0])
    pace = Pace()
    assert pace.allows(0.01)  # what was used before does not count
    used[0] += 0.5
    now[0] = 10.0
    assert not pace.allows(0.01) and pace.allows(0.06)
    now[0] = 49.0
    assert not pace.allows(0.01)
    now[0] = 51.0
    assert pace.allows(0.01)
    idle[0], now[0], used[0] = 10.0, 61.0, 12.5  # a core stood idle, and we used it
    assert pace.allows(0.01)
    now[0], used[0] = 71.0, 22.5  # it is busy, with us alone
    assert pace.allows(0.01)
    now[0] = 81.0  # others have it
    assert pace.allows(0.01)  # what was taken while it was free is not held against us
    used[0] += 1.0
    assert not pace.allows(0.01)


def test_idle_cores_are_seen_as_the_system_tells_them() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("only Linux tells how long cores were idle")
    before, began = idle_seconds(), time.monotonic()
    time.sleep(0.3)
    after, cores = idle_seconds(), len(os.sched_getaffinity(0))
    assert before is not None and after is not None
    assert -0.05 <= after - before <= cores * (time.monotonic() - began) + 0.05


def test_where_every_core_works_a_worker_starts_its_mirror_late(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = made(offline, replace(OFFLINE, share=0.01))
    monkeypatch.setattr("trainer.mirror.Cores.free", lambda *_: False)
    mirror = Mirror(run.path.parent)
    mirror.follow((run, run.read_config()))
    mirror.check()
    assert mirror._process is None
    mirror._began -= 119.0
    mirror.check()
    assert mirror._process is None
    mirror._began -= 2.0
    mirror.check()
    assert mirror._process is not None
    mirror.close()


def test_runs_passed_over_are_told_when_there_is_room(offline: Path) -> None:
    """Four tiny runs, and a mirror that may take next to nothing while they train: all are told at the end."""
    runs = made(offline, replace(OFFLINE, share=1e-9), count=4)
    worker = work(runs)
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0 and complaints(errors) == []
    assert all(is_whole(run) and len(told(run)) == len(run.metrics()) for run in runs)
