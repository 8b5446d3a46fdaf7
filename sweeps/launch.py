"""Start workers on this machine, through submitit's local executor."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import submitit

from sweeps.config import ClusterConfig
from sweeps.jobs import Job
from sweeps.paths import SweepFolder
from sweeps.worker import work
from trainer.config import DeviceKind
from trainer.files import write_json
from trainer.lock import process_birth


def start_workers(
    folder: SweepFolder, runs: Sequence[str], count: int, slots: int, *, threads: int, device: DeviceKind, hours: float
) -> list[Path]:
    """Start ``count`` workers, each over the same ordered list of runs; returns their folders.

    Parameters
    ----------
    slots
        How many of the sweep's workers may work at once; the others wait.
    hours
        A worker is stopped after this long.
    """
    started = []
    for _ in range(count):
        path = folder.jobs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        job = Job(
            runs=tuple(runs),
            threads=threads,
            device=device.value,
            slots=slots,
            host=socket.gethostname(),
            submitted=time.time(),
            pid=os.getpid(),
            born=process_birth(os.getpid()),
        )
        write_json(path / "job.json", asdict(job))
        pid = _start_local(path, threads, hours)
        write_json(path / "job.json", asdict(job) | {"pid": pid, "born": process_birth(pid)})
        started.append(path)
    return started


def worker_slots(cluster: ClusterConfig, threads: int, device: DeviceKind) -> int:
    """How many workers work at once: the stated number, else what the cores give (one for a GPU)."""
    if cluster.workers:
        return cluster.workers
    return 1 if device is DeviceKind.cuda else max(1, len(os.sched_getaffinity(0)) // threads)


def _start_local(path: Path, threads: int, hours: float) -> int:
    # -P: a trainer.py in the submitting folder must not shadow the package.
    executor = submitit.LocalExecutor(path / "submitit", python=f"{shlex.quote(sys.executable)} -P")
    executor.update_parameters(
        timeout_min=hours * 60,
        stderr_to_stdout=True,
        setup=[
            f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} PYTHONHASHSEED=0",
            "trap '' INT HUP",  # workers outlive the terminal, and Ctrl-C in it
            "exec </dev/null >/dev/null 2>&1",  # nor do they keep its pipes open
        ],
    )
    return int(executor.submit(work, str(path)).job_id)
