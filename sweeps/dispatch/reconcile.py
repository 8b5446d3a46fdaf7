"""Reconciliation: what a plan wants minus what is done, running or queued is handed to workers; nothing else."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sweeps.config import Config, Executor, Retry
from sweeps.dispatch.backlog import Backlog, read_backlog, settle
from sweeps.dispatch.jobs import LOCAL, unreadable_jobs
from sweeps.dispatch.launch import gpus_here, start_workers, worker_slots
from sweeps.dispatch.slurm import Scheduler
from sweeps.dispatch.state import PointState, State, inspect, orphans
from sweeps.dispatch.takeback import cancel_runs, drop_idle, release_held
from sweeps.dispatch.to_slurm import Dispatch
from sweeps.paths import SweepFolder
from sweeps.planning.points import Plan, PlannedPoint, run_hours, write_plan
from trainer.config import DeviceKind, Source
from trainer.errors import MachineFault, UserError
from trainer.lock import Lock, holder
from trainer.runfolder import LOST, RunConfig, RunFolder, killed_by_limit, lost_in_a_row

WRITERS = 16
"""Run folders made at the same time."""
LOCK_SECONDS = 30.0
"""How long one submit waits for another."""


@dataclass(frozen=True)
class Submission:
    """What a reconciliation found and did."""

    submitted: Sequence[str]
    """Run ids handed to workers, longest first."""
    jobs: Sequence[Path]
    states: Sequence[PointState]
    """Of every planned point, before anything was started."""
    left: Sequence[str]
    """Run ids on disk whose point has left the config."""
    released: int = 0
    """Tasks that SLURM held and were let go."""

    @property
    def counts(self) -> Counter[State]:
        """Points by state, before anything was started."""
        return Counter(state.state for state in self.states)


def submit(config: Config, plan: Plan, scheduler: Scheduler, *, reopen: bool = True) -> Submission:
    """Start workers for every point that is neither done, running, queued nor failed (unless ``retry=`` names it).

    Parameters
    ----------
    reopen
        Also take up points that were cancelled, or failed as ``retry=`` says: what a user asks for by a command.

    Raises
    ------
    UserError
        If the missing points cost more than the limits, or a run folder is not the one its recipe made.
    MachineFault
        If the disk is full, SLURM does not answer, or another submit holds the sweep.
    """
    folder = SweepFolder.of(config.root, plan.sweep)
    _check_trainable(config)
    with _one_submitter(folder):
        write_plan(plan, folder)
        backlog = read_backlog(folder, scheduler)
        if backlog.stale is not None:
            raise MachineFault(
                f"SLURM does not answer ({backlog.stale}), so what is queued is not known; submit when it does."
            )
        _check_jobs(folder)
        settle(folder, backlog)
        if reopen:
            _ask_for_again(folder, plan, backlog)
        states = inspect(folder, plan.to_dict(), config.limits.lost_attempts, backlog)
        missing = [
            point for point, state in zip(plan.points, states, strict=True) if _wanted(state, config.retry, reopen)
        ]
        _check_limits(config, missing)
        check_devices(config, missing)
        slurm = config.cluster.executor is Executor.slurm
        canary = not any(state.state is State.done for state in states)
        dispatch = Dispatch.prepare(config, folder, missing, backlog, canary=canary) if slurm and missing else None
        again = reopen and config.retry is not Retry.none
        hours = run_hours(missing)
        longest_first = sorted(missing, key=lambda point: -hours[point.run.run_id])
        runs = _open_all(folder, {point.run.run_id: point.run for point in longest_first}, retry=again)
        if dispatch is not None:
            jobs = dispatch.start(runs)
        elif slurm:
            jobs = []
        else:
            queued = queued_here(states, backlog)
            jobs = start_workers(
                config, folder, [*runs, *queued], workers_wanted(config, backlog, len(runs), len(queued))
            )
        left = [run.run_id for run in orphans(folder, plan.to_dict())]
        if config.cancel_left and reopen:
            cancel_runs(folder, [run for run in left if run in backlog.waiting])
        drop_idle(folder, backlog)
        released = release_held(folder, backlog) if reopen else 0
        scheduler.forget()
    return Submission(runs, jobs, states, left, released)


def _wanted(state: PointState, retry: Retry, reopen: bool) -> bool:
    if state.state is State.failed:
        return reopen and (retry is Retry.all or state.kind == retry.value)
    return state.state is State.planned and (reopen or not state.taken_back)


def workers_wanted(config: Config, backlog: Backlog, missing: int, queued: int) -> int:
    """How many workers to start: a full set for missing runs, else as many as were lost while runs wait.

    SLURM's tasks that are lost leave no run waiting: there, one for anything that is missing.
    """
    if config.cluster.executor is Executor.slurm:
        return min(1, missing)
    slots, here = worker_slots(config), socket.gethostname()
    ours = [backlog.jobs[task.job] for task in backlog.living]
    lost = slots - sum(job.executor == LOCAL and job.host == here for job in ours)
    return max(min(slots, missing), min(lost, queued))


def queued_here(states: Sequence[PointState], backlog: Backlog) -> list[str]:
    """Runs that wait for a worker of a machine, not for one of SLURM's."""
    local = {run for task in backlog.living if backlog.jobs[task.job].executor == LOCAL for run in task.runs}
    return [state.run_id for state in states if state.state is State.queued and state.run_id in local]


def _ask_for_again(folder: SweepFolder, plan: Plan, backlog: Backlog) -> None:
    """Cancelled points whose worker has not left them yet, or whose task still waits, need nothing but that."""
    for run in {point.run.run_id: folder.run(point.run.run_id) for point in plan.points}.values():
        if run.cancel_path.exists() and (run.run_id in backlog.waiting or holder(run.path) is not None):
            run.cancel_path.unlink(missing_ok=True)


def open_run(folder: RunFolder, config: RunConfig, *, retry: bool) -> None:
    """Make a run folder ready: a new one, or one whose config is checked; ``retry`` forgets its failures.

    The caller holds the run's lock, or knows that the folder is new.
    """
    if folder.config_path.exists():
        folder.read_config()
    attempts = folder.attempts()
    if not attempts:  # once measured, a config is never changed
        folder.write_config(config)
    if retry and (lost_in_a_row(attempts) or killed_by_limit(attempts)):
        why = attempts[-1].get("why", LOST)
        folder.end_attempt(attempts[-1]["attempt"], f"lost; tried again on request ({why})")
    if retry:
        folder.forget_failure()
    folder.cancel_path.unlink(missing_ok=True)


def _open_all(sweep: SweepFolder, runs: Mapping[str, RunConfig], *, retry: bool) -> list[str]:
    """Those that were made ready. Together: a disk confirms a thousand files at once sooner than one by one."""
    with ThreadPoolExecutor(WRITERS) as pool:
        opened = pool.map(lambda run: _open(sweep, run, retry=retry), runs.values())
        return [run_id for run_id, ours in zip(runs, opened, strict=True) if ours]


def _open(sweep: SweepFolder, config: RunConfig, *, retry: bool) -> bool:
    """:func:`open_run` under the run's lock; False where somebody has just claimed it."""
    folder = sweep.run(config.run_id)
    if not folder.path.exists():
        open_run(folder, config, retry=retry)
        return True
    with Lock(folder.path) as lock:
        if lock is None:
            return False
        open_run(folder, config, retry=retry)
        return True


@contextmanager
def _one_submitter(folder: SweepFolder) -> Iterator[None]:
    folder_lock = Lock(folder.jobs)
    deadline = time.monotonic() + LOCK_SECONDS
    while not folder_lock.acquire():
        if time.monotonic() > deadline:
            raise MachineFault(
                f"another isoflop has been submitting in {folder.path} for {LOCK_SECONDS:.0f} s; try again."
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        folder_lock.release()


def _check_jobs(folder: SweepFolder) -> None:
    """Refuse to submit beside a job of which nobody can tell what it has."""
    for path in unreadable_jobs(folder):
        raise MachineFault(
            f"{path / 'job.json'} cannot be read (damaged, or of another version), so what it has submitted is not "
            "known; cancel its job if SLURM has it, remove the folder, and submit again."
        )


def _check_trainable(config: Config) -> None:
    if config.data.source is Source.unspecified and config.trainer.command is None:
        raise UserError(
            "data.source=unspecified has no tokens to train on; choose data=python_source, data=tokens, "
            "or an external trainer with trainer.command=."
        )


def _check_limits(config: Config, missing: Sequence[PlannedPoint]) -> None:
    if config.confirm:
        return
    hours, price = sum(point.hours for point in missing), sum(point.price for point in missing)
    for field, value, limit in (
        ("device_hours", hours, config.limits.device_hours),
        ("price", price, config.limits.price),
    ):
        if limit is not None and not value <= limit:
            raise UserError(
                f"limits.{field}={limit:g}, but the {len(missing)} points to submit are planned at {value:.4g}; "
                "drop points, raise the limit, or add confirm=true."
            )


def check_devices(config: Config, missing: Sequence[PlannedPoint]) -> None:
    """Refuse points that the devices cannot hold, and devices that are not there.

    Raises
    ------
    UserError
        Naming what does not fit.
    """
    here = config.cluster.executor is Executor.local
    if missing and here and config.device.kind is DeviceKind.cuda and config.trainer.command is None:
        gpus, per_run = gpus_here(), config.device.per_run
        if not gpus:
            raise UserError(
                f"device.kind=cuda (device={config.device.name}), but this machine has no GPU that may be seen; choose "
                "device=cpu, or a cluster= that has GPUs."
            )
        if gpus < per_run:
            raise UserError(
                f"device.per_run={per_run}, but this machine has {gpus:.0f} GPUs that may be seen; lower it, or choose "
                "a cluster= that has more."
            )
    for point in missing:
        together = point.run.runtime.together
        if config.trainer.command is None and point.memory_gb * together > config.device.memory_gb >= point.memory_gb:
            raise UserError(
                f"device.together={together} runs like {point.point_id} need {point.memory_gb * together:.3g} GB, but "
                f"device.memory_gb={config.device.memory_gb:g}; lower device.together."
            )
        if config.trainer.command is None and point.devices > config.device.per_run:
            raise UserError(
                f"device.memory_gb={config.device.memory_gb:g} cannot hold {point.point_id}, which needs "
                f"{point.memory_gb / config.device.per_run:.3g} GB on every device; choose a larger device=, smaller "
                "sizes, or an external trainer with trainer.command=."
            )
