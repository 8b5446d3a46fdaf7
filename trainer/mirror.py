"""A process beside each worker that tells W&B of the worker's runs, so that training never waits for W&B.

``python -m trainer.mirror SWEEP_FOLDER`` reads run ids from its standard input, one a line, and follows the one named
last through the files of its folder, which are the record. The input's end, which comes with the worker's however it
dies, makes it tell of all that has ended in the sweep without being told, and leave. A failure ends it: its worker
starts another after a while (:class:`Mirror`), and what W&B has or has not is asked of W&B and the disk, never
remembered. While its worker trains it keeps to :data:`SHARE` of a core, and falls behind where that is too little.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.errors import UserError
from trainer.lock import Lock
from trainer.runfolder import RunConfig, RunFolder
from trainer.story import has_ended, is_whole, mark_failed, mark_whole, story_of
from trainer.tracking import WandbRun, is_tracked

SHARE = 0.01
"""Of a core: the processor time that the mirror and W&B's own process take while runs train,"""
ADVANCE_SECONDS = 1.5
"""beside what it takes to import and start W&B."""
NICE = 5
HANG_SECONDS = 300.0
"""W&B is given up when it has not answered for so long."""
RETRY_SECONDS = 60.0
"""How long W&B is left alone after a failure; doubled with each in a row, to an hour."""
DRAIN_SECONDS = 30.0
"""A worker with nothing left to train waits for its mirror as long as that brings a run to W&B in this time;"""
HURRY_SECONDS = 10.0
"""one that was asked to leave waits so long."""
OTHERS_SECONDS = 10.0
"""How long a run that another mirror holds is waited for."""


class Mirror:
    """The worker's end: starts the process when a run first asks for it, and another one when it is gone."""

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._process: subprocess.Popen[bytes] | None = None
        self._run_id = ""
        self._failures = 0
        self._not_before = 0.0

    def follow(self, run: RunFolder, config: RunConfig) -> None:
        """Tell W&B of this run from now on, if its config asks for it."""
        if is_tracked(config.runtime.tracking):
            self._run_id = run.run_id
            if self._process is not None and self._process.poll() is None:
                self._send(run.run_id)
            else:
                self.check()

    def check(self) -> None:
        """Start the process where there is none; where it failed, once W&B has been left alone for a while."""
        if not self._run_id or time.monotonic() < self._not_before:
            return
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._failures += 1
            pause = RETRY_SECONDS * min(60, 2 ** (self._failures - 1))
            self._not_before = time.monotonic() + pause
        elif self._process is None:
            self.start()
            self._send(self._run_id)

    def start(self) -> None:
        """Start the process."""
        quiet = ["quiet"] if self._failures else []  # it has complained already
        command = [sys.executable, "-m", "trainer.mirror", str(self._sweep), *quiet]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        except OSError as error:
            complain(f"no process can be started for it ({error.strerror})")
            self._not_before = float("inf")

    def close(self, *, hurry: bool = False) -> None:
        """Let the process tell what there is to tell; one that gets nowhere is ended."""
        self._run_id = ""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with suppress(OSError):
            process.stdin.close()
        left: float = float("inf")
        while True:
            try:
                process.wait(HURRY_SECONDS if hurry else DRAIN_SECONDS)
                return
            except subprocess.TimeoutExpired:
                before, left = left, sum(1 for _ in untold(self._sweep))
                if hurry or left >= before:
                    process.kill()
                    process.wait()
                    complain("it has not taken all that there is to tell")
                    return

    def _send(self, run_id: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it has failed; check() sees to it
                self._process.stdin.write(f"{run_id}\n".encode())
                self._process.stdin.flush()


def tell_rest(sweep: Path) -> None:
    """Tell W&B of what has ended without being told, while its worker was killed for example."""
    if next(untold(sweep), None) is not None:
        mirror = Mirror(sweep)
        mirror.start()
        mirror.close()


def complain(why: str) -> None:
    """The one warning that W&B gets."""
    sys.stderr.write(f"isoflop: W&B: {why}; runs go on, their folders have it all, and `isoflop sync` hands it in\n")
    sys.stderr.flush()


def untold(sweep: Path) -> Iterator[tuple[RunFolder, RunConfig]]:
    """Runs of a sweep that have ended and ask for a mirror, and that W&B does not have whole."""
    for path in sorted(sweep.glob("*/points.jsonl")):
        run = RunFolder(path.parent)
        if is_whole(run):
            continue
        with suppress(UserError):  # a damaged folder is its worker's to report
            config = run.read_config()
            if is_tracked(config.runtime.tracking) and has_ended(config, run.points()):
                yield run, config


class Input:
    """Run ids as they come."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._news = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> str | None:
        """The run named last, waited for; None once no more can come."""
        line = self._lines.get()
        while line is not None and not self._lines.empty():
            later = self._lines.get()
            if later is None:
                self._lines.put(None)
                break
            line = later
        return line

    def wait(self, seconds: float) -> bool:
        """Pause; whether there is a run after the one being followed, or will be none."""
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
        self._lines.put(None)
        self._news.set()


class Teller:
    """Tells W&B of one run after another."""

    def __init__(self, sweep: Path) -> None:
        self._sweep, self._input = sweep, Input()
        self._began = time.monotonic()
        self.telling: RunFolder | None = None
        """The run that W&B is being told of right now,"""
        self.since = 0.0
        """and since when."""

    def run(self) -> None:
        """Follow what is named until nothing more can be, then see to the rest of the sweep."""
        while (run_id := self._input.next()) is not None:
            run = RunFolder(self._sweep / run_id)
            with suppress(UserError):
                self._follow(run, run.read_config())
        for run, config in untold(self._sweep):
            with suppress(UserError):
                self._follow(run, config)

    def _follow(self, run: RunFolder, config: RunConfig) -> None:
        """Tell W&B of a run until it ends, or its worker goes on to another."""
        place = run.path / "wandb"
        self.telling, self.since = run, time.monotonic()
        place.mkdir(exist_ok=True)
        lock, deadline = Lock(place), self.since + OTHERS_SECONDS
        while not lock.acquire():  # another worker's mirror that is about to leave it
            if time.monotonic() > deadline:
                return
            time.sleep(0.2)
        try:
            if not is_whole(run):
                self._tell(run, config)
        finally:
            lock.release()

    def _tell(self, run: RunFolder, config: RunConfig) -> None:
        told: WandbRun | None = None
        last = False
        while True:
            attempts = run.attempts()
            begun = bool(attempts) and (last or "why" not in attempts[-1] or has_ended(config, run.points()))
            if told is None and begun:  # not by the attempt before, which has been closed
                config = run.read_config()  # its kernels are chosen just before the first attempt
                told = WandbRun(run.path, story_of(run, config), config.runtime.tracking)
            if told is not None:
                story = story_of(run, config)
                told.hand_over(story.rows)
                if last or story.summary:
                    told.finish(story.summary)
                    if story.summary:
                        mark_whole(run, config.runtime.tracking.mode.value)
            if last or (told is not None and story.summary):
                break
            self.telling = None
            last = self._input.wait(max(config.runtime.tracking.every_seconds, self._owed()))
            self.telling, self.since = run, time.monotonic()
        self.telling = None
        self._input.wait(self._owed())

    def _owed(self) -> float:
        """Seconds to pause so that no more than the share of a core is taken."""
        return max(0.0, (processor_seconds() - ADVANCE_SECONDS) / SHARE - (time.monotonic() - self._began))


def processor_seconds() -> float:
    """What this process and its children, W&B's among them, have used."""
    total, tick = time.process_time(), os.sysconf("SC_CLK_TCK")
    with suppress(OSError):  # only Linux tells
        for child in Path("/proc/self/task").glob("*/children"):
            for pid in child.read_text().split():
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / tick
    return total


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
