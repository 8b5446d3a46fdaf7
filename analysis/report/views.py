"""What the figures show, as plain numbers: the figures for papers and the report draw the same values from here.

Nothing is fitted: bands are percentiles of the bootstrap's replicates, lines are the fitted laws evaluated on grids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from analysis import frontier as frontiers
from analysis.fitting.optimum import optimum
from analysis.fitting.values import BudgetValley, Estimate, Floats, Ints, Refused
from analysis.laws.law import Law
from analysis.result import Backtest, ConventionFit, Envelope, Holdout, Isoflop, Parametric

Fitted = Envelope | Isoflop | Parametric
FRONTIER_POINTS = 80
PARABOLA_POINTS = 60
SURFACE_POINTS = 60
MOST_SLICES = 9
LARGE = 1e17
"""C from which on a fit may be set beside published models; below, they would squash it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frontier:
    """N*, D* or L* against C with its intervals; all arrays have one length, NaN for what is not known."""

    flops: Floats
    value: Floats
    low: Floats
    high: Floats
    """The interval of the law."""
    first: Floats
    last: Floats
    """The interval of one more measurement."""

    @property
    def extent(self) -> list[Floats]:
        """What an axis must hold to show the line and its band."""
        return [self.value, self.low, self.high]


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The fitted loss over the (C, N) plane: ``loss`` is (params, flops)."""

    flops: Floats
    params: Floats
    loss: Floats
    levels: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """The fitted loss along one budget, and the rows that lie on it."""

    budget: float
    params: Floats
    loss: Floats
    rows: Ints


def fitted(fit: ConventionFit) -> dict[str, Fitted]:
    """The approaches that may be quoted, in Hoffmann's order."""
    return {name: at for name, at in fit.approaches.items() if not isinstance(at, Refused) and at.quotable}


def frontier(fit: ConventionFit, approach: Fitted, flops: Floats, level: float) -> tuple[Frontier, Frontier, Frontier]:
    """N*, D* and L* of an approach at ``flops``, with the bands that hold ``level`` of its replicates."""
    found = frontiers.estimates(approach.fit, fit.cost, approach.replicates, approach.scatter, flops, level)
    n, d, loss = (Frontier(flops=flops, **_bands([getattr(at, name) for at in found])) for name in frontiers.NAMES)
    return n, d, loss


def frontier_flops(fit: ConventionFit) -> Floats:
    """The C over which frontiers are drawn: from the least of the rows to ten times the largest."""
    return np.geomspace(fit.rows.flops.min(), 10 * fit.rows.flops.max(), FRONTIER_POINTS)


def beside_models(fit: ConventionFit, laws: Sequence[Law]) -> bool:
    """Whether a fit is set beside published models: laws were asked for, or its C is of a size to compare."""
    return bool(fitted(fit)) and (bool(laws) or float(fit.rows.flops.max()) >= LARGE)


def law_frontier(law: Law, flops: Floats) -> tuple[Floats, Floats]:
    """N* and D* of a published law at ``flops``, in its own conventions."""
    optima = [law.at_flops(float(c)) for c in flops]
    return np.array([at.params for at in optima]), np.array([at.tokens for at in optima])


def valley_line(fit: ConventionFit, valley: BudgetValley) -> tuple[Floats, Floats]:
    """N and loss along a valley, over its rows' sizes and a little beyond."""
    sizes = fit.rows.params[valley.rows]
    params = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, PARABOLA_POINTS)
    return params, valley.loss(params)


def minima(approach: Isoflop) -> tuple[Floats, Floats, Floats, Floats]:
    """C, N*, D* and L* of the valleys that the power laws go through."""
    found = [(p.budget, p.n_opt, p.d_opt, p.loss_opt) for p in approach.fit.accepted]
    flops, params, tokens, loss = np.array(found, dtype=np.float64).T
    return flops, params, tokens, loss


def refusals(valleys: Iterable[BudgetValley]) -> list[tuple[str, list[float]]]:
    """Each reason for which budgets were refused, and those budgets."""
    by_reason: dict[str, list[float]] = {}
    for valley in valleys:
        if valley.refused is not None:
            by_reason.setdefault(valley.refused, []).append(valley.budget)
    return list(by_reason.items())


def curvature_line(approach: Envelope) -> tuple[Floats, Floats]:
    """C and N of the parabola through the envelope in logs, whose bend is its curvature."""
    log_c, log_n = np.log(approach.fit.flops), np.log(approach.fit.params)
    centre = log_c.mean()
    grid = np.linspace(log_c.min(), log_c.max(), PARABOLA_POINTS)
    return np.exp(grid), np.exp(np.polyval(np.polyfit(log_c - centre, log_n, 2), grid - centre))


def surface(fit: ConventionFit, law: Parametric, levels: int = 11) -> Surface:
    """The fitted loss around the rows, with contour levels evenly spaced in log L over the losses seen."""
    rows = fit.rows
    flops = np.geomspace(rows.flops.min() / 1.5, rows.flops.max() * 1.5, SURFACE_POINTS)
    params = np.geomspace(rows.params.min() / 1.5, rows.params.max() * 1.5, SURFACE_POINTS)
    tokens = flops[None, :] / fit.cost.flops_per_token(params)[:, None]
    loss = law.fit.loss(params[:, None], tokens)
    lowest = max(float(loss.min()), float(rows.loss.min()) * 0.98)
    return Surface(
        flops=flops, params=params, loss=loss, levels=np.geomspace(lowest, float(rows.loss.max()) * 1.02, levels)
    )


def slices(fit: ConventionFit, law: Parametric) -> list[Slice]:
    """The fitted loss along budgets, over their rows' sizes and a little beyond.

    The budgets are the rows' own, thinned to nine, where those with three sizes or more hold half of the rows;
    otherwise seven values of C, evenly spaced in logs, each with the rows at most 15 % away from it.
    """
    rows = fit.rows
    every = ((float(c), np.flatnonzero(rows.budget == c)) for c in rows.shared_budgets(3))
    shared = [(c, index) for c, index in every if len(np.unique(rows.params[index])) >= 3]
    if len(shared) >= 2 and 2 * sum(len(index) for _, index in shared) >= len(rows):
        kept = np.unique(np.linspace(0, len(shared) - 1, min(len(shared), MOST_SLICES)).astype(int))
        chosen = [shared[i] for i in kept]
    else:
        even = np.geomspace(rows.flops.min(), rows.flops.max(), 7)
        chosen = [(float(c), np.flatnonzero(np.abs(rows.flops / c - 1) <= 0.15)) for c in even]
    return [_slice(fit, law, budget, index) for budget, index in chosen]


def residual_percent(law: Parametric) -> Floats:
    """Measured over fitted loss, minus 1, in percent; one per row."""
    return 100 * np.expm1(law.fit.residuals)


def normal_quantiles(values: Floats) -> tuple[Ints, Floats, Floats]:
    """Order of ``values`` (n,), the normal quantile of each in that order, and the line of a normal distribution.

    The line goes through the quartiles, so that outliers do not move it.
    """
    order = np.argsort(values, kind="stable")
    quantiles = ndtri((np.arange(len(values)) + 0.5) / len(values))
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return order, quantiles, middle + (high - low) / (2 * ndtri(0.75)) * quantiles


def foretold(test: Backtest) -> dict[str, tuple[Holdout, ...]]:
    """What a backtest foretold, ``loss`` first, then N* by approach; nothing empty."""
    return {name: held for name, held in {"loss": test.loss, **test.n_opt}.items() if held}


def origins(test: Backtest) -> Floats:
    """All values of C that the fit was cut at, rising."""
    return np.unique([at.fitted_to for held in foretold(test).values() for at in held])


def deviations(at: Holdout) -> tuple[Floats, Floats, Floats]:
    """What was measured, and the ends of the prediction interval, over what was predicted, minus 1, in percent."""
    measured, low, high = (100 * (values / at.predicted - 1) for values in (at.measured, at.low, at.high))
    return measured, low, high


def deviation_ends(held: Sequence[Holdout]) -> tuple[float, float]:
    """Ends of an axis that holds everything measured, and the intervals as far as they are not very much wider."""
    measured, low, high = (np.concatenate(parts) for parts in zip(*map(deviations, held), strict=True))
    most = max(3 * np.abs(measured).max(), np.median(np.maximum(-low, high)))
    return 1.1 * max(min(low.min(), measured.min()), -most), 1.1 * min(max(high.max(), measured.max()), most)


def evenly(count: int, most: int) -> Ints:
    """Indices of at most ``most`` of ``count``, evenly spaced, the ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def offset(number: int, count: int, ends: tuple[float, float]) -> float:
    """What moves the marks of one of ``count`` series a little along a logarithmic axis, beside the others'."""
    return float((ends[1] / ends[0]) ** (0.012 * (number - (count - 1) / 2)))


def _bands(found: Sequence[Estimate]) -> dict[str, Floats]:
    nothing = (None, None)
    rows = [(at.value, at.low, at.high, *(at.prediction or nothing)) for at in found]
    columns = np.array(rows, dtype=np.float64).T  # None becomes NaN
    return dict(zip(("value", "low", "high", "first", "last"), columns, strict=True))


def _slice(fit: ConventionFit, law: Parametric, budget: float, index: Ints) -> Slice:
    """Over the rows' sizes, or around N* where they are fewer than three."""
    sizes = fit.rows.params[index]
    if len(np.unique(sizes)) < 3:
        sizes = optimum(law.fit.array(), fit.cost, budget)[0] * np.array([0.25, 4])
    params = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, PARABOLA_POINTS)
    loss = law.fit.loss(params, budget / fit.cost.flops_per_token(params))
    return Slice(budget=budget, params=params, loss=loss, rows=index)
