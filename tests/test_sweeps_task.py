"""The life of a task: what it does on signals, what it waits for, what it leaves in the ledger."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_slurm import Fake
from sweep_runs import Command, gated, smoke, until

from sweeps.dispatch import life
from sweeps.dispatch.external import ALONE
from sweeps.dispatch.jobs import open_jobs
from sweeps.dispatch.ranks import Ranks, distributed, spread
from sweeps.paths import SweepFolder
from trainer.lock import Lock
from trainer.runfolder import RunFolder, slurm_facts

ONE = ["cluster=slurm", "sweep.budgets=[1e10]", "sweep.sizes=2", "cluster.pack_hours=1"]
"""Two runs in one task."""

Submit = Callable[..., Path]


@pytest.fixture
def submitted(
    isoflop: Command, folder: SweepFolder, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Submit:
    """Submit to a SLURM that starts nothing, and put this process where a task's worker would be."""
    fake = Fake(tmp_path_factory.mktemp("slurm") / "bin", monkeypatch)

    def submit(*overrides: str) -> Path:
        said = isoflop("submit", *smoke(folder, *ONE, "cluster.check_root=false", *overrides))
        assert said.code == 0, said.err
        (path,) = open_jobs(folder)
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "100")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        monkeypatch.setenv("SLURMD_NODENAME", "n7")
        fake.forget_calls()
        return path

    submit.fake = fake  # type: ignore[attr-defined]
    return submit


def later(seconds: float, action: Callable[[], object]) -> None:
    threading.Timer(seconds, action).start()


def whys(folder: SweepFolder) -> list[str]:
    return [attempt["why"] for run in folder.runs() for attempt in run.attempts()]


def test_a_task_does_its_runs_and_says_where(folder: SweepFolder, submitted: Submit) -> None:
    path = submitted()
    assert life.live(path, []) == 0
    assert whys(folder) == ["done", "done"]
    (attempt,) = folder.runs()[0].attempts()
    assert (attempt["slurm"], attempt["node"], attempt["life"]) == ("100_0", "n7", 0)
    assert attempt["job"] == f"{path.name}/0"
    assert "changed" not in attempt


def test_what_submitit_may_leave_is_neither_trusted_nor_in_the_way(folder: SweepFolder, submitted: Submit) -> None:
    path = submitted()
    for name in ("100_0_0_result.pkl", "100_0_0_result.pkl.save_tmp", "100_submitted.pkl", "100_0_submitted.pkl"):
        (path / "submitit" / name).write_bytes(b"stale")
    assert life.live(path, []) == 0
    assert whys(folder) == ["done", "done"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_canarys_speed_sets_the_limits_of_those_that_wait(
    isoflop: Command,
    folder: SweepFolder,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    fake = Fake(tmp_path_factory.mktemp("slurm") / "bin", monkeypatch)
    slow = ["device.flops_per_second=2e6", "cluster.canary=true", "cluster.max_hours=20", "cluster.check_root=false"]
    broken = ["trainer.command=false"] if fails else []
    said = isoflop("submit", *smoke(folder, *ONE, *slow, *broken))
    assert said.code == 0, said.err
    canary, rest = sorted(open_jobs(folder).items(), key=lambda item: str(item[1].job_id))
    assert (canary[1].canary, rest[1].canary) == (None, canary[0].name)
    assert canary[1].resources["minutes"] == 320, "2.8 planned hours and half as much again"
    assert rest[1].resources["minutes"] == 1200, "four times that is more than the site has"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "100")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert life.live(canary[0], []) == fails
    told = [] if fails else ["update jobid=101 timelimit=10"]
    assert fake.calls("scontrol")[1:] == told
    assert open_jobs(folder)[rest[0]].resources["minutes"] == (1200 if fails else 10)


def test_a_failed_run_fails_its_task_but_not_the_next_run(folder: SweepFolder, submitted: Submit) -> None:
    script = folder.root / "picky.sh"
    script.write_text(
        f'case "$1" in *n7.0k*) exit 3;; esac; exec {sys.executable} -m trainer.examples.law_trainer "$1"\n'
    )
    path = submitted(f'trainer.command="sh {script} {{folder}}"')
    assert life.live(path, []) == 1
    verdicts = {run.points()[run.run_id]["verdict"][:6] for run in folder.runs()}
    assert verdicts == {"done", "failed"}


def test_a_warning_requeues_the_task_once_nobody_trains(folder: SweepFolder, submitted: Submit) -> None:
    trainer, _ = gated(folder)
    path, signals = submitted(trainer), list[int]()
    later(1, lambda: signals.append(signal.SIGUSR2))
    later(5, lambda: signals.append(signal.SIGTERM))
    assert life.live(path, signals) == 0
    assert submitted.fake.calls("scontrol") == ["requeue 100_0"]  # type: ignore[attr-defined]
    assert whys(folder) == ["stopped: SIGUSR2: preempted, or asked to make room"]
    assert not any(run.points() for run in folder.runs())


def test_near_the_time_limit_the_ledger_says_so(folder: SweepFolder, submitted: Submit) -> None:
    trainer, _ = gated(folder)
    path, signals = submitted(trainer, "cluster.max_hours=0.02"), list[int]()
    later(1, lambda: signals.append(signal.SIGUSR2))
    later(4, lambda: signals.append(signal.SIGTERM))
    life.live(path, signals)
    assert whys(folder) == ["stopped: the time limit is near"]


def test_a_warning_with_nothing_left_ends_the_task(folder: SweepFolder, submitted: Submit) -> None:
    path = submitted()
    assert life.live(path, []) == 0
    assert life.live(path, [signal.SIGUSR2]) == 0
    assert not submitted.fake.calls("scontrol")  # type: ignore[attr-defined]


def test_requeue_is_asked_for_until_slurm_answers(
    folder: SweepFolder, submitted: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "RETRY_SECONDS", 0.2)
    path, signals = submitted(), [signal.SIGUSR2]
    submitted.fake.change(fail={"scontrol": ["Unable to contact slurm controller"] * 2})  # type: ignore[attr-defined]
    threading.Thread(
        target=lambda: (
            until(lambda: len(submitted.fake.calls("scontrol")) >= 3),  # type: ignore[attr-defined]
            signals.append(signal.SIGTERM),
        )
    ).start()
    assert life.live(path, signals) == 0


def test_after_sigterm_the_task_waits_for_the_kill_and_else_goes_on(
    folder: SweepFolder, submitted: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "KILL_SECONDS", 1.0)
    trainer, gate = gated(folder)
    path, signals = submitted(trainer), list[int]()
    later(1, lambda: signals.append(signal.SIGTERM))
    later(2, gate.touch)
    assert life.live(path, signals) == 0
    assert sorted(whys(folder)) == ["done", "done", "stopped: SIGTERM: preempted, requeued, cancelled or told to"]


def test_a_trainer_that_hears_the_signal_first_has_not_failed(folder: SweepFolder, submitted: Submit) -> None:
    path, signals = submitted("trainer.command='sh -c \"sleep 0.5; exit 143\"'"), list[int]()
    later(1.5, lambda: signals.append(signal.SIGUSR2))
    later(4, lambda: signals.append(signal.SIGTERM))
    life.live(path, signals)
    assert whys(folder) == ["stopped: SIGUSR2: preempted, or asked to make room"]


def test_a_run_that_an_old_life_still_holds_is_waited_for(folder: SweepFolder, submitted: Submit) -> None:
    path = submitted()
    other = Lock(folder.runs()[0].path, job="a process on a node that came back")
    assert other.acquire()
    later(4, other.release)
    began = time.monotonic()
    assert life.live(path, []) == 0
    assert time.monotonic() - began > 3.5
    assert whys(folder) == ["done", "done"]


def test_a_changed_environment_is_told(
    folder: SweepFolder, submitted: Submit, capfd: pytest.CaptureFixture[str]
) -> None:
    path = submitted()
    (record,) = folder.path.glob("code/*/versions.json")
    then = json.loads(record.read_text())
    then["versions"]["numpy"] = "0.9"
    record.write_text(json.dumps(then))
    assert life.live(path, []) == 0
    (attempt,) = folder.runs()[0].attempts()
    assert [change.split(" -> ")[0] for change in attempt["changed"]] == ["numpy 0.9"]
    assert "the environment is not that of the submission: numpy 0.9 -> " in capfd.readouterr().err


def test_the_entry_point_catches_signals_before_it_imports(folder: SweepFolder, submitted: Submit) -> None:
    trainer, _ = gated(folder)
    path = submitted(trainer)
    worker = subprocess.Popen([sys.executable, "-m", "sweeps.task", str(path)], stderr=subprocess.PIPE)
    time.sleep(0.15)
    until(lambda: _catches(worker.pid, signal.SIGUSR2))
    worker.send_signal(signal.SIGUSR2)
    until(lambda: submitted.fake.calls("scontrol"))  # type: ignore[attr-defined]
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 0


def _catches(pid: int, number: signal.Signals) -> bool:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_a_program_beside_others_sees_itself_alone(
    folder: SweepFolder, submitted: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = submitted("trainer.command='sh -c \"echo tasks=$SLURM_NTASKS; exit 1\"'")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert life.live(path, []) == 1
    assert {(run.path / "trainer.log").read_text() for run in folder.runs()} == {f"tasks={ALONE['SLURM_NTASKS']}\n"}


def test_a_run_on_many_devices_gets_its_ranks_and_counts_them_all(
    isoflop: Command, folder: SweepFolder, submitted: Submit
) -> None:
    wide = ["device.memory_gb=0.01", "cluster.devices_per_node=8", "sweep.sizes=1"]
    path = submitted(*wide, "trainer.command='sh -c \"sleep 1; exit 1\"'")
    assert life.live(path, []) == 1
    (run,) = folder.runs()
    (asked,) = submitted.fake.calls("srun")  # type: ignore[attr-defined]
    devices = json.loads(folder.plan_path.read_text())["points"][0]["devices"]
    assert devices > 1
    assert f"--ntasks={devices}" in asked and asked.endswith(
        f"-m sweeps.dispatch.ranks {devices} sh -c sleep 1; exit 1"
    )
    assert run.attempts()[0]["devices"] == devices


def test_ranks() -> None:
    command = spread(["train", "x"], Ranks(nodes=2, devices=8, cpus=12))
    assert command[0] == "srun" and command[-3:] == ["8", "train", "x"]
    assert {"--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=12", "--overlap"} <= set(command)
    srun = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    srun |= {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "2"}
    found = distributed(srun, "8")
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("9", "1", "16", "8")
    assert found["MASTER_ADDR"] == "10.0.0.7"
    assert 20_000 <= int(found["MASTER_PORT"]) < 30_000
    assert found["MASTER_PORT"] != distributed(srun | {"SLURM_STEP_ID": "3"}, "8")["MASTER_PORT"]


def test_outside_of_slurm_the_ledger_says_nothing_of_it(tmp_path: Path) -> None:
    assert slurm_facts({}) == {}
    assert slurm_facts({"SLURM_JOB_ID": "7"}) == {"slurm": "7", "node": ""}
    run = RunFolder(tmp_path, {"life": 3})
    run.start_attempt("job", 0)
    assert run.attempts()[0]["life"] == 3
