"""Units of work over processes: progress while they run, an end with whoever started them, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from trainer.errors import MachineFault
from trainer.text.encode import Report, Work
from trainer.text.inputs import Unit

TICK_SECONDS = 0.2
_ORPHAN_SECONDS = 0.5


class Task(Protocol):
    """What is done with a unit."""

    def __call__(self, unit: Unit, work: Work, report: Report, /) -> None:
        """Do it."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(task: Task, units: Sequence[Unit], work: Work, workers: int, tick: Callable[[int], None]) -> None:
    """Do a task for every unit, the largest first.

    Parameters
    ----------
    tick
        Told now and then how many bytes of input are done.

    Raises
    ------
    UserError
        What a unit found wrong with the input; the others are dropped.
    MachineFault
        If a process was killed.
    """
    ordered = sorted(units, key=lambda unit: -unit.size)
    workers = min(workers, len(ordered))
    if workers <= 1:
        _run_here(task, ordered, work, tick)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of this process hold
    done = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(done, os.getpid()))
    pending: set[Future[None]] = set()
    try:
        pending = {pool.submit(_do, task, unit, work) for unit in ordered}
        while pending:
            ended, pending = wait(pending, TICK_SECONDS, FIRST_COMPLETED)
            tick(done.value)
            for future in ended:
                future.result()
    except BrokenProcessPool:
        raise MachineFault(
            "a process that encodes was killed (out of memory?); the same command goes on, with fewer workers= if so."
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=not pending, cancel_futures=True)
        if pending:
            for process in processes:
                process.terminate()


def _run_here(task: Task, units: Sequence[Unit], work: Work, tick: Callable[[int], None]) -> None:
    done, told = 0, time.monotonic()

    def report(size: int) -> None:
        nonlocal done, told
        done += size
        if time.monotonic() - told >= TICK_SECONDS:
            told = time.monotonic()
            tick(done)

    for unit in units:
        task(unit, work, report)
        tick(done)


_counter: Any = None
"""In a worker: the bytes that all of them have done."""


def _begin(counter: Any, parent: int) -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker waits for work at a pipe that it holds open itself: that its parent died it must see otherwise."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def _do(task: Task, unit: Unit, work: Work) -> None:
    waiting = 0

    def report(size: int) -> None:
        nonlocal waiting
        waiting += size
        if waiting >= 1 << 18:
            flush()

    def flush() -> None:
        nonlocal waiting
        with _counter.get_lock():
            _counter.value += waiting
        waiting = 0

    task(unit, work, report)
    flush()
