"""From a fractional design to whole runs: rounding down, filling up by variance reduction per cost, exchanges.

The criterion after one run more or less is known for all candidates at once by rank-one updates of the inverse
information (Fedorov, "Theory of optimal experiments", 1972, ch. 3). Nothing is drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.fitting.values import Floats, Ints
from analysis.planning.bound import Bound, Problem

RIDGE = 1e-3  # share of the fractional design's information that stands in for what is not chosen yet
WHOLE = 1e-6
SINGULAR = 1e14  # a condition number at which the points determine no law: there is nothing to improve
PROMISING, MANY = 0.5, 500
SWEEPS = 8
GAIN = 1e-6  # relative; a smaller one is no reason to exchange


def whole_runs(problem: Problem, bound: Bound) -> Ints:
    """Replicates of each candidate: the bound's fractional design rounded down, filled up, exchanged until none helps.

    An exchange takes a run out, or a trunk, and spends what it cost and what was left as well as it can, on candidates
    that promise at least half of what their price must buy, or are among the most promising.
    """
    least = min(PROMISING, np.sort(bound.promise)[-MANY:][0])
    kept = np.flatnonzero((bound.promise >= least) | (bound.weights > WHOLE) | (problem.least > 0))
    fewer = replace(
        problem,
        rows=problem.rows[:, kept],
        candidates=problem.candidates.take(kept),
        least=problem.least[kept],
        most=problem.most[kept],
    )
    counts = np.zeros(len(bound.weights), dtype=np.int64)
    counts[kept] = _exchanged(fewer, bound.weights[kept])
    return counts


def _exchanged(problem: Problem, weights: Floats) -> Ints:
    floor = np.clip(np.floor(weights + WHOLE).astype(np.int64), problem.least, problem.most)
    ridge = RIDGE * problem.information(weights)
    while _over(problem, floor):  # by no more than rounding
        floor[np.flatnonzero(floor > problem.least)[-1]] -= 1
    state = _State.of(problem, floor, ridge)
    state.fill()
    if np.linalg.cond(problem.information(state.counts)).max() > SINGULAR:
        return state.counts
    state = _State.of(problem, state.counts, 0 * ridge)
    state.fill()
    for _ in range(SWEEPS):
        before = state.value
        state.exchange()
        state = _State.of(problem, state.counts, 0 * ridge)
        if not state.value < before * (1 - GAIN):
            break
    return state.counts


def _over(problem: Problem, counts: Ints) -> bool:
    those = problem.candidates
    many = problem.most_runs is not None and those.runs(counts) > problem.most_runs
    return those.total(counts) > problem.limit * (1 + 1e-9) or many


@dataclass(eq=False)
class _State:
    """A design, and what one run more or less of every candidate would do to it."""

    problem: Problem
    counts: Ints
    levels: Floats
    """(groups, replicates): how far each trunk is paid."""
    used: Ints
    """(groups, replicates): points on each trunk."""
    spent: float
    inverse: Floats
    """(K, p, p): of the information."""
    lever: Floats
    """(K, T, n): f^T M^-1 g."""
    spread: Floats
    """(K, n): f^T M^-1 f."""

    @classmethod
    def of(cls, problem: Problem, counts: Ints, ridge: Floats) -> _State:
        those, most = problem.candidates, max(1, int(problem.most.max()))
        shape = (int(those.groups.max()) + 1, most)
        levels, used = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        paid = those.levels(counts)
        levels[:, : paid.shape[1]] = paid
        for r in range(most):
            np.add.at(used[:, r], those.groups[counts > r], 1)
        inverse = np.asarray(np.linalg.inv(problem.information(counts) + ridge), dtype=np.float64)
        columns = problem.rows @ inverse
        lever = problem.aims @ np.swapaxes(columns, 1, 2)
        spread = np.einsum("knp,knp->kn", columns, problem.rows)
        return cls(problem, counts.copy(), levels, used, those.total(counts), inverse, lever, spread)

    @property
    def value(self) -> float:
        """The criterion."""
        aims = self.problem.aims
        return float(np.mean(np.einsum("ktp,kpq,ktq->k", aims, self.inverse, aims)))

    def fill(self, dear: bool = False, without: int = -1) -> bool:
        """Add runs while any can be paid; with ``dear`` the first one is the best at any price.

        Whether something else than candidate ``without`` was added first.
        """
        best = first = self._best(dear)
        while best >= 0 and first != without:
            self._move(best, 1)
            best = self._best()
        return first != without

    def exchange(self) -> None:
        """Take out every run in turn, the least useful for its price first, and keep what improves; then every trunk.

        What a trunk costs no single horizon would be worth.
        """
        least, those = self.problem.least, self.problem.candidates
        chosen = np.flatnonzero(self.counts > least)
        lever, spread = self.lever[:, :, chosen], self.spread[:, chosen]
        loss = np.mean(np.sum(lever**2, axis=1) / np.maximum(1 - spread, 1e-12), axis=0)
        for j in chosen[np.argsort(loss / those.alone[chosen], kind="stable")]:
            if self.counts[j] > least[j]:
                one = np.array([j])
                self._replace(one, dear=False) or self._replace(one, dear=True)
        for group, r in np.argwhere(self.used > 1):
            on = np.flatnonzero((those.groups == group) & (self.counts == r + 1) & (least <= r))
            if len(on) > 1:
                self._replace(on, dear=False)

    def _replace(self, out: Ints, dear: bool) -> bool:
        """Take out a run of each candidate of ``out`` and fill up, if that improves; whether it did."""
        kept = (self.counts, self.levels, self.used, self.spent, self.inverse, self.lever, self.spread)
        before = self.value
        self.counts, self.levels, self.used = self.counts.copy(), self.levels.copy(), self.used.copy()
        known = True
        for j in out:
            known = known and float(self.spread[:, j].max()) < 1 - 1e-9  # else nothing tells theta without it
            if known:
                self._move(int(j), -1)
        improved = known and self.fill(dear, without=int(out[0]) if len(out) == 1 else -1)
        improved = improved and self.value < before * (1 - GAIN)
        if not improved:
            self.counts, self.levels, self.used, self.spent, self.inverse, self.lever, self.spread = kept
        return improved

    def _best(self, dear: bool = False) -> int:
        """The affordable run that lowers the criterion most, for its price unless ``dear``; -1 for none."""
        problem, those = self.problem, self.problem.candidates
        r = np.minimum(self.counts, self.levels.shape[1] - 1)
        price = those.price + np.maximum(those.shared - self.levels[those.groups, r], 0.0)
        begun = self.used[those.groups, r] > 0
        open_ = (self.counts < problem.most) & (self.spent + price <= problem.limit * (1 + 1e-12))
        if problem.most_runs is not None:
            price = price + problem.toll * ~begun
            if int((self.used > 0).sum()) >= problem.most_runs:
                open_ &= begun
        if not open_.any():
            return -1
        gain = np.mean(np.sum(self.lever**2, axis=1) / (1 + self.spread), axis=0)
        worth = gain if dear else gain / np.maximum(price, 1e-300)
        return int(np.argmax(np.where(open_, worth, -1.0)))

    def _move(self, j: int, sign: int) -> None:
        """One run of candidate ``j`` more or less; arrays that may be shared are replaced, never written to."""
        those, r = self.problem.candidates, int(self.counts[j]) - (sign < 0)
        group = those.groups[j]
        self.counts[j] += sign
        self.used[group, r] += sign
        on = those.shared[(those.groups == group) & (self.counts > r)]
        level = float(on.max(initial=0.0))
        self.spent += sign * those.price[j] + level - self.levels[group, r]
        self.levels[group, r] = level
        rows = self.problem.rows
        column = np.einsum("kpq,kq->kp", self.inverse, rows[:, j])
        across = (rows @ column[:, :, None])[:, :, 0]
        share = sign / (1 + sign * self.spread[:, j])
        self.inverse = self.inverse - share[:, None, None] * column[:, :, None] * column[:, None, :]
        self.lever = self.lever - (share[:, None] * self.lever[:, :, j])[:, :, None] * across[:, None, :]
        self.spread = self.spread - share[:, None] * across**2
