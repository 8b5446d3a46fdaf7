"""Start workers on this machine, through submitit's local executor."""

from __future__ import annotations

import math
import os
import shlex
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import submitit

from sweeps.config import Config
from sweeps.dispatch.jobs import Job, new_job_folder, write_job
from sweeps.dispatch.worker import work
from sweeps.paths import SweepFolder
from trainer.config import DeviceKind
from trainer.files import disk_faults
from trainer.lock import process_birth


def start_workers(config: Config, folder: SweepFolder, runs: Sequence[str], count: int) -> list[Path]:
    """Start ``count`` workers, each over the same ordered list of runs; returns their folders."""
    started = []
    slots, device = worker_slots(config), config.device.kind
    gpus = _gpus(slots, config.device.per_run) if device is DeviceKind.cuda else ()
    for _ in range(count):
        path = new_job_folder(folder)
        job = Job(
            tasks=(tuple(runs),),
            device=device.value,
            gpus=gpus,
            lost_attempts=config.limits.lost_attempts,
            slots=slots,
            devices=config.device.per_run,
            together=config.device.together,
            mps=config.cluster.mps and 0 < len(gpus) < slots,
            host=socket.gethostname(),
            submitted=time.time(),
            pid=os.getpid(),
            born=process_birth(os.getpid()),
        )
        write_job(path, job)
        pid = _start_local(path, config.trainer.threads, config.cluster.timeout_hours)
        write_job(path, replace(job, pid=pid, born=process_birth(pid)))
        started.append(path)
    return started


def worker_slots(config: Config) -> int:
    """How many workers work at once: the stated number, else what the cores give (one for a GPU)."""
    if config.cluster.workers:
        return config.cluster.workers
    if config.device.kind is DeviceKind.cuda:
        return 1
    return max(1, len(os.sched_getaffinity(0)) // (config.trainer.threads * config.device.per_run))


def gpus_here(devices: Path = Path("/dev")) -> float:
    """How many GPUs this machine shows to its programs, by the device files of their drivers; inf where that is not
    known, but there is one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return 0
    found: float = len(list(devices.glob("nvidia[0-9]*")))
    if not found and any((devices / name).exists() for name in ("kfd", "dxg")):
        found = math.inf
    return min(found, len(visible.split(","))) if visible else found


def _gpus(slots: int, per_run: int) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES is for each slot; more slots than that take turns in sharing them."""
    visible, here = os.environ.get("CUDA_VISIBLE_DEVICES"), gpus_here()
    count = slots * per_run if here in (0, math.inf) else min(slots * per_run, int(here))
    numbers = visible.split(",") if visible else [str(number) for number in range(count)]
    firsts = range(0, len(numbers) - per_run + 1, per_run)
    return tuple(",".join(numbers[first : first + per_run]) for first in firsts)


def _start_local(path: Path, threads: int, hours: float) -> int:
    executor = submitit.LocalExecutor(path / "submitit")
    executor.update_parameters(
        timeout_min=hours * 60,
        stderr_to_stdout=True,
        setup=[
            # PYTHONSAFEPATH: a random.py or trainer.py in the submitting folder must not shadow a module.
            f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} PYTHONHASHSEED=0 PYTHONSAFEPATH=1",
            "trap '' INT HUP",  # workers outlive the terminal, and Ctrl-C in it
            f"exec </dev/null >{shlex.quote(str(path / 'controller.log'))} 2>&1",  # nor do they keep its pipes open
        ],
    )
    with disk_faults(path):
        return int(executor.submit(work, str(path)).job_id)
