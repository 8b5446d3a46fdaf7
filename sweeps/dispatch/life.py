"""One life of a task of a SLURM job, as one of its workers.

SIGUSR2 says that the end is near (the time limit, or a preemption that warns): every worker checkpoints and lets go of
its run, and the first puts the task back into the queue. SIGTERM says that SLURM is about to kill: checkpoint at once,
and go on only if nobody comes; leaving before the kill would end the task where SLURM means to requeue it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sweeps.dispatch import slurm
from sweeps.dispatch.canary import may_follow, set_limits
from sweeps.dispatch.jobs import read_job
from sweeps.dispatch.mps import shared_gpus
from sweeps.dispatch.ranks import Ranks
from sweeps.dispatch.snapshot import changes
from sweeps.dispatch.worker import Worker
from trainer.errors import MachineFault

REQUEUE_SECONDS = 60.0
"""How long the first worker waits for the others' checkpoints."""
KILL_SECONDS = 60.0
"""How long SLURM may take from SIGTERM to the kill; whoever still lives then goes on."""
RETRY_SECONDS = 15.0
"""Between attempts to reach a SLURM that does not answer."""
SIGNAL_GRAIN = 60.0
"""How early SLURM may warn of the time limit."""


def live(path: Path, signals: list[int]) -> int:
    """Work through the task's runs; returns the exit code.

    Parameters
    ----------
    signals
        Those that have arrived; more may come while we work.
    """
    job = read_job(path)
    if job is None:
        sys.stderr.write(f"isoflop: {path / 'job.json'} is not whole; submit the sweep again\n")
        return 1
    began = time.monotonic()
    index, rank = int(os.environ["SLURM_ARRAY_TASK_ID"]), int(os.environ.get("SLURM_PROCID", "0"))
    facts: dict[str, Any] = {"life": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
    code = path.parent.parent / "code" / (job.code or "")
    differences = changes(code)
    if differences:
        facts["changed"] = differences
        sys.stderr.write(f"isoflop: the environment is not that of the submission: {', '.join(differences)}\n")
    nodes, devices = job.resources["nodes"], job.resources["devices"]
    ranks = Ranks(nodes, devices, job.resources["cpus"] // devices)
    worker = Worker(
        path.parent.parent,
        job.tasks[index],
        f"{path.name}/{index}",
        job.lost_attempts,
        facts,
        ranks if ranks.count > 1 else None,
        job.together,
    )
    warned_of_limit = began + 60 * job.resources["minutes"] - job.warning_seconds - SIGNAL_GRAIN

    def should_stop() -> str | None:
        if not signals:
            return None
        if signal.SIGUSR2 in signals:
            near = time.monotonic() > warned_of_limit
            return "the time limit is near" if near else "SIGUSR2: preempted, or asked to make room"
        return "SIGTERM: preempted, requeued, cancelled or told to"

    while True:
        try:
            with shared_gpus(job.mps):
                failed = worker.go(should_stop, wait_for_others=True)
        except MachineFault as fault:
            sys.stderr.write(f"isoflop: {fault}\n")
            return 1
        if not signals:
            if not failed and rank == 0:
                set_limits(path, job)
            return 1 if failed or not may_follow(path, job) else 0
        if signal.SIGUSR2 in signals:
            if rank == 0 and worker.unfinished():
                _requeue(worker, signals)
            return 1 if failed else 0
        signals.clear()
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline and not signals:
            time.sleep(0.5)


def _requeue(worker: Worker, signals: list[int]) -> None:
    """Put this task back into the queue, once nobody trains, and wait to be ended for it."""
    deadline = time.monotonic() + REQUEUE_SECONDS
    while worker.held() and time.monotonic() < deadline:
        time.sleep(0.2)
    task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    while signal.SIGTERM not in signals:  # it comes with the requeue, or with the time limit
        try:
            slurm.requeue(task)
        except (slurm.Refused, slurm.Silent) as error:
            sys.stderr.write(f"isoflop: {task} cannot be requeued yet: {error}\n")
        deadline = time.monotonic() + RETRY_SECONDS
        while signal.SIGTERM not in signals and time.monotonic() < deadline:
            time.sleep(0.1)
