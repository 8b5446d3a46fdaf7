"""A worker: goes through a task's runs in order, claims each by its lock, and executes what nobody else does."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.dispatch.external import ExternalTrainerError, train_externally
from sweeps.dispatch.jobs import Job, read_job
from sweeps.dispatch.program import end_orphan
from sweeps.dispatch.ranks import Ranks, here
from sweeps.dispatch.wide import RanksFailed, train_on_ranks
from trainer.config import DeviceKind
from trainer.errors import MachineFault, UserError
from trainer.lock import BEAT_SECONDS, Lock, LockLost, holder
from trainer.mirror import Mirror
from trainer.runfolder import FAILED, LOST, RunConfig, RunFolder, final_record, lost_in_a_row

ShouldStop = Callable[[], str | None]


def work(job_path: str) -> None:
    """Execute a job of this machine: the function that submitit runs.

    Raises
    ------
    SystemExit
        With 1 if a run failed or the machine did, so that schedulers see it.
    """
    path = Path(job_path)
    job = read_job(path)
    if job is None:
        raise SystemExit(f"{path / 'job.json'} is not whole")
    signals: list[str] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: signals.append(signal.Signals(received).name))

    def should_stop() -> str | None:
        if signals:
            return f"signal {signals[0]}"
        return "stopped on request" if (path / "stop").exists() else None

    with Lock(path) as mine:
        if mine is None:
            return
        slot = _wait_for_slot(path.parent, job, should_stop)
        if slot is None:
            return
        if job.device == DeviceKind.cuda:  # before torch is imported
            os.environ["CUDA_VISIBLE_DEVICES"] = job.gpus[int(slot.folder.name.rpartition("-")[2]) % len(job.gpus)]
        try:
            failed = Worker(path.parent.parent, job.runs, path.name, job.lost_attempts, ranks=here(job.devices)).go(
                should_stop
            )
        except MachineFault as fault:
            raise SystemExit(f"isoflop: {fault}") from None
        finally:
            slot.release()
    if failed:
        raise SystemExit(1)


class Worker:
    """One process's way through a list of runs.

    Parameters
    ----------
    job
        The name under which attempts and locks record it.
    facts
        What every attempt's first line says besides.
    ranks
        Where each run has several devices.
    """

    def __init__(
        self,
        sweep: Path,
        runs: Sequence[str],
        job: str,
        lost_attempts: int,
        facts: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._runs = [RunFolder(sweep / run, facts) for run in runs]
        self._sweep, self._job, self._lost_attempts, self._ranks = sweep, job, lost_attempts, ranks
        self.failed: set[str] = set()

    def go(self, should_stop: ShouldStop, *, wait_for_others: bool = False) -> int:
        """Take the first claimable run until there is none; returns how many failed.

        Parameters
        ----------
        wait_for_others
            Stay while somebody else holds a run of ours: should he vanish, nobody else would take it up.
        """
        mirror = Mirror(self._sweep)
        try:
            self._go(should_stop, mirror, wait_for_others)
        finally:
            mirror.close(hurry=should_stop() is not None)
        return len(self.failed)

    def _go(self, should_stop: ShouldStop, mirror: Mirror, wait_for_others: bool) -> None:
        while should_stop() is None:
            folder = next((folder for folder in self._runs if self._open(folder) and holder(folder.path) is None), None)
            if folder is not None:
                verdict = execute(folder, self._job, should_stop, mirror, ranks=self._ranks)
                if verdict is not None and verdict.startswith(FAILED):
                    self.failed.add(folder.run_id)
            elif wait_for_others and self.unfinished():
                time.sleep(BEAT_SECONDS)
            else:
                break

    def unfinished(self) -> bool:
        """Whether a run still has to be trained, by us or by whoever holds it."""
        return any(map(self._open, self._runs))

    def held(self) -> bool:
        """Whether somebody holds one of the runs."""
        return any(holder(folder.path) is not None for folder in self._runs)

    def _open(self, folder: RunFolder) -> bool:
        if folder.run_id in self.failed or folder.cancel_path.exists() or folder.ended():
            return False
        return lost_in_a_row(folder.attempts()) < self._lost_attempts


def execute(
    folder: RunFolder,
    job: str,
    should_stop: ShouldStop,
    mirror: Mirror,
    prepare: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
) -> str | None:
    """Claim one run and bring it to its end; one that has ended is left as it is.

    Parameters
    ----------
    mirror
        Is told of the run.
    prepare
        Called first, once the run is claimed.
    ranks
        Where the run has several devices.

    Returns
    -------
    str or None
        The verdict, or ``stopped: <reason>``; None where somebody else holds the run.

    Raises
    ------
    MachineFault
        If the disk or the machine failed; the run can be continued.
    """
    with Lock(folder.path, job=job) as lock:
        if lock is None:
            return None
        folder.check_owner = lambda: _check_owner(lock)
        if ranks is not None:
            folder.facts["devices"] = ranks.count
        prepare()

        def ask() -> str | None:
            mirror.check()
            return _stop_reason(folder, lock, should_stop)

        poll = _Poll(ask)
        end_orphan(folder)
        _close_lost_attempt(folder)
        try:
            config = folder.read_config()
        except UserError as error:
            sys.stderr.write(f"isoflop: {error}\n")
            return f"{FAILED}{error}"
        known = folder.points()
        if all(point_id in known for point_id in config.recipe.point_ids):
            return str(known[config.recipe.point_ids[-1]]["verdict"])
        mirror.follow(folder, config)
        try:
            if config.recipe.command is not None:
                return train_externally(folder, config, job, poll, ranks)
            if ranks is not None:
                return train_on_ranks(folder, config, lock, job, poll, ranks)
            from trainer.loop import train

            return train(folder, folder.path.parent.parent, job=job, should_stop=poll)
        except MachineFault:
            raise
        except LockLost:
            return "stopped: the lock was lost"
        except Exception as error:
            traceback.print_exc()
            return _fail(folder, config, _cause(error))


class _Poll:
    """A question asked at every step, answered from the disk at most twice per heartbeat."""

    def __init__(self, ask: ShouldStop) -> None:
        self._ask = ask
        self._next = 0.0
        self._answer: str | None = None

    def __call__(self) -> str | None:
        now = time.monotonic()
        if self._answer is None and now >= self._next:
            self._next = now + BEAT_SECONDS / 2
            self._answer = self._ask()
        return self._answer


def _check_owner(lock: Lock) -> None:
    if lock.was_lost():
        raise LockLost


def _stop_reason(folder: RunFolder, lock: Lock, should_stop: ShouldStop) -> str | None:
    _check_owner(lock)
    return "cancelled" if folder.cancel_path.exists() else should_stop()


def _wait_for_slot(jobs: Path, job: Job, should_stop: ShouldStop) -> Lock | None:
    """One of the sweep's slots, held; None if asked to stop before one is free."""
    while should_stop() is None:
        for number in range(job.slots):
            place = jobs / f"slot-{socket.gethostname()}-{number}"
            place.mkdir(exist_ok=True)
            slot = Lock(place)
            if slot.acquire():
                return slot
        time.sleep(0.5)
    return None


def _close_lost_attempt(folder: RunFolder) -> None:
    attempts = folder.attempts()
    if attempts and "why" not in attempts[-1]:
        folder.end_attempt(attempts[-1]["attempt"], LOST)


def _cause(error: BaseException) -> str:
    if isinstance(error, UserError | ExternalTrainerError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "OOM"
    if isinstance(error, RanksFailed):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:300]


def _fail(folder: RunFolder, config: RunConfig, cause: str) -> str:
    verdict = f"{FAILED}{cause}"
    attempts = folder.attempts()
    number = attempts[-1]["attempt"] if attempts else 0
    for point_id in config.recipe.point_ids:
        if point_id not in folder.points():
            folder.write_point(
                final_record(config, point_id=point_id, tokens=0, loss=None, verdict=verdict, attempt=number)
            )
    return verdict
