"""One run, or several as one model, claimed and brought to an end: a verdict, a stop, a failure with its cause."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sweeps.dispatch.external import ExternalTrainerError, train_externally
from sweeps.dispatch.program import end_orphan
from sweeps.dispatch.ranks import Ranks
from sweeps.dispatch.wide import RanksFailed, train_on_ranks
from trainer.errors import MachineFault, UserError
from trainer.lock import BEAT_SECONDS, Lock, LockLost
from trainer.mirror import Mirror
from trainer.runfolder import FAILED, LOST, RunConfig, RunFolder, final_record

ShouldStop = Callable[[], str | None]


def execute(
    folder: RunFolder,
    job: str,
    should_stop: ShouldStop,
    mirror: Mirror | None,
    prepare: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
    training: Mapping[str, Any] | None = None,
) -> str | None:
    """Claim one run and bring it to its end; one that has ended is left as it is.

    Parameters
    ----------
    mirror
        Is told of the run, unless that is done elsewhere.
    prepare
        Called first, once the run is claimed.
    ranks
        Where the run has several devices.
    training
        What :func:`trainer.loop.train` is given besides.

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
            if mirror is not None:
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
        if mirror is not None:
            mirror.follow((folder, config))
        try:
            if config.recipe.command is not None:
                return train_externally(folder, config, job, poll, ranks)
            if ranks is not None:
                return train_on_ranks(folder, config, lock, job, poll, ranks)
            from trainer.loop import train

            return train(folder, folder.path.parent.parent, job=job, should_stop=poll, **(training or {}))
        except MachineFault:
            raise
        except LockLost:
            return "stopped: the lock was lost"
        except UserError as error:
            sys.stderr.write(f"isoflop: {error}\n")
            return _fail(folder, config, str(error))
        except Exception as error:
            traceback.print_exc()
            return _fail(folder, config, _cause(error))


def execute_together(
    folders: Sequence[RunFolder], job: str, should_stop: ShouldStop, mirror: Mirror
) -> list[str | None]:
    """:func:`execute` for runs that are alike (:func:`trainer.together.alike`), trained as one model.

    Raises
    ------
    MachineFault
        If the disk or the machine failed for one of them; the others have come to their ends.
    """
    from trainer.together import Together

    meeting, verdicts = Together(len(folders)), list[str | None]([None] * len(folders))
    faults: list[BaseException] = []

    def one(number: int) -> None:
        folder = folders[number]
        folder.facts["together"] = len(folders)
        training = {"open_engine": meeting.open_engine(number), "choose": meeting.choose_kernels}
        try:
            verdicts[number] = execute(folder, job, should_stop, None, training=training)
        except BaseException as error:
            faults.append(error)
        finally:
            meeting.leave(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(folders))]
    for thread in threads:
        thread.start()
    mirror.follow(*_readable(folders))
    for thread in threads:
        while thread.is_alive():
            mirror.check()
            thread.join(BEAT_SECONDS / 2)
    if faults:
        raise faults[0]
    return verdicts


def _readable(folders: Sequence[RunFolder]) -> Iterator[tuple[RunFolder, RunConfig]]:
    """The runs whose config is whole, with it; the others say so themselves."""
    for folder in folders:
        with suppress(UserError):
            yield folder, folder.read_config()


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


def _close_lost_attempt(folder: RunFolder) -> None:
    attempts = folder.attempts()
    if attempts and "why" not in attempts[-1]:
        folder.end_attempt(attempts[-1]["attempt"], LOST)


def _cause(error: BaseException) -> str:
    if isinstance(error, ExternalTrainerError):
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
