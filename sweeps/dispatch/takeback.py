"""Take back what was submitted: runs from whoever trains them, tasks from SLURM's queue."""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.dispatch import slurm
from sweeps.dispatch.backlog import Backlog
from sweeps.dispatch.jobs import Task
from sweeps.dispatch.slurm import Seen
from sweeps.paths import SweepFolder
from sweeps.terminal import say
from trainer.files import write_whole


def cancel_runs(folder: SweepFolder, runs: Iterable[str]) -> None:
    """Ask whoever trains these runs, or will, to leave them."""
    for run_id in runs:
        write_whole(folder.run(run_id).cancel_path, "")


def drop_idle(folder: SweepFolder, backlog: Backlog) -> None:
    """Take tasks that have not started and have nothing left to do out of SLURM's queue."""
    idle = [seen.id for task, seen in _pending(backlog) if not _has_work(folder, task)]
    if idle:
        slurm.cancel(idle)


def release_held(folder: SweepFolder, backlog: Backlog) -> int:
    """Let held tasks with something to do start: a controller that crashed holds what it is not sure of."""
    held = [seen.id for task, seen in _pending(backlog) if seen.held and _has_work(folder, task)]
    refused = slurm.release(held) if held else []
    for why in refused:
        say(f"SLURM does not release held tasks: {why}")
    return 0 if refused else len(held)


def _pending(backlog: Backlog) -> list[tuple[Task, Seen]]:
    return [(task, task.seen) for task in backlog.living if task.seen is not None and not task.seen.started]


def _has_work(folder: SweepFolder, task: Task) -> bool:
    runs = map(folder.run, task.runs)
    return any(not run.cancel_path.exists() and not run.ended() for run in runs)
