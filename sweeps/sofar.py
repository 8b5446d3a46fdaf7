"""The fit of what is done so far, for whoever watches: made in a process of its own, and again when points end."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from analysis.config import FitConfig
from sweeps.paths import SweepFolder
from sweeps.state import PointState, State
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


def fit_so_far(folder: SweepFolder, config: FitConfig) -> SoFar:
    """Fit the done points of a sweep, quickly: few replicates, and only what is looked at."""
    from analysis.fit import fit_tables
    from analysis.fitting.values import Refused
    from analysis.result import Approach
    from analysis.text import SHORT_TITLES, estimate_text
    from sweeps.fit import sweep_tables

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
    return SoFar(points=len(fit.primary.rows), lines=lines)


class FitSoFar:
    """Keeps a fit as fresh as the set of done points; asking never waits."""

    def __init__(self, folder: SweepFolder, config: FitConfig) -> None:
        self._folder, self._config = folder, config
        self._pool: ProcessPoolExecutor | None = None
        self._begun: frozenset[tuple[str, float | None]] = frozenset()
        self._coming: Future[SoFar] | None = None
        self._newest: SoFar | None = None

    def of(self, states: Sequence[PointState]) -> SoFar | None:
        """The newest fit there is; another one is begun where points have ended since. None before the first."""
        if self._coming is not None and self._coming.done():
            coming, self._coming = self._coming, None
            try:
                self._newest = coming.result()
            except Exception as error:  # a watcher goes on watching
                self._newest = SoFar(points=0, refused=f"{type(error).__name__}: {error}")
                self._pool = None
        done = frozenset((state.point_id, state.loss) for state in states if state.state is State.done)
        if self._coming is None and done != self._begun and len(done) >= FEWEST:
            self._begun = done
            self._coming = self._submit()
        return self._newest

    @property
    def busy(self) -> bool:
        """Whether a fit is being made."""
        return self._coming is not None and not self._coming.done()

    def close(self) -> None:
        """Let go of the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in list(getattr(self._pool, "_processes", None) or {}):
                with suppress(ProcessLookupError):
                    os.kill(process, 9)
            self._pool = None

    def _submit(self) -> Future[SoFar]:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_modest)
        return self._pool.submit(fit_so_far, self._folder, self._config)


def _modest() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who watches
    os.nice(NICE)
