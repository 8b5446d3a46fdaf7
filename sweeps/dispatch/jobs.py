"""Jobs: what was handed to a scheduler, and which of it still lives.

A job is one task or more, each an ordered list of runs. ``jobs/<job>/job.json`` is written before the job is started,
so a crash in between leaves an intent that is looked up or expires, never a job nobody knows. A local job is one task:
it lives while its worker holds the folder's lock; until the worker is up, while its process lives. A task of a SLURM
job lives while SLURM has it in its queue, where the job goes by the sweep's and the folder's name.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sweeps.dispatch.slurm import NOBODY, Scheduler, Seen, View
from sweeps.paths import SweepFolder
from trainer.files import write_json, write_whole
from trainer.lock import holder, process_birth

START_SECONDS = 60.0
"""How long a job may take from its submission to its worker's first heartbeat, or to its place in SLURM's queue."""
LOCAL, SLURM = "local", "slurm"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A submitted job, as ``job.json`` has it."""

    tasks: tuple[tuple[str, ...], ...]
    """Run ids of each task, in the order its workers try them."""
    executor: str = LOCAL
    device: str
    lost_attempts: int
    """A run whose attempts vanished this often in a row without progress is left alone."""
    host: str
    submitted: float
    gpus: tuple[str, ...] = ()
    """local: what CUDA_VISIBLE_DEVICES may be for a worker, by its slot; empty on CPUs."""
    slots: int = 1
    """local: workers of this sweep that may work at once; the others wait."""
    devices: int = 1
    """local: that each run has."""
    together: int = 1
    """Runs that a worker may train as one model; 0 for what their configs say."""
    mps: bool = False
    """Whether its workers share GPUs, and should do so through :mod:`sweeps.dispatch.mps`."""
    pid: int = 0
    """local: of the controller; of the submitting process until that was started."""
    born: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    """slurm: what each task has (:class:`sweeps.dispatch.resources.Resources`)."""
    warning_seconds: int = 0
    """slurm: how long before its time limit a task is warned."""
    throttle: int = 0
    """slurm: tasks at once."""
    job_id: str | None = None
    """slurm: the array's; None while only the intent is known."""
    canary: str | None = None
    """slurm: the job that must succeed before this one starts; its speed then sets this one's time limit."""
    work_minutes: float = 0.0
    """slurm: planned, of the longest task, without the margin"""
    margin: float = 1.0
    """slurm: the factor between that and the time limit."""
    code: str | None = None
    """slurm: the snapshot that the tasks import (:mod:`sweeps.dispatch.snapshot`)."""

    @property
    def runs(self) -> tuple[str, ...]:
        """Of all tasks."""
        return tuple(run for task in self.tasks for run in task)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a job that may still have to do."""

    job: Path
    index: int
    runs: tuple[str, ...]
    lives: bool
    seen: Seen | None = None
    """slurm: how its queue has it; None where it is not listed."""


def new_job_folder(folder: SweepFolder) -> Path:
    """Where a job's record will be: named for the moment, and never twice."""
    return folder.jobs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def read_job(path: Path) -> Job | None:
    """The job of a folder; None where its record is not whole."""
    try:
        raw = json.loads((path / "job.json").read_text())
        return Job(**{**raw, "tasks": tuple(map(tuple, raw["tasks"])), "gpus": tuple(raw["gpus"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_job(path: Path, job: Job) -> None:
    """Write ``job.json``, whole."""
    write_json(path / "job.json", asdict(job), levels=2)


def open_jobs(folder: SweepFolder) -> dict[Path, Job]:
    """The sweep's jobs that nobody has seen the end of."""
    paths = (path.parent for path in sorted(folder.jobs.glob("*/job.json")))
    found = {path: read_job(path) for path in paths if not (path / "ended").exists()}
    return {path: job for path, job in found.items() if job is not None}


def unreadable_jobs(folder: SweepFolder) -> list[Path]:
    """Jobs that have a record which cannot be read, and may live."""
    paths = (path.parent for path in sorted(folder.jobs.glob("*/job.json")) if not (path.parent / "ended").exists())
    return [path for path in paths if read_job(path) is None]


def tasks(jobs: Mapping[Path, Job], view: View = NOBODY) -> list[Task]:
    """Every task of the jobs, and whether it lives."""
    return [task for path, job in jobs.items() for task in _tasks(path, job, view)]


def _tasks(path: Path, job: Job, view: View) -> Iterable[Task]:
    if job.executor != SLURM:
        yield Task(job=path, index=0, runs=job.runs, lives=lives(path, job))
        return
    # A queue looked at before the job was submitted cannot have it; one just asked for may not have it yet.
    early = view.taken < job.submitted + (START_SECONDS if job.job_id is None else 0)
    for index, runs in enumerate(job.tasks):
        seen = view.tasks.get((queue_name(path), index))
        known = seen.lives if seen is not None else early or view.stale is not None
        yield Task(job=path, index=index, runs=runs, lives=known, seen=seen)


def live_jobs(folder: SweepFolder, view: View = NOBODY) -> dict[Path, Job]:
    """The sweep's jobs with a task that works, or may still come up."""
    jobs = open_jobs(folder)
    living = {task.job for task in tasks(jobs, view) if task.lives}
    return {path: job for path, job in jobs.items() if path in living}


def look(jobs: Mapping[Path, Job], scheduler: Scheduler) -> View:
    """SLURM's queue, if there is a job that could be in it."""
    names = [queue_name(path) for path, job in jobs.items() if job.executor == SLURM]
    return scheduler.look(names) if names else NOBODY


def queue_name(path: Path) -> str:
    """What SLURM calls the job of a folder: its own name after that of the sweep."""
    return f"{path.parent.parent.name}.{path.name}"


def lives(path: Path, job: Job) -> bool:
    """Whether a local job's worker works, or may still come up."""
    if holder(path) is not None:
        return True
    if (path / "heartbeat").exists() or time.time() - job.submitted > START_SECONDS:
        return False
    return job.host != socket.gethostname() or process_birth(job.pid) == job.born


def request_stop(path: Path) -> None:
    """Ask a local job's worker to checkpoint what it runs and leave."""
    write_whole(path / "stop", "")


def mark_ended(path: Path) -> None:
    """Note that a job is over, so that no scheduler is asked for it again."""
    write_whole(path / "ended", "")


def log_path(path: Path, index: int | None = None) -> Path | None:
    """What the job's workers printed; of one task, or of the last one that said something."""
    pattern = "*_log.out" if index is None else f"*_{index}_0_log.out"
    return max((path / "submitit").glob(pattern), default=None, key=lambda log: log.stat().st_mtime)


def last_words(path: Path) -> str | None:
    """The last line of the job's log that says something; None where none does."""
    logs = [log for log in (log_path(path), path / "controller.log") if log is not None and log.exists()]
    said = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines()[::-1] if line.strip()]
    return said[0] if said else None
