"""The process beside a worker that tells W&B of the worker's runs.

``python -m trainer.teller SWEEP_FOLDER`` reads run ids from its standard input, those that are trained together in one
line, and follows the line that came last through the files of the runs' folders, which are the record; those named
before are told when there is room. The
input's end, which comes with the worker's however it dies, makes it tell of all that has ended in the sweep without
being told, and leave. Until then it works only while a core is free or within ``tracking.share`` of one
(:mod:`trainer.pace`), and falls behind where that is too little. A failure ends it.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from trainer.config import TrackingConfig
from trainer.errors import UserError
from trainer.lock import Lock
from trainer.mirror import complain, untold
from trainer.pace import Pace
from trainer.runfolder import RunConfig, RunFolder
from trainer.story import has_ended, is_whole, mark_failed, mark_whole, story_of
from trainer.tracking import WandbRun

NICE = 5
HANG_SECONDS = 300.0
"""W&B is given up when it has not answered for so long."""
OTHERS_SECONDS = 10.0
"""How long a run that another mirror holds is waited for."""


class Input:
    """Lines of run ids as they come."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._news = threading.Event()
        self.passed: list[str] = []
        """Lines before the newest, and still to be told."""
        self.ended = False
        """Whether no more can come."""
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> str | None:
        """The line that came last, waited for; None once no more can come."""
        line = self._lines.get()
        while line is not None and not self._lines.empty():
            later = self._lines.get()
            if later is None:
                self._lines.put(None)
                break
            self.passed.append(line)
            line = later
        return line

    def wait(self, seconds: float) -> bool:
        """Pause; whether there is a line after the one being followed, or will be none."""
        deadline = time.monotonic() + seconds
        while self._lines.empty():
            self._news.clear()
            if not self._lines.empty():  # it came in between
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._news.wait(left)
        return True

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line.strip())
            self._news.set()
        self.ended = True
        self._lines.put(None)
        self._news.set()


class _Telling:
    """A run that W&B is told of, and how far that is."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        self.run, self._config, self.done = run, config, False
        self._told: WandbRun | None = None

    @property
    def begun(self) -> bool:
        """Whether W&B knows of it."""
        return self._told is not None

    def tell(self, *, last: bool) -> None:
        """Hand over what is new; with ``last``, or where the run has ended, close it in W&B."""
        run, config = self.run, self._config
        attempts = run.attempts()
        ready = bool(attempts) and (last or "why" not in attempts[-1] or has_ended(config, run.points()))
        if self._told is None and ready:  # not by the attempt before, which has been closed
            config = self._config = run.read_config()  # its kernels are chosen just before the first attempt
            self._told = WandbRun(run.path, story_of(run, config), config.runtime.tracking)
        self.done = last
        if self._told is not None:
            story = story_of(run, config)
            self._told.hand_over(story.rows)
            if last or story.summary:
                self._told.finish(story.summary)
                self.done = True
                if story.summary:
                    mark_whole(run, config.runtime.tracking.mode.value)


class Teller:
    """Tells W&B of runs, the line that came last before others."""

    def __init__(self, sweep: Path) -> None:
        self._sweep, self._input = sweep, Input()
        self._pace: Pace | None = None
        """None until W&B has been started, which is not counted: the worker has waited for it."""
        self._tracking = TrackingConfig()
        self.telling: RunFolder | None = None
        """The run that W&B is being told of right now,"""
        self.since = 0.0
        """and since when."""

    def run(self) -> None:
        """Follow what is named until nothing more can be, then see to the rest of the sweep."""
        while (line := self._input.next()) is not None:
            self._follow(line)
            if self._input.passed:
                self._rest()
        while self._input.passed:
            self._follow(self._input.passed.pop(), 0.0, follow=False)
        for patience in (0.0, OTHERS_SECONDS):  # what another mirror is at comes last
            for run, _ in untold(self._sweep):
                self._follow(run.run_id, patience, follow=False)

    def _follow(self, line: str, patience: float = OTHERS_SECONDS, *, follow: bool = True) -> None:
        """Tell W&B of a line's runs; ``follow`` them until they end, or their worker goes on to others."""
        with ExitStack() as held:
            runs = [RunFolder(self._sweep / run_id) for run_id in line.split()]
            found = [telling for run in runs if (telling := self._take(run, patience, held)) is not None]
            if found:
                self._tell(found, line, follow)
        self.telling = None

    def _take(self, run: RunFolder, patience: float, held: ExitStack) -> _Telling | None:
        """A run to be told, held against other mirrors; None where another has it, or there is nothing to tell."""
        with suppress(UserError):
            config = run.read_config()
            self._tracking = config.runtime.tracking
            place, began = run.path / "wandb", time.monotonic()
            self.telling, self.since = run, began
            place.mkdir(exist_ok=True)
            lock = Lock(place)
            while not (mine := lock.acquire()) and time.monotonic() - began < patience:
                time.sleep(0.2)  # another worker's mirror is about to leave it
            if mine:
                held.callback(lock.release)
                return None if is_whole(run) else _Telling(run, config)
        return None

    def _tell(self, runs: list[_Telling], line: str, follow: bool) -> None:
        begun = False
        while runs:
            last = not follow or self._rest()
            if not begun and follow and last and not self._has_room() and not self._input.ended:
                self._input.passed.append(line)
                return
            for telling in runs:
                self.telling, self.since = telling.run, time.monotonic()
                telling.tell(last=last)
                if telling.begun:
                    begun, self._pace = True, self._pace or Pace()
            runs = [telling for telling in runs if not telling.done]

    def _rest(self) -> bool:
        """Pause until there is room to go on, and use it for what was passed over; True if a run follows, or none."""
        while True:
            self.telling = None
            if self._input.wait(self._tracking.every_seconds):
                return True
            if self._has_room():
                if not self._input.passed:
                    return False
                self._follow(self._input.passed.pop(), 0.0, follow=False)

    def _has_room(self) -> bool:
        return self._pace is None or self._pace.allows(self._tracking.share)


def _watch(teller: Teller, quiet: bool) -> None:
    """End this process when W&B does not answer: nothing else ends a call to it."""
    while True:
        time.sleep(5.0)
        run, since = teller.telling, teller.since
        if run is not None and time.monotonic() - since > HANG_SECONDS:
            _leave(run, f"it has not answered for {HANG_SECONDS:g} s", quiet)


def _leave(run: RunFolder | None, why: str, quiet: bool) -> None:
    if run is not None:
        with suppress(Exception):
            mark_failed(run, why)
    if not quiet:
        complain(why)
    os._exit(1)


def main() -> None:
    """Mirror the runs named on standard input."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2"):  # meant for the worker; we leave when our input ends
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICE)
    os.environ.setdefault("WANDB_SILENT", "true")
    quiet = sys.argv[2:] == ["quiet"]
    teller = Teller(Path(sys.argv[1]))
    threading.Thread(target=_watch, args=(teller, quiet), daemon=True).start()
    try:
        teller.run()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        _leave(teller.telling, f"{type(error).__name__}: {lines[0]}", quiet)
    os._exit(0)  # W&B's own exit may wait for what it could not send


if __name__ == "__main__":
    main()
