"""Loss curves as arrays, and their ends: each run's rows in the last part of its schedule, laid on a grid of C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.fitting.values import Bools, Floats, Ints

DECAYED = 0.5  # of its largest learning rate: a schedule that ends above it has not decayed
ROUNDING = 1e-9  # of progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The rows of all curves, in any order; arrays of one length but for ``names`` and ``params``, one per run."""

    names: tuple[str, ...]
    """The runs."""
    params: Floats
    """(runs,)."""
    run: Ints
    """Index into ``names``."""
    tokens: Floats
    flops: Floats
    loss: Floats
    progress: Floats
    """Share of the run's schedule that is done."""
    lr: Floats | None = None
    """Learning rate, NaN where it is not known; None where it is known nowhere."""

    @classmethod
    def of_rows(
        cls,
        *,
        run_id: Sequence[str] | npt.NDArray[np.object_] | pd.Series,
        params: Floats,
        tokens: Floats,
        flops: Floats,
        loss: Floats,
        progress: Floats,
        lr: Floats | None = None,
    ) -> Curves:
        """From columns of one length, as a table has them; a run's N is that of its first row."""
        column = run_id if isinstance(run_id, pd.Series) else np.asarray(run_id, dtype=object)
        codes, names = pd.factorize(column)
        first = np.full(len(names), len(codes))
        np.minimum.at(first, codes, np.arange(len(codes)))
        return cls(
            names=tuple(map(str, names)),
            params=np.asarray(params[first], dtype=np.float64),
            run=codes.astype(np.int64, copy=False),
            tokens=tokens,
            flops=flops,
            loss=loss,
            progress=progress,
            lr=lr,
        )

    def of_runs(self, names: Sequence[str]) -> Curves:
        """The rows of some runs."""
        wanted = set(names)
        kept = np.array([name in wanted for name in self.names], dtype=np.bool_)[self.run]
        columns = {name: getattr(self, name)[kept] for name in ("run", "tokens", "flops", "loss", "progress")}
        return replace(self, **columns, lr=None if self.lr is None else self.lr[kept])

    def undecayed(self, tail: float) -> Bools:
        """(runs,): the learning rate is known at progress of at least ``tail``, and there above half of its largest."""
        out = np.zeros(len(self.names), dtype=np.bool_)
        if self.lr is None:
            return out
        known = np.flatnonzero(np.isfinite(self.lr))
        run, lr, tokens = self.run[known], self.lr[known], self.tokens[known]
        largest, end, last = np.full((3, len(out)), -np.inf)
        np.maximum.at(largest, run, lr)
        np.maximum.at(end, run, tokens)
        ends = np.flatnonzero((tokens == end[run]) & (self.progress[known] >= tail - ROUNDING))
        last[run[ends]] = lr[ends]
        return (np.bincount(run, minlength=len(out)) >= 2) & (last > DECAYED * largest)


@dataclass(frozen=True, eq=False)
class Tails:
    """Each run's rows at the end of its schedule, by rising C; runs with fewer than two such rows are left out."""

    names: tuple[str, ...]
    params: Floats
    """(runs,)."""
    log_flops: Floats
    """(rows,): run after run."""
    loss: Floats
    log_tokens: Floats
    starts: Ints
    """(runs + 1,): where each run's rows begin, and the end."""

    @classmethod
    def of(cls, curves: Curves, tail: float, used: Bools) -> Tails:
        """The rows at progress of at least ``tail`` of the runs ``used`` (runs,)."""
        rows = np.flatnonzero((curves.progress >= tail - ROUNDING) & used[curves.run])
        rows = rows[np.lexsort((curves.flops[rows], curves.run[rows]))]
        run, flops = curves.run[rows], curves.flops[rows]
        # Of two rows at one C the later counts, e.g. the final loss beside the last logged one; the sort is stable.
        last = np.append((run[1:] != run[:-1]) | (flops[1:] != flops[:-1]), True)[: len(rows)]
        rows, run = rows[last], run[last]
        counts = np.bincount(run, minlength=len(curves.names))
        kept = np.flatnonzero(counts >= 2)
        rows = rows[counts[run] >= 2]
        return cls(
            tuple(curves.names[i] for i in kept),
            curves.params[kept],
            np.log(curves.flops[rows]),
            curves.loss[rows],
            np.log(curves.tokens[rows]),
            np.concatenate([[0], np.cumsum(counts[kept])]),
        )

    @property
    def first(self) -> Floats:
        """(runs,): log C at which each tail begins."""
        return self.log_flops[self.starts[:-1]]

    @property
    def last(self) -> Floats:
        """(runs,): log C at which each tail ends."""
        return self.log_flops[self.starts[1:] - 1]

    def grid(self, count: int) -> Floats:
        """Log C, evenly spaced over all tails."""
        return np.linspace(self.first.min(), self.last.max(), count)

    def crossings(self, grid: Floats, margin: float = 0.0) -> tuple[Ints, Ints]:
        """(pairs,) run and column of ``grid`` wherever a tail, or ``margin`` in log C about it, passes a column."""
        begin = np.searchsorted(grid, self.first - margin, side="left")
        counts = np.searchsorted(grid, self.last + margin, side="right") - begin
        run = np.repeat(np.arange(len(counts)), counts)
        ahead = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return run, np.arange(len(run)) - ahead[run] + begin[run]

    def interpolated(self, run: Ints, log_flops: Floats) -> tuple[Floats, Floats]:
        """(pairs,) loss and log D of runs at ``log_flops`` within their tails, straight between rows in log C."""
        # One search over all runs at once: each run's C is moved up by more than the whole range.
        step = 2 + float(np.ptp(self.log_flops))
        of_row = np.repeat(np.arange(len(self.params)), np.diff(self.starts))
        at = np.searchsorted(self.log_flops + step * of_row, log_flops + step * run, side="right") - 1
        at = np.clip(at, self.starts[run], self.starts[run + 1] - 2)
        share = np.clip((log_flops - self.log_flops[at]) / (self.log_flops[at + 1] - self.log_flops[at]), 0, 1)
        loss = self.loss[at] + share * (self.loss[at + 1] - self.loss[at])
        return loss, self.log_tokens[at] + share * (self.log_tokens[at + 1] - self.log_tokens[at])
