"""Submit arrays of tasks to SLURM: submitit writes the script, the job's folder is the intent, sbatch gets both.

submitit's own way of starting a function is not used: it pickles one file per task and puts them into place after
sbatch has returned, so a submitter that dies in between leaves tasks without one; and it judges a life of a task by
the pickle that another life may have left. A task of ours reads ``job.json``, written before sbatch is called.
"""

from __future__ import annotations

import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import submitit

from sweeps.config import Config
from sweeps.dispatch import slurm
from sweeps.dispatch.jobs import SLURM, Job, mark_ended, new_job_folder, queue_name, write_job
from sweeps.dispatch.resources import Array
from sweeps.dispatch.site import refusal
from sweeps.paths import SweepFolder
from trainer.config import DeviceKind
from trainer.errors import MachineFault
from trainer.files import disk_faults, write_whole

NAMED = ("job_name", "time", "nodes", "ntasks_per_node", "cpus_per_task", "signal_delay_s", "wckey")
"""What submitit would give a default to."""


def submit_arrays(
    config: Config,
    folder: SweepFolder,
    arrays: Sequence[Array],
    code: Path,
    dependencies: Sequence[str],
    *,
    canary: bool = False,
) -> list[Path]:
    """Submit arrays; each waits for what ``dependencies`` says of it, where ``{n}`` is the id of the n-th array.

    Parameters
    ----------
    canary
        The first array is the others' canary.

    Raises
    ------
    UserError
        If SLURM refuses one: those already submitted are taken back.
    MachineFault
        If SLURM does not answer; what it may have taken is found again by the next submit.
    """
    started: list[Path] = []
    ids: list[str] = []
    for array, dependency in zip(arrays, dependencies, strict=True):
        path = new_job_folder(folder)
        job = Job(
            tasks=array.tasks,
            executor=SLURM,
            device=config.device.kind.value,
            lost_attempts=config.limits.lost_attempts,
            host=socket.gethostname(),
            submitted=time.time(),
            resources=asdict(array.resources),
            warning_seconds=warning_seconds(config, array),
            throttle=array.throttle,
            together=config.device.together,
            mps=config.cluster.mps and config.device.kind is DeviceKind.cuda and array.resources.at_once > 1,
            canary=started[0].name if canary and started else None,
            work_minutes=array.work_minutes,
            margin=config.cluster.margin,
            code=code.name,
        )
        with disk_faults(path):
            (path / "submitit").mkdir(parents=True)
        write_whole(path / "submit.sh", script(config, path, array, code, dependency.format(*ids)))
        write_job(path, job)
        try:
            ids.append(slurm.submit(str(path / "submit.sh")))
        except slurm.Refused as error:
            mark_ended(path)
            slurm.cancel(ids)
            for earlier in started:
                mark_ended(earlier)
            raise refusal(error, config, array) from None
        except slurm.Silent as error:
            raise MachineFault(
                f"{error}; {len(started)} of {len(arrays)} arrays are submitted; the same command does the rest, a "
                "minute from now, when it is known which of them SLURM took."
            ) from None
        # anew: a queue looked at while sbatch worked need not have it
        write_job(path, replace(job, job_id=ids[-1], submitted=time.time()))
        started.append(path)
    return started


def script(config: Config, path: Path, array: Array, code: Path, dependency: str) -> str:
    """The script for sbatch."""
    need, cluster = array.resources, config.cluster
    alone = need.nodes * need.devices == 1
    workers = need.at_once if alone else 1
    asked = _asked(config, array) | {"job_name": queue_name(path)}
    if dependency:
        asked |= {"dependency": dependency, "kill_on_invalid_dep": "yes"}
    own = {name.replace("-", "_"): value for name, value in cluster.sbatch.items()}
    if {"mem_per_cpu", "mem_per_gpu"} & set(own):
        asked["mem"] = None
    asked |= own
    executor = submitit.SlurmExecutor(path / "submitit")
    executor.update_parameters(
        **{name: asked.get(name) for name in NAMED},
        array_parallelism=array.throttle,
        stderr_to_stdout=True,
        setup=_setup(config, code),
        additional_parameters={name: value for name, value in asked.items() if name not in NAMED and value is not None},
        # srun takes none of these from sbatch; the worker of a run on many devices starts its ranks itself
        srun_args=[
            "--nodes=1",
            f"--ntasks={workers}",
            f"--cpus-per-task={need.cpus // workers}",
            "--overlap",
            "--kill-on-bad-exit=0",
        ],
    )
    executor.parameters["map_count"] = len(array.tasks)
    python = shlex.quote(cluster.python or sys.executable)
    words = [cluster.container or "", python, "-u", "-m", "sweeps.task", shlex.quote(str(path))]
    return str(executor._make_submission_file_text(" ".join(filter(None, words)), path.name))


def warning_seconds(config: Config, array: Array) -> int:
    """How long before its time limit a task is warned: half of a short one."""
    return min(config.cluster.signal_seconds, array.resources.minutes * 30)


def _asked(config: Config, array: Array) -> dict[str, Any]:
    """sbatch's options, as far as they follow from the plan and ``cluster/``."""
    need, cluster = array.resources, config.cluster
    workers = need.at_once if need.nodes * need.devices == 1 else need.devices
    gpus = None
    if config.device.kind is DeviceKind.cuda:
        gpus = f"{cluster.gpu_type}:{need.devices}" if cluster.gpu_type else str(need.devices)
    return {
        "time": need.minutes,
        "nodes": need.nodes,
        "ntasks_per_node": workers,
        "cpus_per_task": need.cpus // workers,
        "mem": None if need.memory_gb is None else f"{need.memory_gb}G",
        "gpus_per_node": gpus,
        "signal_delay_s": warning_seconds(config, array),
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "requeue": True,
        "wckey": None,
    }


def _setup(config: Config, code: Path) -> list[str]:
    threads, cluster = config.trainer.threads, config.cluster
    modules = [f"module load {' '.join(map(shlex.quote, cluster.modules))}"] if cluster.modules else []
    return [
        *cluster.setup,
        *modules,
        f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} PYTHONHASHSEED=0",
        # PYTHONSAFEPATH: a random.py or trainer.py in the submitting folder must not shadow a module.
        f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "trap : USR2 TERM",  # for the workers; the script must live to see them end (and srun must not inherit '')
    ]
