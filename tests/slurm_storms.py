"""A sweep on the test cluster, and everything that may go wrong with it, drawn from a seed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from slurm_cluster import DAEMONS, NODES, Cluster

from sweeps.paths import SweepFolder
from trainer.lock import STALE_SECONDS
from trainer.runfolder import RunFolder

ISOFLOP = [sys.executable, "-m", "sweeps.cli"]
SWEEP = (
    "sweep=smoke",
    "sweep.budgets=[5e11]",
    "sweep.sizes=3",
    "trainer.checkpoint_seconds=0.5",
    "limits.lost_attempts=1000",
)
"""Three runs of the project's own trainer, some seconds each."""
UNSPECIFIED = ("data=unspecified", "data.sequence=96", "data.vocabulary=256")
QUICK = ("sweep=smoke", "sweep.budgets=[1e10]", "sweep.sizes=4", *UNSPECIFIED)
"""Four runs for a trainer that only answers."""
ON_SLURM = ("cluster=slurm", "cluster.partition=scavenge", "cluster.account=lab", "cluster.pack_hours=0")
"""A task per run, where anyone's job of the other partition takes the nodes away."""
VOLATILE = ("time", "attempt", "tokens_per_second", "mfu")


class Storm:
    """A sweep under faults: ``strike`` one, ``mend`` the cluster, ``finish`` the sweep as a user would."""

    def __init__(self, cluster: Cluster, root: Path, seed: int = 0, sweep: tuple[str, ...] = SWEEP) -> None:
        self.cluster, self.fate = cluster, random.Random(seed)
        self.folder = SweepFolder.of(str(root), "smoke")
        self.overrides = (*sweep, f"root={root}", *ON_SLURM)
        self.said: list[str] = []
        """Every fault and every command's answer, with the time: what a failing test prints."""
        self.struck: Counter[str] = Counter()
        self._began = time.monotonic()
        self._repairs: list[tuple[float, str, Callable[[], None]]] = []

    def isoflop(self, verb: str, *more: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """One of the sweep's verbs, in a terminal of its own."""
        command = [*ISOFLOP, verb, *self.overrides, *more]
        answer = subprocess.run(
            command, env=self.cluster.environ, capture_output=True, text=True, timeout=seconds, check=False
        )
        self.note(f"isoflop {verb} -> {answer.returncode} {answer.stderr.strip()[-300:]}")
        assert "Traceback" not in answer.stderr, answer.stderr
        return answer

    def points(self) -> list[dict[str, Any]]:
        """What ``status`` says of every point."""
        points: list[dict[str, Any]] = json.loads(self.isoflop("status", "format=json").stdout)["points"]
        return points

    def jobs(self) -> dict[str, dict[str, str]]:
        """The sweep's tasks in the queue; none while SLURM cannot be asked."""
        known = {path.name for path in self.folder.jobs.glob("*")}
        with suppress(subprocess.SubprocessError):
            return {k: job for k, job in self.cluster.jobs().items() if job["name"].rpartition(".")[2] in known}
        return {}

    def running(self) -> list[dict[str, str]]:
        """Those that run."""
        return [job for job in self.jobs().values() if job["state"] == "RUNNING"]

    def training(self) -> bool:
        """Whether some run has logged a row and is not done."""
        return any((run.path / "metrics.jsonl").exists() and not run.points() for run in self.folder.runs())

    def strike(self, name: str | None = None) -> None:
        """One fault: the one named, else whichever fate draws."""
        chosen = name or self.fate.choice(list(FAULTS))
        self.note(chosen)
        self.struck[chosen] += 1
        FAULTS[chosen](self)

    def pause(self, seconds: float) -> None:
        """Let time pass, and mend what is due."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for due in [repair for repair in self._repairs if repair[0] <= time.monotonic()]:
                self._repairs.remove(due)
                self.note(f"mended: {due[1]}")
                due[2]()
            time.sleep(0.1)

    def later(self, seconds: float, what: str, repair: Callable[[], None], least: float = 0) -> None:
        """Mend something after a while."""
        self._repairs.append((time.monotonic() + self.fate.uniform(least, seconds), what, repair))

    def finish(self, seconds: float) -> None:
        """Submit until every point is done, everything is mended, and the queue is empty."""
        deadline = time.monotonic() + seconds
        while not self.done() or self._repairs:
            assert time.monotonic() < deadline, self.report("the sweep did not end")
            self.isoflop("submit")
            self.pause(8)
        for name in DAEMONS:
            self.cluster.start_daemon(name)
        while self.jobs():
            assert time.monotonic() < deadline, self.report("jobs are left")
            self.pause(1)

    def done(self) -> bool:
        """Whether every point has its final record."""
        runs = self.folder.runs()
        return bool(runs) and all(run.points() for run in runs)

    def note(self, text: str) -> None:
        """Remember what happened, and when; pytest shows it where a test fails."""
        self.said.append(f"{time.monotonic() - self._began:6.1f} s  {text}")
        print(self.said[-1])

    def report(self, headline: str) -> str:
        """Everything one wants to know about a storm that ended badly."""
        ledgers = [f"{run.run_id}: {run.attempts()}" for run in self.folder.runs()]
        queue = self.cluster.ask("squeue", "--array", "--format=%i %T %N %r")
        return "\n".join([headline, *self.said, *ledgers, queue])


def waiting_sweep(slurm: Cluster, root: Path, *overrides: str) -> tuple[Storm, Path]:
    """A sweep whose runs wait for a file before they answer: as slow as a test wants them, on next to no CPU."""
    root.mkdir(exist_ok=True)
    gate, script = root / "gate", root / "waits.sh"
    answer = f'{sys.executable} -m trainer.examples.law_trainer "$1"'
    script.write_text(f"while [ ! -e {gate} ]; do sleep 0.2; done; exec {answer}\n")
    command = f'trainer.command="sh {script} {{folder}}"'
    return Storm(slurm, root, sweep=(*QUICK, command, *overrides)), gate


def measured(run: RunFolder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every final record on disk and the curve, without what clocks and attempts put there."""
    records = [json.loads(line) for line in (run.path / "points.jsonl").read_text().splitlines()]
    return [steady(record) for record in records], [steady(row) for row in run.metrics()]


def steady(record: dict[str, Any]) -> dict[str, Any]:
    """What an undisturbed run would have written too."""
    return {key: value for key, value in record.items() if key not in VOLATILE}


def interleaved(run: RunFolder) -> list[int]:
    """Attempts that wrote a row after a later attempt had: none where one at a time writes.

    A process that was frozen in the middle of an update writes that one row when it wakes, before it sees that its lock
    is gone: readers pass it over.
    """
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    attempts = [row["attempt"] for row in rows]
    return [before for before, after in itertools.pairwise(attempts) if after < before]


def _kill_job(storm: Storm) -> None:
    _signal_one(storm, signal.SIGKILL)


def _freeze_job(storm: Storm) -> None:
    """A node that hangs and comes back: the heartbeat stops meanwhile."""
    pids = _signal_one(storm, signal.SIGSTOP)
    storm.later(20, "freeze_job", lambda: send(pids, signal.SIGCONT))


def _signal_one(storm: Storm, number: signal.Signals) -> list[int]:
    running = storm.running()
    if not running:
        return []
    job = storm.fate.choice(running)
    pids = job_processes(storm.cluster, job)
    send(pids, number)
    return pids


def job_processes(cluster: Cluster, job: dict[str, str]) -> list[int]:
    """A task's processes without SLURM's own, which a kill -9 of a job does not meet."""

    def is_own(pid: int) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{pid}/comm").read_text().strip() != "slurmstepd"
        return False

    return [pid for pid in cluster.processes(job["node"], job["job"]) if is_own(pid)]


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; those that have just ended are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _on_a_job(*command: str) -> Callable[[Storm], None]:
    """One of SLURM's commands on a running job."""

    def fault(storm: Storm) -> None:
        running = storm.running()
        if running:
            _unless_it_just_ended(storm, *command, storm.fate.choice(running)["job"])

    return fault


def _unless_it_just_ended(storm: Storm, *command: str) -> None:
    with suppress(subprocess.SubprocessError):
        storm.cluster.ask(*command)


def _preempt(storm: Storm) -> None:
    """Somebody with priority takes a node for some seconds."""
    running = storm.running()
    if running:
        node = storm.fate.choice(running)["node"]
        words = ("--partition=main", f"--nodelist={node}", "--exclusive", "--time=1", "--output=/dev/null")
        _unless_it_just_ended(storm, "sbatch", *words, "--wrap", "sleep 5")


def _fail_node(storm: Storm) -> None:
    node = _busy_node(storm)
    storm.cluster.fail_node(node)
    storm.later(25, node, lambda: storm.cluster.start_daemon(node))


def _lose_slurmd(storm: Storm) -> None:
    """The old processes go on; SLURM requeues the job after a while, so two lives of it overlap."""
    node = _busy_node(storm)
    storm.cluster.kill_daemon(node)
    storm.later(40, node, lambda: storm.cluster.start_daemon(node))


def _hang_node(storm: Storm) -> None:
    """A node that stands still until others have taken its runs, and then goes on as if nothing had been."""
    node = _busy_node(storm)
    held = [pid for job in storm.running() if job["node"] == node for pid in job_processes(storm.cluster, job)]
    send(held, signal.SIGSTOP)
    storm.cluster.kill_daemon(node)

    def wake() -> None:
        send(held, signal.SIGCONT)
        storm.cluster.start_daemon(node)

    storm.later(STALE_SECONDS + 15, node, wake, least=STALE_SECONDS + 5)


def _busy_node(storm: Storm) -> str:
    return storm.fate.choice([job["node"] for job in storm.running()] or list(NODES))


def _kill_daemon(name: str, seconds: float) -> Callable[[Storm], None]:
    def fault(storm: Storm) -> None:
        storm.cluster.kill_daemon(name)
        storm.later(seconds, name, lambda: storm.cluster.start_daemon(name))

    return fault


def _kill_submit(storm: Storm) -> None:
    command = [*ISOFLOP, "submit", *storm.overrides]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    terminal = subprocess.Popen(command, env=storm.cluster.environ, **quiet)
    with suppress(subprocess.TimeoutExpired):
        terminal.wait(storm.fate.uniform(0.3, 2.0))
    terminal.kill()
    terminal.wait()


def _two_submits(storm: Storm) -> None:
    command = [*ISOFLOP, "submit", *storm.overrides]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for terminal in [subprocess.Popen(command, env=storm.cluster.environ, **quiet) for _ in range(2)]:
        terminal.wait(120)


def _leave_pickles(storm: Storm) -> None:
    """What submitit leaves when it is killed while it writes a result, and results of a life that was not the last."""
    for job in storm.cluster.jobs() if storm.cluster.pid("slurmctld") else ():
        for place in storm.folder.jobs.glob("*/submitit"):
            (place / f"{job}_0_result.pkl.save_tmp").write_bytes(b"torn")
            (place / f"{job}_0_result.pkl").write_bytes(b"stale")


FAULTS: dict[str, Callable[[Storm], None]] = {
    "kill_job": _kill_job,
    "freeze_job": _freeze_job,
    "requeue": _on_a_job("scontrol", "requeue"),
    "user_signal": _on_a_job("scancel", "--signal=USR2"),
    "terminate": _on_a_job("scancel", "--signal=TERM", "--full"),
    "cancelled_by_others": _on_a_job("scancel"),
    "preempt": _preempt,
    "fail_node": _fail_node,
    "lose_slurmd": _lose_slurmd,
    "hang_node": _hang_node,
    "kill_slurmctld": _kill_daemon("slurmctld", 5),
    "kill_slurmdbd": _kill_daemon("slurmdbd", 20),
    "kill_mariadbd": _kill_daemon("mariadbd", 20),
    "kill_submit": _kill_submit,
    "two_submits": _two_submits,
    "leave_pickles": _leave_pickles,
}
