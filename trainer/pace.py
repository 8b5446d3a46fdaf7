"""How much of a machine that trains a mirror may take: whatever stands idle, and beside that a share of a core."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 3.0
"""Over how long a core must stand idle to be free;"""
IDLE_CORES = 0.75
"""how much of one, all cores together."""


class Cores:
    """The cores that this process may use."""

    def __init__(self) -> None:
        self._at, self._idle, self._ours, self._free = time.monotonic(), idle_seconds(), 0.0, False

    def free(self, ours: float = 0.0) -> bool:
        """Whether one has stood idle lately; never where the system does not tell.

        Parameters
        ----------
        ours
            Processor seconds that whoever asks has taken up to now: a core that is busy with these is free.
        """
        now = time.monotonic()
        if now - self._at >= LOOK_SECONDS:
            idle = idle_seconds()
            if idle is not None and self._idle is not None:
                self._free = (idle - self._idle + ours - self._ours) / (now - self._at) >= IDLE_CORES
            self._at, self._idle, self._ours = now, idle, ours
        return self._free


class Pace:
    """The account of a process that keeps to what is idle and to a share of a core."""

    def __init__(self) -> None:
        self._began, self._last, self._taken = time.monotonic(), processor_seconds(), 0.0
        self._cores = Cores()

    def allows(self, share: float) -> bool:
        """Whether to go on now: a core is free, or no more than the share of one was taken from those that work."""
        used = processor_seconds()
        free = self._cores.free(used)
        if not free:
            self._taken += used - self._last
        self._last = used
        return free or self._taken <= share * (time.monotonic() - self._began)


def idle_seconds() -> float | None:
    """Core-seconds since the machine started in which cores of ours did nothing; only Linux tells."""
    try:
        ours, lines = os.sched_getaffinity(0), Path("/proc/stat").read_text().splitlines()
        cores = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("cpu")}
        ticks = sum(
            int(cores[f"cpu{core}"][field]) for core in ours for field in (3, 4)
        )  # idle, and waiting for a disk
    except (OSError, AttributeError, KeyError, IndexError, ValueError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def processor_seconds() -> float:
    """What this process and its children have used; the children only where Linux tells."""
    total, tick = time.process_time(), os.sysconf("SC_CLK_TCK")
    with suppress(OSError):
        for child in Path("/proc/self/task").glob("*/children"):
            for pid in child.read_text().split():
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / tick
    return total
