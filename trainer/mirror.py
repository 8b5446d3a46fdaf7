"""The worker's end of mirroring to W&B: names runs to a process beside it, so that training never waits for W&B.

The process (:mod:`trainer.teller`) reads run ids from its standard input and learns the rest from the run folders. It
is started once a core is free, or once the worker has trained so long that the share which mirroring may take covers
the start, or when the worker has nothing left to train. A failure ends it; another one is started after a while, and
what W&B has or has not is asked of W&B and the disk, never remembered.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.errors import UserError
from trainer.pace import Cores
from trainer.runfolder import RunConfig, RunFolder
from trainer.story import has_ended, is_whole
from trainer.tracking import is_tracked

START_SECONDS = 1.2
"""Processor time that it takes to start the process, import W&B and start W&B's own process."""
RETRY_SECONDS = 60.0
"""How long W&B is left alone after a failure; doubled with each in a row, to an hour."""
DRAIN_SECONDS = 30.0
"""A worker with nothing left to train waits for its mirror as long as that brings a run to W&B in this time;"""
HURRY_SECONDS = 10.0
"""one that was asked to leave waits so long."""


class Mirror:
    """Starts the process when a run first asks for it, and another one when it is gone."""

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._process: subprocess.Popen[bytes] | None = None
        self._named: list[str] = []
        """What was followed up to now: run ids, those that were followed together in one line."""
        self._share = 0.0
        self._failures = 0
        self._began = self._not_before = 0.0
        self._cores = Cores()

    def follow(self, *runs: tuple[RunFolder, RunConfig]) -> None:
        """Tell W&B of these runs from now on, of those whose config asks for it."""
        tracked = [(run, config) for run, config in runs if is_tracked(config.runtime.tracking)]
        if not tracked:
            return
        if not self._named:
            self._began, self._cores = time.monotonic(), Cores()
        self._named.append(" ".join(run.run_id for run, _ in tracked))
        self._share = tracked[0][1].runtime.tracking.share
        if self._process is not None and self._process.poll() is None:
            self._send(self._named[-1:])
        else:
            self.check()

    def check(self) -> None:
        """Start the process where there is none and it is time; where it failed, once W&B has been left alone."""
        now = time.monotonic()
        if not self._named or now < self._not_before:
            return
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._failures += 1
            self._began, self._not_before = now, now + RETRY_SECONDS * min(60, 2 ** (self._failures - 1))
        elif self._process is None and (self._cores.free() or self._share * (now - self._began) >= START_SECONDS):
            self.start()

    def start(self) -> None:
        """Start the process."""
        quiet = ["quiet"] if self._failures else []  # it has complained already
        command = [sys.executable, "-m", "trainer.teller", str(self._sweep), *quiet]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        except OSError as error:
            complain(f"no process can be started for it ({error.strerror})")
            self._not_before = float("inf")
        self._send(self._named)

    def close(self, *, hurry: bool = False) -> None:
        """Let the process tell what there is to tell; one that gets nowhere is ended."""
        if self._process is None and self._named and time.monotonic() >= self._not_before:
            self.start()
        process, self._process, self._named = self._process, None, []
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

    def _send(self, lines: list[str]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it has failed; check() sees to it
                self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
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
