"""How precise any design under a limit could be: a certified bound, by convex optimisation over weights.

A design's criterion is the sum of weighted variances of its targets, averaged over laws: for information M_k under law
k, mean_k sum_t g_kt^T M_k^-1 g_kt. It is convex in the numbers of runs once these need not be whole. Its minimum is
found by conditional gradients that keep all corners (simplicial decomposition; von Hohenbalken, Math. Programming 13,
1977), whose weights move by the multiplicative algorithm (Silvey, Titterington and Torsney, Commun. Statist. A 7, 1978;
Yu, Ann. Statist. 38, 2010).

Its certificate: with d_i = - d criterion / d n_i, one over the criterion is concave in the numbers of runs and grows in
proportion to them, so no design is better than criterion^2 / max sum_i n_i d_i, the maximum over all designs within the
limit (Pukelsheim, "Optimal design of experiments", 1993, ch. 7). That maximum is a knapsack, bounded by its dual.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.fitting.values import Bools, Floats, Ints
from analysis.planning.candidates import Candidates

CLOSE = 5e-3
"""Relative gap between criterion and bound at which the search stops."""
ROUNDS = 60
STEPS, BALANCED = 200, 1e-3  # of the multiplicative algorithm after each new corner, and the gap at which it may stop
HALVINGS = 45
FAINT = 1e-6  # the weight below which a corner is dropped


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a design is to know, and what it may cost."""

    rows: Floats
    """(K, n, p): gradient of log L at each candidate under each law, over the noise."""
    aims: Floats
    """(K, T, p): gradients of the targets, times the roots of their weights."""
    known: Floats
    """(K, p, p): information that is there already and costs nothing."""
    candidates: Candidates
    least: Ints
    """(n,): replicates that the design must have."""
    most: Ints
    """(n,): replicates that it may have."""
    limit: float
    most_runs: int | None = None
    toll: float = 0.0
    """With ``most_runs``: a price on each run, in the unit of the limit. A design within both limits pays at most
    limit + toll most_runs, which is the one limit that the bound knows; any toll gives a bound, the right one the best.
    """

    def information(self, counts: Floats | Ints) -> Floats:
        """(K, p, p): of a design of ``counts`` (n,), whole or not."""
        used = np.flatnonzero(counts)
        rows = self.rows[:, used]
        return np.asarray(self.known + np.swapaxes(rows * counts[used][:, None], 1, 2) @ rows)

    def criterion(self, information: Floats) -> float:
        """Mean over laws of the targets' weighted variances."""
        return float(np.mean(np.sum(self.aims * _leverage(information, self.aims), axis=(1, 2))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """The best that any design could do, and a fractional design near it."""

    variance: float
    """No design's criterion is below this."""
    reached: float
    """The criterion of ``weights``, within a small gap of ``variance``."""
    weights: Floats
    """(n,): numbers of replicates, not whole, the required ones included."""
    runs: float
    """How many runs they are."""
    promise: Floats
    """(n,): by how much a run of each candidate lowers the criterion, to first order, over what its price must buy at
    the optimum: well below 1, it is in no good design; infinite where the limit pays for all."""


def continuous_bound(problem: Problem, close: float = CLOSE) -> Bound:
    """Bound the criterion of all designs within the limit.

    Parameters
    ----------
    problem
        What it requires must cost less than its limit, and all its candidates together must determine its targets.
    close
        The relative gap at which to stop; the bound holds whatever the gap.
    """
    knapsack = _Knapsack.of(problem)
    corners = [knapsack.everything()]
    stack = problem.information(corners[0].counts)[None]
    share, best = np.ones(1), 0.0
    for _ in range(ROUNDS):
        share = _balanced(stack, share, problem.aims)
        information = np.tensordot(share, stack, axes=1)
        lever = _leverage(information, problem.aims)
        value = float(np.mean(np.sum(problem.aims * lever, axis=(1, 2))))
        gains = np.asarray(np.mean(np.sum((problem.rows @ np.swapaxes(lever, 1, 2)) ** 2, axis=2), axis=0))
        corner, most, rate = knapsack.best(gains)
        best = max(best, value**2 / (most + float(_slopes(problem.known[None], lever)[0])))
        if value <= best * (1 + close):
            break
        kept = np.flatnonzero(share > FAINT)
        corners = [*(corners[i] for i in kept), corner]
        stack = np.concatenate([stack[kept], problem.information(corner.counts)[None]])
        share = np.append(share[kept], share[kept].mean())
        share /= share.sum()
    else:
        share = _balanced(stack, share, problem.aims)
    weights = np.asarray(sum(part * corner.counts for part, corner in zip(share, corners, strict=True)))
    runs = float(sum(part * corner.runs for part, corner in zip(share, corners, strict=True)))
    with np.errstate(divide="ignore", invalid="ignore"):
        promise = np.where(rate * problem.candidates.price > 0, gains / (rate * problem.candidates.price), np.inf)
    return Bound(variance=best, reached=value, weights=weights, runs=runs, promise=promise)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Corner:
    """A design that is best for some prices, or a mix of two."""

    counts: Floats
    runs: float
    cost: float
    worth: float = 0.0
    """What its gains come to beyond its cost, at the rate it was chosen by."""

    def mixed(self, other: _Corner, share: float) -> _Corner:
        """``share`` of the other and the rest of this one."""
        return _Corner(
            counts=(1 - share) * self.counts + share * other.counts,
            runs=(1 - share) * self.runs + share * other.runs,
            cost=(1 - share) * self.cost + share * other.cost,
        )


@dataclass(frozen=True, eq=False)
class _Slot:
    """The r-th replicates of all candidates; for ``times`` such r."""

    room: Bools
    """(n,): whether a candidate may have that replicate, and need not."""
    extra: Floats
    """(n,): what the trunk to the candidate costs beyond what is paid anyway."""
    fresh: Bools
    """(groups,): whether taking one begins a run."""
    times: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Knapsack:
    """Designs within the limit as a knapsack, whose pieces are the beginnings of groups, ordered by trunk.

    Arrays (n,) are in the order of ``order``, but for ``fixed``.
    """

    price: Floats
    slots: tuple[_Slot, ...]
    order: Ints
    starts: Ints
    """Where each group begins."""
    group: Ints
    fixed: Floats
    """(n,): replicates that are required."""
    fixed_runs: int
    rest: float
    """What is left of the limit for what is not required."""

    @classmethod
    def of(cls, problem: Problem) -> _Knapsack:
        those, least, toll = problem.candidates, problem.least, problem.toll
        order = np.lexsort((those.shared, those.groups))
        group = those.groups[order]
        starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
        levels = those.levels(least)
        slots, begins = [], np.unique(np.concatenate([[0], least, problem.most]))
        for r, end in pairwise(begins):  # in between all replicates are alike
            fresh = np.ones(len(starts), dtype=np.bool_)
            fresh[those.groups[least > r]] = False
            paid = levels[:, r] if r < levels.shape[1] else np.zeros(len(starts))
            extra = np.maximum(those.shared[order] - paid[group], 0.0) + toll * fresh[group]
            slots.append(_Slot(((least <= r) & (problem.most > r))[order], extra, fresh, int(end - r)))
        runs = those.runs(least)
        return cls(
            price=those.price[order],
            slots=tuple(slots),
            order=order,
            starts=starts,
            group=group,
            fixed=least.astype(np.float64),
            fixed_runs=runs,
            rest=problem.limit - those.total(least) + toll * ((problem.most_runs or 0) - runs),
        )

    def everything(self) -> _Corner:
        """All that there is room for, thinned until it is within the limit."""
        full = self._filled(np.ones(len(self.price)), 0.0)
        return self._nothing().mixed(full, min(1.0, self.rest / max(full.cost, 1e-300)))

    def best(self, gains: Floats) -> tuple[_Corner, float, float]:
        """The design within the limit of the largest sum of ``gains`` (n,), fractional; a bound on that sum; the rate.

        The rate at which cost outweighs gains is searched until what it lets in just fits (Lagrange).
        """
        required, gains = float(gains @ self.fixed), gains[self.order]
        over = self._filled(gains, 0.0)
        if over.cost <= self.rest:
            return over, required + over.worth, 0.0
        costs = np.concatenate([self.price, *(slot.extra for slot in self.slots)])
        high = float(gains.sum() * sum(slot.times for slot in self.slots) / costs[costs > 0].min()) * 2
        low, under = high * 1e-30, self._nothing()
        for _ in range(HALVINGS):
            rate = float(np.sqrt(low * high))
            found = self._filled(gains, rate)
            if found.cost > self.rest:
                low, over = rate, found
            else:
                high, under = rate, found
        within = under.mixed(over, (self.rest - under.cost) / (over.cost - under.cost))
        return within, required + min(over.worth + low * self.rest, under.worth + high * self.rest), high

    def _nothing(self) -> _Corner:
        return _Corner(counts=self.fixed, runs=self.fixed_runs, cost=0.0)

    def _filled(self, gains: Floats, rate: float) -> _Corner:
        """What is worth its cost at a ``rate``: of each group the beginning whose gains most outweigh its trunk."""
        place = np.arange(len(self.price))
        counts, runs, cost, worth = np.zeros(len(self.price)), float(self.fixed_runs), 0.0, 0.0
        for slot in self.slots:
            gain = np.where(slot.room, np.maximum(gains - rate * self.price, 0.0), 0.0)
            sums = np.concatenate([[0.0], np.cumsum(gain)])
            net = sums[1:] - sums[self.starts][self.group] - rate * slot.extra
            top = np.maximum.reduceat(net, self.starts)
            end = np.minimum.reduceat(np.where(net >= top[self.group], place, len(place)), self.starts)
            opened = top > 0
            taken = (gain > 0) & opened[self.group] & (place <= end[self.group])
            counts[self.order[taken]] += slot.times
            runs += slot.times * int((opened & slot.fresh).sum())
            cost += slot.times * float(self.price[taken].sum() + slot.extra[end[opened]].sum())
            worth += slot.times * float(top[opened].sum())
        return _Corner(counts=self.fixed + counts, runs=runs, cost=cost, worth=worth)


def _leverage(information: Floats, aims: Floats) -> Floats:
    """(K, T, p): M^-1 g."""
    return np.asarray(np.swapaxes(np.linalg.solve(information, np.swapaxes(aims, 1, 2)), 1, 2))


def _slopes(stack: Floats, lever: Floats) -> Floats:
    """(A,): by how much each information of ``stack`` (A, K, p, p) lowers the criterion, to first order."""
    pull = np.swapaxes(lever, 1, 2) @ lever
    return np.asarray(stack.reshape(len(stack), -1) @ pull.ravel() / len(lever))


def _balanced(stack: Floats, share: Floats, aims: Floats) -> Floats:
    """(A,): the shares of the informations of ``stack`` (A, K, p, p) of nearly the least criterion."""
    for _ in range(STEPS):
        slopes = _slopes(stack, _leverage(np.tensordot(share, stack, axes=1), aims))
        value = float(share @ slopes)
        if slopes.max() <= value * (1 + BALANCED):
            break
        share = share * np.sqrt(slopes)
        share /= share.sum()
    return share
