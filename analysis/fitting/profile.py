"""Profile likelihood: how much worse Approach 3 gets as one of its numbers is held and all others are fitted anew.

Where a number is poorly determined its interval is lopsided, or open at one end; a profile shows that, where a standard
error cannot. The statistic is the drop in dispersion of robust regression, 2 (S - S_min) / c with
c = mean(psi^2) / mean(psi'), psi the derivative of the loss on a residual: for squared residuals the usual likelihood
ratio, for others its robust version, about chi-squared with one degree of freedom (Schrader and Hettmansperger,
"Robust analysis of variance based upon a likelihood ratio criterion", Biometrika 67, 1980; Heritier and Ronchetti,
"Robust bounded-influence tests in general parametric models", JASA 89, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import fdtri

from analysis.fitting.columns import columns, one_length
from analysis.fitting.newton import LEAST_E, Problems
from analysis.fitting.parametric import LEAST_SCATTER, basis_of, follow, spread
from analysis.fitting.values import SIX_ND, Cost, Estimate, Floats, Ints, ParametricFit, Profile
from trainer.errors import UserError

FIRST, GROWTH, STEPS = 0.5, 1.5, 16  # of the walk outwards, in standard errors
WIDEST = 0.5  # a standard error, in logarithms, to walk by: a flat direction has none
CLOSE, ROUNDS = 1e-6, 40  # of the search for an end: in the root of the statistic, and at most
HOPELESS = 1e6  # a statistic that need not be known better


def profile(
    params: npt.ArrayLike,
    tokens: npt.ArrayLike,
    loss: npt.ArrayLike,
    fit: ParametricFit,
    cost: Cost = SIX_ND,
    level: float = 0.95,
) -> dict[str, Profile]:
    """Profile-likelihood intervals of A, B, E, alpha, beta and a, the exponent of N* ~ C^a.

    Parameters
    ----------
    params, tokens, loss
        (n,), positive: the rows of ``fit``, in their order. Any columns, of a pandas Series the values by position.
    fit
        What :func:`~analysis.fitting.parametric.fit_parametric` returned for them.
    cost
        FLOPs per token, on which a depends.
    level
        Of the intervals, between 0 and 1.

    Returns
    -------
    dict
        By name; what the form of the law holds has no entry. The statistic is compared with F(1, n - k) for k free
        parameters, which is chi-squared but for few rows. An end is None where holding the number there, however far
        out, is never worse than that; the low end of E is 0 where the data do not exclude 0.

    Raises
    ------
    UserError
        If a number is not finite and positive, the columns differ in length or are not the rows of ``fit``, or
        ``level`` is not between 0 and 1.
    """
    params, tokens, loss = columns(params=params, tokens=tokens, loss=loss)
    one_length("loss", loss, "fit.residuals", fit.residuals)
    if not 0 < level < 1:
        raise UserError(f"fit.level={level:g} is out of range; give a number between 0 and 1, e.g. 0.95.")
    problem = Problems.of(params, tokens, loss)
    best, basis = problem.centring.inward(fit.array()), basis_of(fit.form)
    freedom = max(1, len(problem.x) - basis.shape[1])
    dispersion, variance = _dispersion(fit.residuals, fit.delta, freedom)
    root = math.sqrt(variance) * spread(problem, best, basis)[1]
    numbers = [number for number in _numbers(problem, best, cost) if np.abs(basis.T @ number.gradient).max() > 1e-12]
    widths = np.array([min(WIDEST, float(np.linalg.norm(number.gradient @ root))) for number in numbers])
    limit = float(fdtri(1, freedom, level))
    search = _Search(problem, fit.delta, basis, best, tuple(numbers), dispersion, limit)
    ends = search.ends(widths)
    return {number.name: search.profile(at, *ends[at]) for at, number in enumerate(numbers)}


@dataclass(frozen=True, eq=False)
class _Number:
    """What can be held, by a coordinate u without bounds, but for ``least``."""

    name: str
    at: float
    """u at the best fit."""
    gradient: Floats
    """(5,): of u by theta, there."""
    hold: Callable[[float], tuple[Floats, float]]
    """From u the linear constraint, c (5,) and h, of c theta = h."""
    value: Callable[[float], float]
    """The number itself, from u."""
    reach: float = math.inf
    """How far u goes from its best before the data count as bounding nothing."""
    least: float = -math.inf
    """u ends there."""


def _numbers(problem: Problems, best: Floats, cost: Cost) -> list[_Number]:
    """A, B, alpha and beta by their logarithms, E by itself, and a by that of beta / alpha."""
    unit, means = np.eye(5), problem.centring
    first, second = unit[0] + means.log_n * unit[3], unit[1] + means.log_d * unit[4]
    alpha, beta = best[3:]

    def level(name: str, c: Floats) -> _Number:
        return _Number(name, float(c @ best) + means.log_l, c, lambda u: (c, u - means.log_l), math.exp, 30.0)

    def exponent(name: str, place: int) -> _Number:
        at = float(best[place])
        return _Number(name, math.log(at), unit[place] / at, lambda u: (unit[place], math.exp(u)), math.exp, 12.0)

    def share(u: float) -> float:
        return math.exp(u) / (1 + cost.exponent * math.exp(u))

    typical = math.exp(means.log_l)
    return [
        level("A", first),
        level("B", second),
        _Number(
            "E",
            float(best[2]),
            unit[2],
            lambda u: (unit[2], u),
            lambda u: 0.0 if u <= LEAST_E else u * typical,
            least=LEAST_E,
        ),
        exponent("alpha", 3),
        exponent("beta", 4),
        _Number(
            "a",
            math.log(beta / alpha),
            unit[4] / beta - unit[3] / alpha,
            lambda u: (math.exp(u) * unit[3] - unit[4], 0.0),
            share,
            12.0,
        ),
    ]


@dataclass(frozen=True, eq=False)
class _Sides:
    """One side of one number each: how far in and out an end must lie, by u and by the root's excess over its bound."""

    which: Ints
    inner: Floats
    outer: Floats
    """NaN until the statistic has exceeded its bound."""
    below: Floats
    above: Floats
    theta: Floats
    """(sides, 5): the best fit at ``inner``."""

    def put(self, side: Ints, u: Floats, excess: Floats, theta: Floats) -> None:
        """Note what was found at ``u``."""
        out, within = excess > 0, excess <= 0
        self.outer[side[out]], self.above[side[out]] = u[out], excess[out]
        self.inner[side[within]], self.below[side[within]] = u[within], excess[within]
        self.theta[side[within]] = theta[within]


@dataclass(frozen=True, eq=False)
class _Search:
    """The statistic with any of the numbers held, and where it reaches a bound."""

    problem: Problems
    delta: float
    basis: Floats
    best: Floats
    numbers: tuple[_Number, ...]
    dispersion: float
    limit: float
    """Of the statistic, at the ends of an interval."""
    seen: dict[tuple[int, float], float] = field(default_factory=dict)
    """The statistic by number and u, wherever it was looked for."""

    def ends(self, widths: Floats) -> Floats:
        """(numbers, 2): u at the low and the high end of each interval, where the statistic is ``limit``.

        NaN where it never is. All numbers and both sides are looked for at once.
        """
        count, bound = len(self.numbers), math.sqrt(self.limit)
        which, sign = np.repeat(np.arange(count), 2), np.tile([-1.0, 1.0], count)
        least = np.array([number.least for number in self.numbers])[which]
        sides = self._walk(which, sign * widths[which], bound)
        end = np.where((sign < 0) & (sides.inner <= least), least, np.nan)
        sought = np.flatnonzero(~np.isnan(sides.outer))
        end[sought] = self._close(sides, sought, bound)
        return end.reshape(-1, 2)

    def _walk(self, which: Ints, stride: Floats, bound: float) -> _Sides:
        """Outwards by growing multiples of ``stride``, each step from where the last one ended."""
        start, least, reach = (
            np.array([getattr(number, name) for number in self.numbers])[which] for name in ("at", "least", "reach")
        )
        nowhere = np.full(len(which), np.nan)
        theta = np.tile(self.best, (len(which), 1))
        sides = _Sides(which, start.copy(), nowhere.copy(), np.full(len(which), -bound), nowhere, theta)
        for step in FIRST * GROWTH ** np.arange(STEPS):
            near = (step * np.abs(stride) < reach) & ((sides.inner > least) | (stride > 0))
            walking = np.flatnonzero(np.isnan(sides.outer) & near)
            if not len(walking):
                break
            at = np.maximum(start + step * stride, least)[walking]
            sides.put(walking, at, *self._excess(which[walking], at, sides.theta[walking], bound))
        return sides

    def _close(self, sides: _Sides, sought: Ints, bound: float) -> Floats:
        """(sought,): u where the root is ``bound``, by false position (the Illinois variant: Dowell, Jarratt 1971)."""
        end, before = sides.outer.copy(), np.zeros(len(sides.which))
        left = sought
        for _ in range(ROUNDS):
            if not len(left):
                break
            share = sides.below[left] / (sides.below - sides.above)[left]
            end[left] = sides.inner[left] + share * (sides.outer - sides.inner)[left]
            excess, theta = self._excess(sides.which[left], end[left], sides.theta[left], bound)
            again = np.where(before[left] * excess > 0, 0.5, 1.0)  # on the same side as before: the other end is stale
            sides.below[left] *= np.where(excess > 0, again, 1.0)
            sides.above[left] *= np.where(excess > 0, 1.0, again)
            before[left] = excess
            sides.put(left, end[left], excess, theta)
            left = left[(np.abs(excess) > CLOSE) & (np.abs(sides.outer - sides.inner)[left] > CLOSE**2)]
        return end[sought]

    def _excess(self, which: Ints, at: Floats, theta: Floats, bound: float) -> tuple[Floats, Floats]:
        """By how much the root of the statistic exceeds ``bound``, and theta, with numbers ``which`` held ``at`` u."""
        constraints = [self.numbers[number].hold(u) for number, u in zip(which, at, strict=True)]
        starts = [_onto(self.problem, start, self.basis, *held) for start, held in zip(theta, constraints, strict=True)]
        bases = [_restrict(self.basis, c) for c, _ in constraints]
        found = follow(self.problem, np.array(starts), self.delta, np.array(bases))
        lowest = self.problem.objective(self.best[None], self.delta)
        statistic = np.clip(2 * (found.objective - lowest) / self.dispersion, 0.0, HOPELESS)
        self.seen.update({(int(number), float(u)): float(s) for number, u, s in zip(which, at, statistic, strict=True)})
        return np.sqrt(statistic) - bound, found.theta

    def profile(self, which: int, low: float, high: float) -> Profile:
        """What was found about one of the numbers."""
        number = self.numbers[which]
        seen = sorted({number.at: 0.0} | {u: value for (at, u), value in self.seen.items() if at == which})
        ends = [None if math.isnan(u) else number.value(float(u)) for u in (low, high)]
        return Profile(
            name=number.name,
            estimate=Estimate(value=number.value(number.at), low=ends[0], high=ends[1]),
            grid=np.array([number.value(u) for u in seen]),
            limit=self.limit,
            deviance=np.array([0.0 if u == number.at else self.seen[which, u] for u in seen]),
        )


def _restrict(basis: Floats, c: Floats) -> Floats:
    """(5, k - 1): the directions in ``basis`` (5, k) along which c theta does not move; E stays one by itself."""
    along = basis.T @ c
    pivot = int(np.argmax(np.abs(along)))
    return np.delete(basis - basis[:, [pivot]] * (along / along[pivot]), pivot, axis=1)


def _onto(problem: Problems, theta: Floats, basis: Floats, c: Floats, h: float) -> Floats:
    """Where c theta = h, by the way from ``theta`` along ``basis`` that the data mind least (to first order)."""
    root = spread(problem, theta, basis)[1]
    direction = root @ (root.T @ c)
    moved = theta + direction * ((h - c @ theta) / (c @ direction))
    moved[2] = max(moved[2], LEAST_E)
    return moved


def _dispersion(residuals: Floats, delta: float, freedom: int) -> tuple[float, float]:
    """mean(psi^2) / mean(psi'), and the variance by which theta scatters, mean(psi^2) / mean(psi')^2.

    mean(psi') is the share of residuals within delta. Where delta is so small that hardly any are, it is the share in
    a wider band about 0, scaled down to delta: for least absolute deviations, the density of residuals at 0. As many
    residuals as there are parameters are near 0 by the fit alone and do not count: to first order Huber's correction
    (Ann. Statist. 1, 1973); for least absolute deviations, where they are 0, that of McKean and Schrader (1987).
    """
    count = len(residuals)
    typical = 1.4826 * float(np.median(np.abs(residuals)))
    band = max(delta, 1.06 * typical * count**-0.2)  # Silverman's bandwidth
    within = max(1, int(np.sum(np.abs(residuals) <= band)) - (count - freedom))
    curvature = within / freedom * (1.0 if delta >= band else delta / band)
    square = max(float(np.sum(np.clip(residuals, -delta, delta) ** 2)) / freedom, min(LEAST_SCATTER, delta) ** 2)
    return square / curvature, square / curvature**2
