"""Approach 1: the lowest loss of all curves at each C, and power laws through who holds it (Hoffmann et al. 2022, 3.1).

Only the last part of each run's schedule counts: before it the learning rate has not decayed, and the envelope compares
schedules instead of sizes. On isoFLOP designs the envelope is then a window below each budget. A point of it is

- the lowest of the runs that pass this C, interpolated in log C, and lower than all that was reached at less C;
- not held by the smallest or the largest size that was trained nearby: there the optimum may lie outside the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits import Bools, EnvelopeFit, Floats, Ints, Refused
from analysis.powerlaw import power_laws, to_laws

GRID = 1500
GRID_RESAMPLED = 300
NEARBY = 1.5  # sizes whose tail comes within this factor of C count as trained nearby
LEAST_RANGE = 1.5  # of C, for an exponent


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The rows of all curves, any order; arrays of one length."""

    run_id: tuple[str, ...]
    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    progress: Floats
    """Share of the run's schedule that is done."""


def fit_envelope(curves: Curves, *, tail: float = 0.85) -> EnvelopeFit | Refused:
    """Fit Approach 1 from the rows with progress of at least ``tail``."""
    if not len(curves.loss):
        return Refused(reason="there are no loss curves, only final losses.")
    tails = _Tails.of(curves, tail)
    if len(tails.names) < 3:
        return Refused(
            reason=f"{len(tails.names)} run(s) have two or more rows at progress {tail:g} or later; 3 are needed."
        )
    grid = tails.grid(GRID)
    everyone = np.ones((1, len(tails.names)), dtype=np.bool_)
    winner, used, loss = tails.envelope(grid, everyone)
    reached = winner[0] >= 0
    kept, runs = used[0], winner[0][used[0]]
    sizes = len(np.unique(tails.params[runs]))
    at = grid[kept]
    if sizes < 2 or at[-1] - at[0] < np.log(LEAST_RANGE):
        span = f"over a factor {np.exp(at[-1] - at[0]):.3g} of C" if len(at) else "at any C"
        return Refused(
            reason=f"the envelope has {sizes} size(s) with larger and smaller ones nearby {span}: no exponent."
        )
    log_n, log_d = np.log(tails.params[runs]), tails.log_tokens(runs, at)
    values = power_laws(
        at, log_n[None], log_d[None], np.log(loss[0][kept])[None], np.ones((1, len(at)), dtype=np.bool_)
    )
    return EnvelopeFit(
        flops=np.exp(at),
        params=tails.params[runs],
        tokens=np.exp(log_d),
        loss=loss[0][kept],
        run_id=tuple(tails.names[run] for run in runs),
        tail=tail,
        runs=len(tails.names),
        runs_touching=len(np.unique(runs)),
        censored=int(reached.sum() - kept.sum()),
        laws=to_laws(values[0], (float(np.exp(at[0])), float(np.exp(at[-1])))),
    )


def refit_envelope(curves: Curves, present: Bools, run_ids: tuple[str, ...], *, tail: float = 0.85) -> Floats:
    """Fit again with only some runs: the bootstrap.

    Parameters
    ----------
    present
        (replicates, runs): whether the run of ``run_ids`` was drawn.

    Returns
    -------
    (replicates, 6), rows as ``PowerLaws.array()``; NaN where the remaining runs give no exponent.
    """
    tails = _Tails.of(curves, tail)
    column = {name: i for i, name in enumerate(run_ids)}
    drawn = np.stack(
        [present[:, column[name]] if name in column else np.zeros(len(present), np.bool_) for name in tails.names],
        axis=1,
    )
    grid = tails.grid(GRID_RESAMPLED)
    out = []
    for part in np.array_split(drawn, max(1, len(drawn) // 250)):  # in pieces that stay in the cache
        winner, used, loss = tails.envelope(grid, part)
        log_n = np.log(tails.params)[winner]
        log_d = tails.token_table(grid)[winner, np.arange(len(grid))]
        values = power_laws(grid, log_n, log_d, np.log(np.where(used, loss, 1.0)), used)
        first = np.where(used, grid, np.inf).min(axis=1)
        last = np.where(used, grid, -np.inf).max(axis=1)
        values[~(last - first >= np.log(LEAST_RANGE))] = np.nan
        out.append(values)
    return np.concatenate(out)


@dataclass(frozen=True, eq=False)
class _Tails:
    """Each run's rows at the end of its schedule, by rising C."""

    names: tuple[str, ...]
    params: Floats
    log_flops: tuple[Floats, ...]
    loss: tuple[Floats, ...]
    tokens: tuple[Floats, ...]

    @classmethod
    def of(cls, curves: Curves, tail: float) -> _Tails:
        keep = np.flatnonzero(curves.progress >= tail - 1e-9)
        names, index = np.unique(np.array(curves.run_id, dtype=object)[keep].astype(str), return_inverse=True)
        parts = []
        for run, name in enumerate(names):
            rows = keep[index == run]
            # Of two rows at one C the later counts, e.g. the final loss beside the last logged one.
            _, last = np.unique(curves.flops[rows][::-1], return_index=True)
            rows = rows[::-1][last]
            if len(rows) >= 2:
                logs = np.log(curves.flops[rows])
                parts.append((str(name), curves.params[rows[0]], logs, curves.loss[rows], np.log(curves.tokens[rows])))
        return cls(
            tuple(part[0] for part in parts),
            np.array([part[1] for part in parts], dtype=np.float64),
            tuple(part[2] for part in parts),
            tuple(part[3] for part in parts),
            tuple(part[4] for part in parts),
        )

    def grid(self, count: int) -> Floats:
        """Log C, evenly spaced over all tails."""
        return np.linspace(min(c[0] for c in self.log_flops), max(c[-1] for c in self.log_flops), count)

    def token_table(self, grid: Floats) -> Floats:
        """(runs, grid): log D of each run at each C."""
        return np.stack([np.interp(grid, c, d) for c, d in zip(self.log_flops, self.tokens, strict=True)])

    def log_tokens(self, runs: Ints, at: Floats) -> Floats:
        """Log D of run ``runs[i]`` at log C ``at[i]``."""
        return np.asarray(self.token_table(at)[runs, np.arange(len(at))])

    def loss_table(self, grid: Floats) -> Floats:
        """(runs, grid): loss of each run at each C; infinite where its tail does not reach."""
        rows = [
            np.interp(grid, c, loss, left=np.inf, right=np.inf)
            for c, loss in zip(self.log_flops, self.loss, strict=True)
        ]
        return np.stack(rows)

    def envelope(self, grid: Floats, present: Bools) -> tuple[Ints, Bools, Floats]:
        """For each row of ``present`` (batch, runs): who holds the envelope, where it counts, and its loss.

        All three are (batch, grid); the winner is -1 where no run present passes, or one was lower at less C.
        """
        table = self.loss_table(grid)
        winner = _first_present(np.argsort(table, axis=0, kind="stable"), np.isfinite(table), present)
        columns = np.arange(len(grid))
        loss = np.where(winner >= 0, table[winner, columns], np.inf)
        before = np.minimum.accumulate(loss, axis=1)
        frontier = (winner >= 0) & (loss <= before)
        winner = np.where(frontier, winner, -1)
        low = np.array([c[0] for c in self.log_flops])[:, None] - np.log(NEARBY) <= grid
        near = low & (np.array([c[-1] for c in self.log_flops])[:, None] + np.log(NEARBY) >= grid)
        by_size = np.broadcast_to(np.argsort(self.params, kind="stable")[:, None], table.shape)
        smallest = _first_present(by_size, near, present)
        largest = _first_present(by_size[::-1], near, present)
        inside = (self.params[smallest] < self.params[winner]) & (self.params[winner] < self.params[largest])
        return winner, frontier & inside, loss


def _first_present(order: Ints, possible: Bools, present: Bools) -> Ints:
    """(batch, grid): at each C, the first run of ``order`` (runs, grid) that is possible there and present; else -1."""
    columns = np.arange(order.shape[1])
    found = np.full((len(present), order.shape[1]), -1)
    open_ = np.flatnonzero(possible.any(axis=0))
    for rank in order:
        if not len(open_):
            break
        run = rank[open_]
        hit = present[:, run] & possible[run, columns[open_]] & (found[:, open_] < 0)
        found[:, open_] = np.where(hit, run, found[:, open_])
        open_ = open_[(found[:, open_] < 0).any(axis=0)]
    return found
