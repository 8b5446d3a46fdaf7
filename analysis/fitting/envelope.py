"""Approach 1: the lowest loss of all curves at each C, and power laws through who holds it (Hoffmann et al. 2022, 3.1).

Only the last part of each run's schedule counts: before it the learning rate has not decayed, and the envelope compares
schedules instead of sizes; a run that never decayed says nothing at all. On isoFLOP designs the envelope is then a
window below each budget. A point of it is

- the lowest of the runs that pass this C, interpolated in log C, and lower than all that was reached at less C;
- not held by the smallest or the largest size that was trained nearby: there the optimum may lie outside the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting.curves import Curves, Tails
from analysis.fitting.polynomials import polynomials
from analysis.fitting.powerlaw import power_laws, to_laws
from analysis.fitting.values import Bools, EnvelopeFit, Floats, Ints, Refused
from trainer.errors import UserError

GRID = 1500
GRID_RESAMPLED = 300
BATCH = 250  # replicates at a time, so that they stay in the cache
NEARBY = 1.5  # sizes whose tail comes within this factor of C count as trained nearby
LEAST_RUNS = 3
LEAST_SIZES = 3  # on the envelope: with two, a single step from one to the other is the whole law
LEAST_RANGE = 1.5  # of C, for an exponent


def fit_envelope(curves: Curves, *, tail: float = 0.85, undecayed: bool = False) -> EnvelopeFit | Refused:
    """Fit Approach 1.

    Parameters
    ----------
    curves
        Loss curves, C and N counted alike in all of them; ``Curves.of_rows`` makes them from columns.
    tail
        Only rows with progress of at least this count: a share, from 0 to below 1.
    undecayed
        Count runs whose learning rate ends above half of its largest as well. Runs whose learning rate is not known
        count in any case.

    Returns
    -------
    EnvelopeFit
        The envelope's points, and N*, D* and L* as power laws in C through them.
    Refused
        With the reason: no curves, too few runs that decayed, or an envelope that is too short or held by one size.

    Raises
    ------
    UserError
        If ``tail`` is out of range; what is no loss curve, :class:`Curves` has refused.

    References
    ----------
    Hoffmann et al., "Training compute-optimal large language models" (2022), section 3.1.
    """
    if not 0 <= tail < 1:
        raise UserError(f"fit.tail={tail:g} is out of range; give a number from 0 to below 1, e.g. 0.85.")
    if not len(curves.loss):
        return Refused(reason="there are no loss curves, only final losses.")
    tails, left_out = _tails(curves, tail, undecayed, np.ones(len(curves.names), dtype=np.bool_))
    why = f"; {left_out} never decayed (fit.undecayed=true counts them)" if left_out else ""
    if len(tails.names) < LEAST_RUNS:
        few = f"{len(tails.names)} run(s) have two or more rows at progress {tail:g} or later"
        return Refused(reason=f"{few}, and {LEAST_RUNS} are needed{why}.")
    grid = tails.grid(GRID)
    lowest = Envelopes.of(tails, grid).lowest(np.ones((1, len(tails.names)), dtype=np.bool_), None)
    used = lowest.used[0]
    at, run = grid[used], lowest.run[0][used]
    sizes = len(np.unique(tails.params[run]))
    if sizes < LEAST_SIZES or at[-1] - at[0] < np.log(LEAST_RANGE):
        span = f"over a factor {np.exp(at[-1] - at[0]):.3g} of C" if len(at) else "at any C"
        return Refused(
            reason=f"the envelope has {sizes} size(s) with larger and smaller ones nearby {span}: no exponent{why}."
        )
    values, curvature = lowest.laws(tails, grid)
    return EnvelopeFit(
        flops=np.exp(at),
        params=tails.params[run],
        tokens=np.exp(lowest.log_tokens[0][used]),
        loss=np.exp(lowest.log_loss[0][used]),
        curvature=float(curvature[0]),
        undecayed=left_out,
        run_id=tuple(tails.names[i] for i in run),
        tail=tail,
        runs=len(tails.names),
        runs_touching=len(np.unique(run)),
        censored=int((lowest.frontier[0] & ~used).sum()),
        laws=to_laws(values[0], (float(np.exp(at[0])), float(np.exp(at[-1])))),
    )


def refit_envelope(
    curves: Curves,
    present: Bools,
    run_ids: tuple[str, ...],
    *,
    tail: float = 0.85,
    undecayed: bool = False,
    shift: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Fit again with only some runs, or with their losses moved: the bootstrap.

    Parameters
    ----------
    present
        (replicates, len(run_ids)): whether the run of ``run_ids`` was drawn; runs not named there are not.
    shift
        (replicates, len(run_ids)): added to the log loss of a run's whole tail; None for nothing.

    Returns
    -------
    values
        (replicates, 6), rows as ``PowerLaws.array()``; NaN where the remaining runs give no exponent.
    curvature
        (replicates,): as ``EnvelopeFit.curvature``.
    """
    values, curvature = np.full((len(present), 6), np.nan), np.full(len(present), np.nan)
    column = {name: i for i, name in enumerate(run_ids)}
    tails, _ = _tails(curves, tail, undecayed, np.array([name in column for name in curves.names], dtype=np.bool_))
    if len(tails.names) < LEAST_RUNS:
        return values, curvature
    index = np.array([column[name] for name in tails.names])
    grid = tails.grid(GRID_RESAMPLED)
    envelopes = Envelopes.of(tails, grid)
    for first in range(0, len(present), BATCH):
        batch = slice(first, first + BATCH)
        moved = None if shift is None else shift[batch][:, index]
        values[batch], curvature[batch] = envelopes.lowest(present[batch][:, index], moved).laws(tails, grid)
    return values, curvature


def _tails(curves: Curves, tail: float, undecayed: bool, used: Bools) -> tuple[Tails, int]:
    """The tails of the runs ``used`` (runs,), and how many of these are left out because they never decayed."""
    never = np.zeros_like(used) if undecayed else used & curves.undecayed(tail)
    return Tails.of(curves, tail, used & ~never), int(never.sum())


@dataclass(frozen=True, eq=False)
class Lowest:
    """The envelope of each replicate; arrays (replicates, grid)."""

    run: Ints
    """Who is lowest; meaningless where no run passes."""
    log_loss: Floats
    """Infinite where no run passes."""
    log_tokens: Floats
    frontier: Bools
    """Lower than all at less C."""
    used: Bools
    """On the frontier, and held by neither the smallest nor the largest size nearby."""

    def laws(self, tails: Tails, grid: Floats) -> tuple[Floats, Floats]:
        """(replicates, 6) power laws through the points used, and the curvature of log N in log C."""
        used, log_n = self.used, np.log(tails.params)[self.run]
        values = power_laws(grid, log_n, self.log_tokens, self.log_loss, used)
        first = np.where(used, grid, np.inf).min(axis=1)
        last = np.where(used, grid, -np.inf).max(axis=1)
        centre, scale = (grid[0] + grid[-1]) / 2, (grid[-1] - grid[0]) / 2 or 1.0
        curvature = 2 * polynomials((grid - centre) / scale, log_n, used.astype(np.float64), 2)[:, 2] / scale**2
        short = ~(last - first >= np.log(LEAST_RANGE))
        values[short], curvature[short] = np.nan, np.nan
        return values, curvature


@dataclass(frozen=True, eq=False)
class Envelopes:
    """The curves on a grid of C, ready to be searched for any choice of runs."""

    losses: Ranked
    log_tokens: Floats
    """One per pair of ``losses``."""
    smallest: Ranked
    largest: Ranked
    log_n: Floats
    """(runs,)."""

    @classmethod
    def of(cls, tails: Tails, grid: Floats) -> Envelopes:
        """Of the tails, at the log C of ``grid``."""
        run, column = tails.crossings(grid)
        loss, log_tokens = tails.interpolated(run, grid[column])
        near, at = tails.crossings(grid, np.log(NEARBY))
        log_n = np.log(tails.params)
        return cls(
            Ranked.of(run, column, np.log(loss), len(grid)),
            log_tokens,
            Ranked.of(near, at, log_n[near], len(grid)),
            Ranked.of(near, at, -log_n[near], len(grid)),
            log_n,
        )

    def lowest(self, present: Bools, shift: Floats | None) -> Lowest:
        """The envelope of the runs ``present`` (replicates, runs), log losses moved by ``shift`` alike."""
        log_loss, pair = self.losses.least(present, shift)
        run = self.losses.run[pair]
        frontier = np.isfinite(log_loss) & (log_loss <= np.minimum.accumulate(log_loss, axis=1))
        smallest, largest = self.smallest.least(present, None)[0], -self.largest.least(present, None)[0]
        log_n = self.log_n[run]
        inside = (smallest < log_n) & (log_n < largest)
        return Lowest(run, log_loss, self.log_tokens[pair], frontier, frontier & inside)


@dataclass(frozen=True, eq=False)
class Ranked:
    """Pairs of a run and a column of the grid, each with a number, and each column's pairs by that number."""

    run: Ints
    """(pairs,)."""
    number: Floats
    order: Ints
    """(pairs,): column after column, rising within each."""
    starts: Ints
    """(columns + 1,): where each column begins in ``order``, and the end."""

    @classmethod
    def of(cls, run: Ints, column: Ints, number: Floats, columns: int) -> Ranked:
        """``run``, ``column`` and ``number`` of each pair, for so many columns."""
        counts = np.bincount(column, minlength=columns)
        return cls(run, number, np.lexsort((number, column)), np.concatenate([[0], np.cumsum(counts)]))

    def least(self, present: Bools, shift: Floats | None) -> tuple[Floats, Ints]:
        """(replicates, columns): the least number of the runs present, plus their shift, and its pair; else infinity.

        A column is searched from its lowest number up, until no replicate can find anything lower.
        """
        gain = 0.0 if shift is None else float(shift.min())
        columns = len(self.starts) - 1
        best, pair = np.full((len(present), columns), np.inf), np.zeros((len(present), columns), dtype=np.int64)
        open_, rank = np.arange(columns), 0
        while True:
            open_ = open_[self.starts[open_] + rank < self.starts[open_ + 1]]
            at = self.order[self.starts[open_] + rank]
            going = (best[:, open_] > self.number[at] + gain).any(axis=0)
            open_, at = open_[going], at[going]
            if not len(open_):
                return best, pair
            run = self.run[at]
            number = self.number[at] if shift is None else self.number[at] + shift[:, run]
            lower = present[:, run] & (number < best[:, open_])
            best[:, open_] = np.where(lower, number, best[:, open_])
            pair[:, open_] = np.where(lower, at, pair[:, open_])
            rank += 1
