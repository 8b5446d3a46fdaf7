"""One fault to each run of a sweep: what it ends as, and what the ledger says of it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from slurm_cluster import NODES, Cluster, until
from slurm_storms import QUICK, Storm, interleaved, job_processes, send, waiting_sweep

from trainer.runfolder import RunFolder

pytestmark = pytest.mark.slurm


def runs_by_job(storm: Storm) -> dict[str, RunFolder]:
    """SLURM's id of each running task -> the run that it trains."""
    found = {}
    for run in storm.folder.runs():
        for attempt in run.attempts():
            found[attempt["slurm"]] = run
    return found


def test_a_fault_for_everyone(slurm: Cluster, tmp_path: Path) -> None:
    storm, gate = waiting_sweep(slurm, tmp_path, "sweep.seeds=[0,1]")
    assert storm.isoflop("submit").returncode == 0
    until(lambda: len(runs_by_job(storm)) == 8, 300)
    minute = (f"cluster.max_hours={1 / 60}", "cluster.sbatch.nodelist=n4")
    short, short_gate = waiting_sweep(slurm, tmp_path / "short", "sweep.sizes=1", *minute)
    assert short.isoflop("submit").returncode == 0
    jobs, runs = slurm.jobs(), runs_by_job(storm)
    by_node = {node: [task for task in runs if jobs[task]["node"] == node] for node in NODES}
    assert {len(tasks) for tasks in by_node.values()} == {2}, "two tasks a node"
    struck: dict[str, str] = {}

    slurm.kill_daemon("slurmdbd")
    slurm.fail_node("n1")
    struck |= dict.fromkeys(by_node["n1"], "node failed")
    frozen = [pid for task in by_node["n2"] for pid in job_processes(slurm, jobs[task])]
    send(frozen, signal.SIGSTOP)
    slurm.kill_daemon("n2")
    struck |= dict.fromkeys(by_node["n2"], "node hung")
    for task, fault in zip(by_node["n3"], ("requeued", "signalled"), strict=True):
        words = ["scontrol", "requeue"] if fault == "requeued" else ["scancel", "--signal=USR2"]
        slurm.ask(*words, jobs[task]["job"])
        struck[task] = fault
    terminated, killed = by_node["n4"]
    slurm.ask("scancel", "--signal=TERM", jobs[terminated]["job"])
    struck[terminated] = "told to end"
    send(job_processes(slurm, jobs[killed]), signal.SIGKILL)
    struck[killed] = "killed"

    def taken_up() -> bool:
        """The killed one needs a user's submit; the others come back by themselves."""
        storm.isoflop("submit")
        storm.pause(3)
        return all(len(runs[task].attempts()) >= 2 for task in struck)

    until(taken_up, 240)
    send(frozen, signal.SIGCONT)  # the old lives wake up while the new ones train
    storm.pause(5)
    gate.touch()
    storm.finish(300)
    for task, fault in struck.items():
        run, ledger = runs[task], [attempt["why"] for attempt in runs[task].attempts()]
        storm.note(f"{fault}: {ledger}")
        assert len((run.path / "points.jsonl").read_text().splitlines()) == 1, storm.report(f"{fault}: {run.run_id}")
        assert not interleaved(run), storm.report(f"{fault}: {run.run_id}")
        assert ledger[-1] == "done", storm.report(fault)
    said = {fault: runs[task].attempts()[0]["why"] for task, fault in struck.items()}
    assert said["node failed"].startswith("lost"), said
    assert said["node hung"].startswith("lost"), said
    assert "SIGTERM" in said["requeued"] or said["requeued"].startswith("lost"), said
    assert "SIGUSR2" in said["signalled"], said
    assert "SIGTERM" in said["told to end"], said
    assert said["killed"].startswith("lost"), said
    (limited,) = short.folder.runs()
    until(lambda: len(limited.attempts()) >= 2, 300)
    short_gate.touch()
    short.finish(300)
    *earlier, last = [attempt["why"] for attempt in limited.attempts()]
    assert (set(earlier), last) == ({"stopped: the time limit is near"}, "done")


def test_a_crash_looks_like_one(slurm: Cluster, tmp_path: Path) -> None:
    storm, _ = waiting_sweep(slurm, tmp_path, "sweep.sizes=1")
    broken = """trainer.command='sh -c "echo no such GPU; exit 3"'"""
    assert storm.isoflop("submit", broken).returncode == 0
    until(lambda: not slurm.jobs(), 300)
    until(lambda: "FAILED" in slurm.ask("sacct", "-X", "-n", "-P", "--format=State"), 300)
    said = storm.isoflop("status", broken)
    assert said.returncode == 1
    (point,) = storm.points()
    assert point["state"] == "failed"
    assert point["cause"] == "trainer.command left no final record (exit code 3), and said last: no such GPU"
    storm.isoflop("submit", broken)
    assert not slurm.jobs(), "a failure is tried again on request only"


def test_without_a_controller_nothing_is_half_submitted(slurm: Cluster, tmp_path: Path) -> None:
    storm, gate = waiting_sweep(slurm, tmp_path, "sweep.sizes=2")
    gate.touch()
    slurm.stop_daemon("slurmctld")
    said = storm.isoflop("submit")
    assert said.returncode == 1
    assert len([line for line in said.stderr.splitlines() if line.startswith("isoflop: ")]) == 1
    slurm.start_daemon("slurmctld")
    storm.finish(300)
    assert all(len(run.attempts()) == 1 for run in storm.folder.runs())


def test_without_accounting_everything_works(slurm: Cluster, tmp_path: Path) -> None:
    storm, gate = waiting_sweep(slurm, tmp_path, "sweep.sizes=2")
    slurm.kill_daemon("slurmdbd")
    assert storm.isoflop("submit").returncode == 0
    until(lambda: {point["state"] for point in storm.points()} == {"running"}, 300)
    gate.touch()
    until(storm.done, 300)
    until(lambda: {point["state"] for point in storm.points()} == {"done"}, 300)


def test_out_of_memory_is_told_and_tried_again_on_request(slurm: Cluster, tmp_path: Path) -> None:
    greedy = tmp_path / "greedy.sh"
    eats = 'import time; eaten = b"x" * (3 << 29); time.sleep(60)'
    greedy.write_text(
        f"[ -e {tmp_path}/room ] || exec {sys.executable} -c '{eats}'\n"
        f'exec {sys.executable} -m trainer.examples.law_trainer "$1"\n'
    )
    command = f'trainer.command="sh {greedy} {{folder}}"'
    storm = Storm(slurm, tmp_path, sweep=(*QUICK, "sweep.sizes=1", command, "cluster.memory_gb=1"))
    assert storm.isoflop("submit").returncode == 0
    until(lambda: not storm.jobs(), 300)  # asked of squeue: a status takes a second of processor time
    until(lambda: storm.points()[0]["state"] == "failed", 300)
    assert "memory" in storm.points()[0]["cause"].lower()
    (tmp_path / "room").touch()
    storm.isoflop("submit", "retry=timeout")
    assert not storm.jobs()
    storm.isoflop("submit", "retry=oom")
    until(storm.done, 300)
