"""What schedulers hold of a sweep: which runs wait in a task that lives, and how the tasks of others ended.

The run folders stay the truth of what was trained; this only explains absence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeps.dispatch.jobs import SLURM, Job, Task, log_path, look, mark_ended, open_jobs, queue_name, tasks, write_job
from sweeps.dispatch.slurm import Scheduler, Seen
from sweeps.paths import SweepFolder
from trainer.lock import Lock
from trainer.runfolder import OOM, TIMEOUT

VERDICTS = {"OUT_OF_MEMORY": OOM, "TIMEOUT": TIMEOUT}
"""What SLURM says of a task whose run vanished, where that is a failure of the run."""
TAKEN_BACK = ("CANCELLED",)
OUT_OF_MEMORY = re.compile(rb"oom.kill event|exceeded (job )?memory limit", re.IGNORECASE)
TAIL_BYTES = 4000


@dataclass(frozen=True, kw_only=True)
class End:
    """How a task ended, as SLURM has it."""

    task: str
    """As attempts name it: ``<job>/<number>``."""
    seen: Seen

    @property
    def why(self) -> str:
        """For the ledger of an attempt that vanished with the task."""
        where = f" on {self.seen.node}" if self.seen.node else ""
        return f"{VERDICTS.get(self.seen.state, 'lost')}: SLURM ended {self.seen.id} as {self.seen.state}{where}"

    def took_down(self, attempts: Sequence[Mapping[str, Any]]) -> int | None:
        """The number of a run's last attempt, if that vanished with this task without a word."""
        if attempts and "why" not in attempts[-1] and attempts[-1].get("job") == self.task:
            return int(attempts[-1]["attempt"])
        return None

    @property
    def taken_back(self) -> str | None:
        """Why somebody must ask for the task's runs again; None where it just ended."""
        if self.seen.state not in TAKEN_BACK:
            return None
        if "depend" in self.seen.reason.lower():
            return "its job was dropped because the canary failed"
        return f"SLURM's {self.seen.id} was cancelled"


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """The jobs of a sweep, sorted."""

    jobs: Mapping[Path, Job] = field(default_factory=dict)
    living: Sequence[Task] = ()
    waiting: Mapping[str, str | None] = field(default_factory=dict)
    """Run id -> why its task does not start, None where it runs or may at any moment."""
    ended: Mapping[str, End] = field(default_factory=dict)
    """Run id -> the end of the last task that had it."""
    stale: str | None = None
    """Why SLURM could not be asked."""


def read_backlog(folder: SweepFolder, scheduler: Scheduler) -> Backlog:
    """Ask the disk, and SLURM where a job of the sweep could be there."""
    jobs = open_jobs(folder)
    view = look(jobs, scheduler)
    known = tasks(jobs, view)
    living = [task for task in known if task.lives]
    dead = [task for task in known if not task.lives and jobs[task.job].executor == SLURM]
    return Backlog(
        jobs=jobs,
        living=living,
        waiting={run: _why(task.seen) for task in living for run in task.runs},
        ended=_ends(folder, jobs, dead, scheduler),
        stale=view.stale,
    )


def settle(folder: SweepFolder, backlog: Backlog) -> None:
    """Write down what SLURM will not remember: ids, causes, and which jobs are over.

    The caller is the only one who submits.
    """
    for run_id, end in backlog.ended.items():
        run = folder.run(run_id)
        if end.took_down(run.attempts()) is None:
            continue
        with Lock(run.path) as lock:
            attempt = end.took_down(run.attempts())
            if lock is not None and attempt is not None:
                run.end_attempt(attempt, end.why)
    if backlog.stale is not None:
        return
    living = {task.job for task in backlog.living}
    found = {task.job: task.seen for task in backlog.living if task.seen is not None}
    for path, job in backlog.jobs.items():
        if job.executor != SLURM:
            continue
        if path not in living:
            mark_ended(path)
        elif job.job_id is None and path in found:
            write_job(path, replace(job, job_id=found[path].id.partition("_")[0]))


def _why(seen: Seen | None) -> str | None:
    if seen is None or seen.started:
        return None
    if seen.held:
        return f"held ({seen.reason}): `scontrol release {seen.id}` or submit again"
    return f"waits: {seen.reason}" if seen.reason not in ("None", "") else None


def _ends(folder: SweepFolder, jobs: Mapping[Path, Job], dead: Sequence[Task], scheduler: Scheduler) -> dict[str, End]:
    """How dead tasks with unfinished runs ended: as the queue remembers it, else accounting, else their logs."""
    unfinished = {(task.job, task.index): [run for run in task.runs if not folder.run(run).ended()] for task in dead}
    forgotten = {
        queue_name(task.job): number
        for task in dead
        if task.seen is None and unfinished[task.job, task.index] and (number := jobs[task.job].job_id) is not None
    }
    accounts = scheduler.ends(forgotten) if forgotten else {}
    found = {}
    for task in dead:
        runs = unfinished[task.job, task.index]
        seen = task.seen or accounts.get((queue_name(task.job), task.index))
        if runs and (seen is None or seen.state == "FAILED") and _log_tells_memory(task):
            number = seen.id if seen is not None else f"{jobs[task.job].job_id}_{task.index}"
            seen = Seen(number, "OUT_OF_MEMORY", node=seen.node if seen is not None else "")
        if seen is not None:
            found.update(dict.fromkeys(runs, End(task=f"{task.job.name}/{task.index}", seen=seen)))
    return found


def _log_tells_memory(task: Task) -> bool:
    """Whether SLURM's last words in a task's log are that it took too much memory: not every site says so elsewhere."""
    log = log_path(task.job, task.index)
    if log is None:
        return False
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return OUT_OF_MEMORY.search(file.read()) is not None
