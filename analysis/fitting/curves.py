"""Loss curves as arrays, and their ends: each run's rows in the last part of its schedule, laid on a grid of C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.fitting.columns import columns, one_length
from analysis.fitting.values import Bools, Floats, Ints
from trainer.errors import UserError

DECAYED = 0.5  # of its largest learning rate: a schedule that ends above it has not decayed
ROUNDING = 1e-9  # of progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Loss curves: the rows of all runs in any order, each (rows,), but for ``names`` and ``params``, (runs,).

    Numbers may be given as any columns, of which values are taken by position. From a table, where each row names its
    run, :meth:`of_rows` makes them.

    Raises
    ------
    UserError
        If columns differ in length, ``run`` points at no run, or a number is out of range: N, D, C and L are finite and
        positive; progress and learning rate may be 0 too, and NaN where they are not known.
    """

    names: tuple[str, ...]
    """The runs."""
    params: Floats
    """N of each run."""
    run: Ints
    """Index into ``names``."""
    tokens: Floats
    """D so far, in tokens."""
    flops: Floats
    """C so far, in FLOPs."""
    loss: Floats
    """L, in any one unit."""
    progress: Floats
    """Share of the run's schedule that is done, in (0, 1]; rows where it is NaN do not count."""
    lr: Floats | None = None
    """Learning rate, NaN where it is not known; None where it is known nowhere."""

    def __post_init__(self) -> None:
        """Take any columns as arrays.

        Raises
        ------
        UserError
            If they are no loss curves.
        """
        (params,) = columns(params=self.params)
        one_length("names", self.names, "params", params)
        found = _checked({name: getattr(self, name) for name in ("tokens", "flops", "loss", "progress")}, self.lr)
        run = np.asarray(self.run)
        one_length("run", run, "tokens", found["tokens"])
        if len(run) and (run.dtype.kind not in "iu" or run.min() < 0 or run.max() >= len(params)):
            raise UserError(
                f"run must hold whole numbers from 0 to {len(params) - 1}, each the place of a run in names."
            )
        for name, column in {"params": params, **found}.items():
            object.__setattr__(self, name, column)
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "run", run.astype(np.int64, copy=False))

    @classmethod
    def of_rows(
        cls,
        *,
        run_id: Sequence[str] | npt.NDArray[np.object_] | pd.Series,
        params: npt.ArrayLike,
        tokens: npt.ArrayLike,
        flops: npt.ArrayLike,
        loss: npt.ArrayLike,
        progress: npt.ArrayLike,
        lr: npt.ArrayLike | None = None,
    ) -> Curves:
        """From columns of one length, (rows,), as a table has them; a run's N is that of its first row.

        Raises
        ------
        UserError
            If columns differ in length, a row names no run, or a number is out of range.
        """
        column = run_id if isinstance(run_id, pd.Series) else np.asarray(run_id, dtype=object)
        codes, names = pd.factorize(column)
        rows = {"params": params, "tokens": tokens, "flops": flops, "loss": loss, "progress": progress}
        found = _checked(rows, lr)
        n = found.pop("params")
        one_length("run_id", codes, "params", n)
        if (codes < 0).any():
            raise UserError(f"run_id is missing in row {int(np.argmin(codes)) + 1}; leave such rows out.")
        first = np.full(len(names), len(codes))
        np.minimum.at(first, codes, np.arange(len(codes)))
        return cls(names=tuple(map(str, names)), params=n[first], run=codes, **found)

    def of_runs(self, names: Sequence[str]) -> Curves:
        """The rows of some runs."""
        wanted = set(names)
        kept = np.array([name in wanted for name in self.names], dtype=np.bool_)[self.run]
        rows = {name: getattr(self, name)[kept] for name in ("run", "tokens", "flops", "loss", "progress")}
        return replace(self, **rows, lr=None if self.lr is None else self.lr[kept])

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


def _checked(rows: dict[str, npt.ArrayLike], lr: npt.ArrayLike | None) -> dict[str, Floats]:
    """The columns of curves as arrays; progress and learning rate may be 0, and NaN where they are not known."""
    given = rows if lr is None else rows | {"lr": lr}
    found = columns(blank=("progress", "lr"), zero=("progress", "lr"), **given)
    return dict(zip(given, found, strict=True))


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
