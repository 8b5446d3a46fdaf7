"""The canary as a probe: once it has run, the time limits of the jobs that wait for it follow from its speed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from sweeps.dispatch import slurm
from sweeps.dispatch.jobs import Job, open_jobs, write_job
from sweeps.dispatch.resources import limit
from sweeps.paths import SweepFolder
from trainer.runfolder import DIVERGED, DONE


def set_limits(path: Path, canary: Job) -> None:
    """Lower the limits of the jobs that wait for the job of ``path``, which has just ended well.

    They may take as many times what was planned of them as the canary did, and the margin. A SLURM that does not
    answer leaves them what they have.
    """
    folder = SweepFolder(path.parents[2], path.parents[1].name)
    waiting = {place: job for place, job in open_jobs(folder).items() if job.canary == path.name and job.job_id}
    took = _minutes(folder, canary)
    if not waiting or took is None or not canary.work_minutes:
        return
    for place, job in waiting.items():
        minutes = limit(job.work_minutes * took / canary.work_minutes, job.margin, job.resources["minutes"] / 60)
        if minutes < job.resources["minutes"] and job.job_id is not None:
            try:
                slurm.shorten(job.job_id, minutes)
            except (slurm.Refused, slurm.Silent) as error:
                sys.stderr.write(f"isoflop: the time limit of {job.job_id} stays as it is: {error}\n")
                continue
            write_job(place, replace(job, resources={**job.resources, "minutes": minutes}))


def may_follow(path: Path, canary: Job) -> bool:
    """Whether the jobs that wait for the job of ``path`` may start: not if it was taken back."""
    folder = SweepFolder(path.parents[2], path.parents[1].name)
    waiting = any(job.canary == path.name for job in open_jobs(folder).values())
    return not waiting or _all(folder, canary, {DONE, DIVERGED})


def _all(folder: SweepFolder, canary: Job, verdicts: set[str]) -> bool:
    points = [folder.run(run).points() for run in canary.runs]
    return all(found and {record["verdict"] for record in found.values()} <= verdicts for found in points)


def _minutes(folder: SweepFolder, canary: Job) -> float | None:
    """What the canary's run took, over all its attempts; None where it is not done, or one of them vanished."""
    if not _all(folder, canary, {DONE}):
        return None
    attempts = [attempt for run in canary.runs for attempt in folder.run(run).attempts()]
    if not attempts or not all(isinstance(attempt.get("end"), int | float) for attempt in attempts):
        return None
    return float(sum(attempt["end"] - attempt["start"] for attempt in attempts)) / 60
