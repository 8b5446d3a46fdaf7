"""A worker: goes through a task's runs in order, claims each by its lock, and executes what nobody else does."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.dispatch.execute import ShouldStop, execute, execute_together
from sweeps.dispatch.jobs import Job, read_job
from sweeps.dispatch.mps import shared_gpus
from sweeps.dispatch.ranks import Ranks, here
from trainer.alike import alike
from trainer.config import DeviceKind
from trainer.errors import MachineFault, UserError
from trainer.lock import BEAT_SECONDS, Lock, holder
from trainer.mirror import Mirror
from trainer.runfolder import FAILED, RunFolder, lost_in_a_row


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
            worker = Worker(
                path.parent.parent,
                job.runs,
                path.name,
                job.lost_attempts,
                ranks=here(job.devices),
                together=job.together,
            )
            with shared_gpus(job.mps):
                failed = worker.go(should_stop)
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
    together
        How many runs it may train as one model; 0 for what their configs say.
    """

    def __init__(
        self,
        sweep: Path,
        runs: Sequence[str],
        job: str,
        lost_attempts: int,
        facts: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
        together: int = 1,
    ) -> None:
        self._runs = [RunFolder(sweep / run, facts) for run in runs]
        self._sweep, self._job, self._lost_attempts, self._ranks = sweep, job, lost_attempts, ranks
        self._together = together
        self._alike: dict[str, tuple[Any, ...] | None] = {}
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
            folders = self._next()
            if folders:
                if len(folders) > 1:
                    verdicts = execute_together(folders, self._job, should_stop, mirror)
                else:
                    verdicts = [execute(folders[0], self._job, should_stop, mirror, ranks=self._ranks)]
                for folder, verdict in zip(folders, verdicts, strict=True):
                    if verdict is not None and verdict.startswith(FAILED):
                        self.failed.add(folder.run_id)
            elif wait_for_others and self.unfinished():
                time.sleep(BEAT_SECONDS)
            else:
                break

    def _next(self) -> list[RunFolder]:
        """The first claimable run, and those after it that may be trained with it; empty where there is none."""
        claimable = (folder for folder in self._runs if self._open(folder) and holder(folder.path) is None)
        first = next(claimable, None)
        if first is None:
            return []
        if self._together == 1 or (kind := self._kind(first)) is None:
            return [first]
        most = self._together or first.read_config().runtime.together
        others = (folder for folder in claimable if self._kind(folder) == kind)
        return [first, *itertools.islice(others, most - 1)]

    def _kind(self, folder: RunFolder) -> tuple[Any, ...] | None:
        """What the run must have in common with those that it is trained with."""
        if folder.run_id not in self._alike:
            try:
                self._alike[folder.run_id] = alike(folder.read_config())
            except UserError:  # told when it is executed
                self._alike[folder.run_id] = None
        return self._alike[folder.run_id]

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
