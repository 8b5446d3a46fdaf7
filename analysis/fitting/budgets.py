"""The rows of an isoFLOP design: the valley at each of its budgets, and how far off the valley's minimum is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from analysis.config import Valley
from analysis.fitting.optimum import optimum
from analysis.fitting.valley import LEAST_SIZES, Sizes
from analysis.fitting.values import WIDEST_BUDGET, BudgetValley, Cost, Floats, Ints, ParametricFit

NO_MINIMUM = {
    Valley.parabola: "no valley: the parabola does not open upwards",
    Valley.cubic: "no valley: the cubic has no minimum",
}


@dataclass(frozen=True, eq=False)
class Design:
    """The points of a fit, and what its valleys are laid by."""

    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    cost: Cost
    shape: Valley
    surface: ParametricFit | None
    """Approach 3 on the same points; ``bias`` and the shape of that name need it."""

    def valley_of(self, budget: float, rows: Ints) -> BudgetValley:
        """The valley of one budget, refused where it tells no optimum."""
        flops, log_n = self.flops[rows], np.log(self.params[rows])
        empty = BudgetValley(budget=budget, rows=rows)
        if width(flops) > WIDEST_BUDGET:
            span = f"rows between {flops.min():.3g} and {flops.max():.3g} FLOPs"
            return replace(empty, refused=f"{span} lie too close to part, too wide for one budget")
        sizes = Sizes.of(log_n, self.loss[rows], np.ones((1, len(rows))))
        if len(sizes.log_n) < LEAST_SIZES[self.shape]:
            return replace(empty, refused=f"fewer than {LEAST_SIZES[self.shape]} sizes")
        at, lowest, line = self._bottom(budget, sizes)
        found = replace(empty, line=line)
        if not (np.isfinite(at) and lowest > 0):
            return replace(found, refused=NO_MINIMUM.get(self.shape, "no valley: no minimum with a loss above 0"))
        refused = None
        if at in (sizes.log_n[0], sizes.log_n[-1]):
            refused = "the loss is lowest at the smallest or the largest size"
        elif not sizes.log_n[0] < at < sizes.log_n[-1]:
            refused = "the minimum lies outside the sampled sizes"
        found = replace(found, loss_opt=lowest, refused=refused)
        return self._placed(found, at)

    def bias(self, valley: BudgetValley) -> float:
        """Log of the valley's N* over the surface's, were the rows' losses the surface's own; NaN without a minimum."""
        assert self.surface is not None
        if self.shape is Valley.surface:
            return 0.0
        rows = valley.rows
        log_n, loss = np.log(self.params[rows]), self.surface.loss(self.params[rows], self.tokens[rows])
        sizes = Sizes.of(log_n, loss, np.ones((1, len(rows))))
        at = sizes.minima(self.shape, LEAST_SIZES[self.shape])[0][0]
        inside = sizes.log_n[0] < at < sizes.log_n[-1]
        return float(at - np.log(optimum(self.surface.array(), self.cost, valley.budget)[0])) if inside else np.nan

    def unbiased(self, valley: BudgetValley, bias: float) -> BudgetValley:
        """``valley`` with the bias divided out of its N*; refused where the bias is not known."""
        if np.isnan(bias):
            return replace(valley, refused="Approach 3's surface has no minimum among its sizes, so no known bias")
        assert valley.n_opt is not None
        return self._placed(valley, float(np.log(valley.n_opt)) - bias)

    def _bottom(self, budget: float, sizes: Sizes) -> tuple[float, float, Callable[[Floats], Floats]]:
        """Log N and loss at the minimum, and the line it is the minimum of."""
        law, cost = self.surface, self.cost
        if self.shape is not Valley.surface or law is None:
            at, lowest = sizes.minima(self.shape, LEAST_SIZES[self.shape])
            return float(at[0]), float(lowest[0]), sizes.line(self.shape)
        n, _, loss = optimum(law.array(), cost, budget)
        return float(np.log(n)), float(loss), lambda x: law.loss(np.exp(x), budget / cost.flops_per_token(np.exp(x)))

    def _placed(self, valley: BudgetValley, log_n: float) -> BudgetValley:
        """``valley`` with its minimum at ``log_n``."""
        rows = valley.rows
        log_d = log_tokens(np.array([log_n]), self.params[rows], self.tokens[rows])[0]
        with np.errstate(over="ignore"):  # of a refused one far outside
            return replace(valley, n_opt=float(np.exp(log_n)), d_opt=float(np.exp(log_d)))


def width(flops: Floats) -> float:
    """The factor between the least and the largest."""
    return float(flops.max() / flops.min())


def within(window: float | None, rows: Ints, params: Floats, loss: Floats) -> Ints:
    """Those of a budget's ``rows`` whose sizes lie within a factor of its best one."""
    if window is None:
        return rows
    best = params[rows[np.argmin(loss[rows])]]
    near: Ints = rows[np.abs(np.log(params[rows] / best)) <= np.log(window) + 1e-9]
    return near


def log_tokens(log_n: Floats, params: Floats, tokens: Floats) -> Floats:
    """Log D of a budget at ``log_n``, straight between its rows, so that C = 6 N D need not hold."""
    means = Sizes.of(np.log(params), np.log(tokens), np.ones((1, len(params))))
    sizes, logs = means.log_n, means.loss[0]
    inside = np.interp(log_n, sizes, logs)
    below = logs[0] + (log_n - sizes[0]) * (logs[1] - logs[0]) / (sizes[1] - sizes[0])
    above = logs[-1] + (log_n - sizes[-1]) * (logs[-1] - logs[-2]) / (sizes[-1] - sizes[-2])
    return np.asarray(np.where(log_n < sizes[0], below, np.where(log_n > sizes[-1], above, inside)))
