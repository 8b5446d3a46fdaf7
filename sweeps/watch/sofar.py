"""The fit of what is done so far, for whoever watches: made in a process of its own, and again when points end."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from analysis.config import FitConfig
from sweeps.config import Config
from sweeps.dispatch.state import PointState, State
from sweeps.paths import SweepFolder
from trainer.errors import UserError

REPLICATES = 200
"""Of the bootstrap, at most: enough for an interval that one glances at."""
FEWEST = 4
"""Points below which there is nothing to fit."""
NICE = 10


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one approach says so far."""

    approach: str
    a: str
    b: str
    remark: str


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """A fit of the points that were done when it began."""

    points: int
    lines: Sequence[Line] = ()
    refused: str = ""
    """Why there is no fit at all."""
    target: str = ""
    """How precisely they tell the sweep's target, against what is wanted and the cost limit; empty without one."""


def fit_so_far(folder: SweepFolder, config: FitConfig, aim: Config | None = None) -> SoFar:
    """Fit the done points of a sweep, quickly: few replicates, and only what is looked at.

    Parameters
    ----------
    aim
        Whose ``sweep.target`` and ``sweep.limit`` are told of, if it states a target.
    """
    from analysis.fit import fit_tables
    from analysis.fitting.values import Refused
    from analysis.result import Approach
    from analysis.text import SHORT_TITLES, estimate_text
    from sweeps.watch.measured import sweep_tables

    quick = replace(config, replicates=min(config.replicates, REPLICATES), profile=False, compare=False)
    try:
        fit = fit_tables(sweep_tables(folder, None), quick)
    except UserError as error:
        return SoFar(points=0, refused=str(error))
    lines = []
    for name, found in fit.primary.approaches.items():
        if isinstance(found, Refused) or not isinstance(found, Approach):
            lines.append(Line(approach=SHORT_TITLES[name], a="–", b="–", remark=f"refused: {found.reason}"))
        elif not found.quotable:
            lines.append(Line(approach=SHORT_TITLES[name], a="–", b="–", remark=found.remark))
        else:
            a, b = estimate_text(found.a), estimate_text(found.b)
            lines.append(Line(approach=SHORT_TITLES[name], a=a, b=b, remark=found.remark))
    return SoFar(points=len(fit.primary.rows), lines=lines, target="" if aim is None else target_line(folder, aim))


def target_line(folder: SweepFolder, config: Config) -> str:
    """How precisely the done points tell the target; empty where the sweep states none."""
    from sweeps.planning.precision import precision_so_far

    target, limit = config.sweep.target, config.sweep.limit
    if target.flops is None and target.params is None and target.half_width is None:
        return ""
    reached = precision_so_far(config, folder)
    if reached is None:
        return "the points tell no law of the target yet"
    cost = f" of at most {limit.flops:.3g}" if limit.flops is not None else ""
    hours = f", at most {limit.device_hours:g} device hours" if limit.device_hours is not None else ""
    return f"{reached.text}{cost}{hours}" + (": as wanted" if reached.enough else "")


class FitSoFar:
    """Keeps a fit as fresh as the set of done points; asking never waits."""

    def __init__(self, folder: SweepFolder, config: FitConfig, aim: Config | None = None) -> None:
        self._asked = (folder, config, aim)
        self._begun: frozenset[tuple[str, float | None]] = frozenset()
        self._coming: subprocess.Popen[bytes] | None = None
        self._newest: SoFar | None = None

    def of(self, states: Sequence[PointState]) -> SoFar | None:
        """The newest fit there is; another one is begun where points have ended since. None before the first."""
        if self._coming is not None and self._coming.poll() is not None:
            self._newest, self._coming = _answer(self._coming), None
        done = frozenset((state.point_id, state.loss) for state in states if state.state is State.done)
        if self._coming is None and done != self._begun and len(done) >= FEWEST:
            self._begun = done
            self._coming = self._start()
        return self._newest

    @property
    def busy(self) -> bool:
        """Whether a fit is being made."""
        return self._coming is not None

    def close(self) -> None:
        """End a fit that is being made."""
        if self._coming is not None:
            self._coming.kill()
            self._coming.communicate()
            self._coming = None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sweeps.watch.sofar"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(pickle.dumps(self._asked))
            process.stdin.close()
        return process


def _answer(process: subprocess.Popen[bytes]) -> SoFar:
    """What a process that has ended said: little enough to wait in a pipe."""
    assert process.stdout is not None
    with process.stdout as output:
        said = output.read()
    if process.returncode:
        return SoFar(points=0, refused=f"it ended with exit code {process.returncode}")
    found: SoFar = pickle.loads(said)
    return found


def main() -> None:
    """Fit what standard input names, and leave the answer on standard output."""
    os.nice(NICE)
    folder, config, aim = pickle.load(sys.stdin.buffer)
    from sweeps.watch import sofar  # by its own name, which the pickle carries

    sys.stdout.buffer.write(pickle.dumps(sofar.fit_so_far(folder, config, aim)))


if __name__ == "__main__":
    main()
