"""Jobs: what was handed to the scheduler, and which of it still lives.

A job is one worker with an ordered list of runs. ``jobs/<job>/job.json`` is written before the job is started, so a
crash in between leaves an intent that expires, never a job nobody knows. A job lives while its worker holds the
folder's lock; until the worker is up, while its process lives.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from sweeps.paths import SweepFolder
from trainer.files import write_whole
from trainer.lock import holder, process_birth

START_SECONDS = 60.0
"""How long a job may take from its submission to its worker's first heartbeat."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A submitted job, as ``job.json`` has it."""

    runs: tuple[str, ...]
    """Run ids, in the order the worker tries them."""
    device: str
    gpus: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES may be for a worker, by its slot; empty on CPUs."""
    lost_attempts: int
    """A run whose attempts vanished this often in a row without progress is left alone."""
    slots: int
    """Workers of this sweep that may work at once; the others wait."""
    host: str
    submitted: float
    pid: int
    """Of the local controller; of the submitting process until that was started."""
    born: str | None


def read_job(path: Path) -> Job | None:
    """The job of a folder; None where its record is not whole."""
    try:
        raw = json.loads((path / "job.json").read_text())
        return Job(**{**raw, "runs": tuple(raw["runs"]), "gpus": tuple(raw["gpus"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def live_jobs(folder: SweepFolder) -> dict[Path, Job]:
    """The sweep's jobs whose worker works, or may still come up."""
    found = {path.parent: read_job(path.parent) for path in sorted(folder.jobs.glob("*/job.json"))}
    return {path: job for path, job in found.items() if job is not None and lives(path, job)}


def lives(path: Path, job: Job) -> bool:
    """Whether the job's worker works, or may still come up."""
    if holder(path) is not None:
        return True
    if (path / "heartbeat").exists() or time.time() - job.submitted > START_SECONDS:
        return False
    return job.host != socket.gethostname() or process_birth(job.pid) == job.born


def request_stop(path: Path) -> None:
    """Ask a job's worker to checkpoint what it runs and leave."""
    write_whole(path / "stop", "")


def log_path(path: Path) -> Path | None:
    """What the job's worker printed."""
    return max((path / "submitit").glob("*_log.out"), default=None, key=lambda log: log.stat().st_mtime)


def last_words(path: Path) -> str:
    """The last line of the job's log that says something."""
    logs = [log for log in (log_path(path), path / "controller.log") if log is not None and log.exists()]
    said = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines()[::-1] if line.strip()]
    return said[0] if said else "it printed nothing"
