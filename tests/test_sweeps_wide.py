"""Runs that a worker spreads over several devices of this machine: what they give, and how each kind of end is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from sweep_runs import ranks_of, until
from trainer_runs import make_run, rows, small_corpus

from sweeps.dispatch import wide
from sweeps.dispatch.execute import _cause, execute
from sweeps.dispatch.external import ExternalTrainerError
from sweeps.dispatch.launch import _gpus
from sweeps.dispatch.ranks import here, run_here, spread
from sweeps.dispatch.wide import RanksFailed
from trainer.errors import MachineFault
from trainer.files import append_line
from trainer.lock import Lock
from trainer.loop import train
from trainer.mirror import Mirror
from trainer.runfolder import LOST, STOPPED, RunFolder
from trainer.under import Lent

MANUAL = {"step": "torch", "attention": "manual"}
WORKER = """
import sys
from pathlib import Path
from sweeps.dispatch.ranks import here
from sweeps.dispatch.execute import execute
from trainer.mirror import Mirror
from trainer.runfolder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
execute(folder, "worker", lambda: None, Mirror(folder.path.parent), ranks=here(2))
"""
SMOKE = ["sweep=smoke", "sweep.budgets=[1e10]", "sweep.sizes=1", "optim.batch_min=576", "optim.batch_max=576"]


def go(folder: RunFolder, should_stop: Callable[[], str | None] = lambda: None) -> str | None:
    """What a worker does with a run that has two devices."""
    return execute(folder, "here", should_stop, Mirror(folder.path.parent), ranks=here(2))


def test_two_devices_give_the_losses_of_one_and_the_ledger_of_one(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    alone, folder = (make_run(tmp_path, corpus, sweep=sweep, kernels=MANUAL) for sweep in ("alone", "two"))
    assert train(alone, tmp_path) == "done"
    assert go(folder) == "done"
    for mine, other in zip(rows(folder), rows(alone), strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
    (one,), (two,) = alone.points().values(), folder.points().values()
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    (attempt,) = folder.attempts()
    assert (attempt["why"], attempt["job"], attempt["devices"], attempt["resume_step"]) == ("done", "here", 2, 0)
    assert attempt["peak_bytes"] > 0 and not (folder.path / "lock").exists()
    assert go(folder) == "done" and len(folder.attempts()) == 1, "a run that has ended is left as it is"


def later(condition: Callable[[], object], action: Callable[[], object]) -> None:
    threading.Thread(target=lambda: (until(condition), action())).start()


def test_whatever_is_killed_or_stopped_it_goes_on_to_the_same_bits(tmp_path: Path, whole: bool) -> None:
    corpus = small_corpus(tmp_path)
    steps = 2000 if whole else 1000
    made: dict[str, Any] = {"steps": steps, "checkpoint_seconds": 0.1, "log_every": 20, "kernels": MANUAL}
    unbroken, folder = (make_run(tmp_path, corpus, sweep=sweep, **made) for sweep in ("unbroken", "killed"))
    assert go(unbroken) == "done"
    ranks = ("1", "0", "1", "0") if whole else ("1",)
    for rank in ranks:
        rows_then = len(folder.metrics())
        later(
            lambda then=rows_then: len(folder.metrics()) > then + 3,  # type: ignore[misc]
            lambda rank=rank: os.kill(ranks_of(folder)[rank], signal.SIGKILL),  # type: ignore[misc]
        )
        assert go(folder) == "stopped: a rank was killed"
        assert not ranks_of(folder), "nobody trains on by himself"
        assert folder.attempts()[-1]["why"] == LOST
    then = len(folder.metrics())
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(folder.path)])
    until(lambda: len(folder.metrics()) > then + 3)
    worker.kill()
    worker.wait()
    until(lambda: not ranks_of(folder), 10)
    then, reason = len(folder.metrics()), "the time limit is near"
    assert go(folder, lambda: reason if len(folder.metrics()) > then + 3 else None) == STOPPED + reason
    assert not folder.points()
    assert go(folder) == "done"
    assert [attempt["why"] for attempt in folder.attempts()] == [LOST] * (len(ranks) + 1) + [STOPPED + reason, "done"]
    resumed = [attempt["resume_step"] for attempt in folder.attempts()]
    assert resumed[0] == 0 and resumed == sorted(set(resumed)), "each went on from a later state"
    assert rows(folder) == rows(unbroken)


def test_what_a_rank_complains_of_is_the_cause(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "no-such-corpus", kernels=MANUAL)
    verdict = go(folder)
    assert verdict is not None and verdict.startswith("failed: ") and "no-such-corpus" in verdict
    assert folder.points()[folder.run_id]["verdict"] == verdict


def said(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(wide, "spread", lambda command, ranks: ["sh", "-c", script, *command])
    monkeypatch.setattr(wide, "late_reason", lambda should_stop: None)


def test_ranks_that_do_not_start_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, "c")
    said(monkeypatch, "echo srun: error: no such node; exit 7")
    assert go(folder) == "failed: the ranks did not start (exit code 7), and said last: srun: error: no such node"


def test_out_of_memory_on_a_rank_is_what_retry_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, "c")
    said(monkeypatch, "echo '3: isoflop: OutOfMemoryError: CUDA out of memory. Tried'; echo 0: killed; exit 137")
    assert go(folder) == "failed: OOM"
    assert _cause(RanksFailed("RuntimeError: no luck")) == "RuntimeError: no luck"
    assert _cause(ExternalTrainerError("it said: out of memory")) == "it said: out of memory"


def test_a_full_disk_under_a_rank_stops_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, "c")
    start = json.dumps({"attempt": 0, "start": 1.0, "resume_step": 0})
    end = json.dumps({"attempt": 0, "end": 2.0, "why": "exception: MachineFault: cannot write x: no space"})
    said(
        monkeypatch, f"printf '%s\\n' '{start}' '{end}' >>{folder.path}/attempts.jsonl; echo isoflop: no space; exit 1"
    )
    with pytest.raises(MachineFault, match=r"^cannot write x: no space$"):
        go(folder)
    assert not folder.points()


def test_a_signal_that_only_the_ranks_heard_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, "c")
    lines = [{"attempt": 0, "start": 1.0, "resume_step": 0}, {"attempt": 0, "end": 2.0, "why": "stopped: signal 15"}]
    text = "' '".join(map(json.dumps, lines))
    said(monkeypatch, f"printf '%s\\n' '{text}' >>{folder.path}/attempts.jsonl")
    assert go(folder) == "stopped: signal 15" and not folder.points()


def test_a_lent_lock_is_the_workers_and_no_longer(tmp_path: Path) -> None:
    with Lock(tmp_path, job="w") as lock:
        assert lock is not None
        lent = Lent.of(Lent(token=lock.token, job="w", facts={"life": 2}).environment())
        assert lent is not None and (lent.job, lent.facts) == ("w", {"life": 2})
        assert not lent.watch(tmp_path)()
        ours = json.loads((tmp_path / "lock").read_text())
        (tmp_path / "lock").write_text(json.dumps(ours | {"token": "another"}))
        assert lent.watch(tmp_path)()
        (tmp_path / "lock").write_text(json.dumps(ours))
    assert lent.watch(tmp_path)(), "given back"
    assert Lent.of({}) is None


def test_the_first_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    wait = f'test "$RANK" = 1 && exit 5; touch {tmp_path}/$RANK; sleep 60; touch {tmp_path}/late'
    code = "import sys; from sweeps.dispatch.ranks import run_here; sys.exit(run_here(3, sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "sh", "-c", wait], timeout=30, check=False)
    assert done.returncode == 5
    assert not (tmp_path / "late").exists()


def test_ranks_of_one_machine_know_each_other(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    script = f"echo {' '.join(f'${name}' for name in names)} > {tmp_path}/$RANK"
    try:
        assert run_here(2, ["sh", "-c", script]) == 0
        assert run_here(2, ["sh", "-c", "kill -9 $$"]) == 137
    finally:
        signal.signal(signal.SIGTERM, before)
    told = [(tmp_path / rank).read_text().split() for rank in ("0", "1")]
    assert [words[:5] for words in told] == [[rank, rank, "2", "2", "127.0.0.1"] for rank in ("0", "1")]
    assert told[0][5] == told[1][5]
    ranks = here(2)
    assert ranks is not None and here(1) is None
    assert spread(["x"], ranks)[1:] == ["-m", "sweeps.dispatch.ranks", "--here", "2", "x"]


def test_each_worker_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _gpus(2, 1) == ("0", "1") and _gpus(2, 2) == ("0,1", "2,3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert _gpus(1, 2) == ("4,5",) and _gpus(1, 1) == ("4", "5", "7")


def planned(isoflop: Callable[..., Answer], root: Path, *overrides: str) -> dict[str, Any]:
    answer = isoflop("plan", *SMOKE, f"root={root}", "format=json", *overrides)
    assert answer.code == 0, answer.err
    (point,) = answer.json["points"]
    return dict(point)


def test_the_plan_has_the_devices_and_what_all_of_them_hold(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    one, three = (planned(isoflop, tmp_path, f"device.per_run={n}", "trainer.way=eager") for n in (1, 3))
    assert (one["devices"], three["devices"]) == (1, 3)
    assert three["run_id"] == one["run_id"], "devices are not part of what is trained"
    assert three["hours"] == one["hours"], "device-hours"
    assert one["memory_gb"] < three["memory_gb"] < 3 * one["memory_gb"], "the model thrice, the batch once"


@pytest.mark.parametrize(("value", "told"), [(4, "choose device.per_run=3"), (5, "choose device.per_run=3")])
def test_a_batch_that_cannot_be_split_is_refused_by_the_plan(
    isoflop: Callable[..., Answer], tmp_path: Path, value: int, told: str
) -> None:
    answer = isoflop("plan", *SMOKE, f"root={tmp_path}", f"device.per_run={value}")
    assert answer.code == 2
    assert f"optim.batch=576 is 6 sequences, which cannot be split over {value} devices evenly" in answer.sentence
    assert told in answer.sentence and f"a batch of {value * 96} tokens or a multiple" in answer.sentence
    assert not list(tmp_path.glob("smoke/plan.json"))


def test_more_devices_than_the_machine_has_are_refused(
    isoflop: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.dispatch import reconcile

    monkeypatch.setattr(reconcile, "gpus_here", lambda: 2.0)
    answer = isoflop("submit", *SMOKE, f"root={tmp_path}", "device=h100", "device.per_run=3")
    assert answer.code == 2 and "device.per_run=3, but this machine has 2 GPUs" in answer.sentence
    assert not list(tmp_path.glob("smoke/*/config.yaml"))


def test_a_batch_of_three_devices_is_measured_as_one_device_would_be(tmp_path: Path) -> None:
    from sweeps.planning.cost import _ran
    from trainer.config import DeviceKind

    folder = make_run(tmp_path, small_corpus(tmp_path), kernels=MANUAL)
    train(folder, tmp_path)
    append_line(folder.path / "attempts.jsonl", {"attempt": 0, "peak_bytes": 10**9})
    alone = _ran(folder, DeviceKind.cpu, own=True)
    lines = (folder.path / "attempts.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"devices": 3}
    (folder.path / "attempts.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    shared = _ran(folder, DeviceKind.cpu, own=True)
    assert alone is not None and shared is not None
    assert alone.flops_per_second is not None and alone.memory_ratio is not None
    assert shared.flops_per_second == pytest.approx(alone.flops_per_second / 3)
    assert shared.memory_ratio is not None and shared.memory_ratio > alone.memory_ratio, (
        "a third of the batch took as much"
    )
    assert replace(shared, flops_per_second=None, memory_ratio=None) == replace(
        alone, flops_per_second=None, memory_ratio=None
    )
