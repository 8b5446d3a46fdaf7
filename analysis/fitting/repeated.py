"""Fitting R_D* and R_N*: how soon repeated tokens and excess parameters stop helping (Muennighoff et al. 2023).

Two stages, as there: the law of fresh tokens from the rows that repeat nothing, then the two saturations by the same
Huber objective over all rows, the law held. Fresh rows are taken at face value: parameters that they have in excess
are part of what the first law learns. The second objective has several minima: on the authors' own 182 runs the
published R_D* = 15.4, R_N* = 5.3 is one of them and not the lowest. So it is searched on a grid first, and how many
starts end at the best minimum is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, minimize

from analysis.config import Form, chosen
from analysis.fitting.bootstrap import percentile
from analysis.fitting.columns import columns
from analysis.fitting.effective import loss_repeated, params_called_for
from analysis.fitting.parametric import fit_parametric, refit_parametric
from analysis.fitting.values import SIX_ND, Cost, Estimate, Floats, ParametricFit, Refused, RepeatedFit
from trainer.errors import UserError

GRID = np.geomspace(0.05, 5e4, 25)
LOWEST, HIGHEST = 1e-2, 1e6
"""Of R*. Beyond them a repetition is worth nothing, or as much as fresh data: what ends there is not known."""
OVERRUN = 1.001
"""Tokens up to this many times the unique ones are fresh: an epoch ends with a whole batch."""
LEAST_REPEATED = 3
WARM = 3
"""How many minima of the data's own objective each replicate starts from."""


def fit_repeated(
    params: npt.ArrayLike,
    tokens: npt.ArrayLike,
    unique_tokens: npt.ArrayLike,
    loss: npt.ArrayLike,
    *,
    delta: float = 1e-3,
    starts: int = 12,
    form: Form | str = Form.free,
    cost: Cost = SIX_ND,
    weights: npt.ArrayLike | None = None,
    replicates: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> RepeatedFit | Refused:
    """Fit what repeated data are worth.

    Parameters
    ----------
    params, tokens, unique_tokens, loss
        (n,), positive: N, D, how many of the tokens are distinct (NaN where all are), and L of each point. Any columns,
        of a pandas Series the values by position.
    delta
        Where the Huber loss turns from square to linear, in log loss.
    starts
        Of either stage.
    form
        Of the law of fresh tokens, ``free`` or ``tied`` (alpha = beta), which is tried where too few rows are fresh for
        the other.
    cost
        How C is counted, which decides what is an excess of parameters.
    weights
        (replicates, n): how often each row counts in each replicate; by default fresh and repeating rows are drawn
        apart, ``replicates`` times, from ``seed``.
    level
        Of the intervals, between 0 and 1; they hold the scatter of both stages.

    Returns
    -------
    RepeatedFit
        R_D* and R_N* are None where the rows do not determine them; so is an end of an interval.
    Refused
        If no rows repeat, or too few are fresh.

    Raises
    ------
    UserError
        If a number is not finite and positive, the columns or ``weights`` differ in length, or a setting is unknown or
        out of range.

    References
    ----------
    Muennighoff et al., "Scaling data-constrained language models" (2023), section 3.1 and appendix A.
    """
    params, tokens, unique, loss = columns(
        blank=("unique_tokens",), params=params, tokens=tokens, unique_tokens=unique_tokens, loss=loss
    )
    form = chosen(Form, form, "fit.form")
    if not 0 < level < 1:
        raise UserError(f"fit.level={level:g} is out of range; give a number between 0 and 1, e.g. 0.95.")
    unique = np.where(np.isnan(unique), tokens, unique)
    fresh = tokens <= unique * OVERRUN
    count = int((~fresh).sum())
    if count < LEAST_REPEATED:
        return Refused(reason=f"{count} row(s) repeat their data; {LEAST_REPEATED} or more show what that is worth.")
    law = _fresh_law(params[fresh], tokens[fresh], loss[fresh], delta, starts, form)
    if isinstance(law, Refused):
        return Refused(reason=f"the {fresh.sum()} rows that repeat nothing give no law to measure by: {law.reason}")
    data = prepared(params, tokens, unique, loss, delta=delta, cost=cost)
    found = saturations(law.array(), data, starts=starts)
    weights = _draw(fresh, replicates, seed) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(loss):
        raise UserError(f"weights has the shape {weights.shape}; give (replicates, {len(loss)}), one column per point.")
    theta, good = refit_parametric(params[fresh], tokens[fresh], loss[fresh], weights[:, fresh], law)
    drawn = [
        saturations(one, data, weights=row, ends=found.minima).values
        for one, row in zip(theta[good], weights[good], strict=True)
    ]
    many = np.array(drawn).reshape(-1, 2)
    predicted = loss_repeated(law.array(), found.values, params, tokens, data.unique, cost)
    failed = int((~good).sum())
    r_d, r_n = (_estimate(many[:, i], found.values[i], level, failed) for i in range(2))
    return RepeatedFit(
        law=law,
        r_d=r_d,
        r_n=r_n if data.excess(law.array()).any() else Estimate(value=None),
        rows=count,
        objective=found.objective,
        residuals=np.log(loss) - np.log(predicted),
        tokens=tokens,
        unique_tokens=unique,
        starts=found.starts,
        starts_agreeing=found.agreeing,
    )


@dataclass(frozen=True, eq=False)
class Saturations:
    """R_D* and R_N* at the lowest minimum found."""

    values: Floats
    """(2,)"""
    objective: float
    starts: int
    agreeing: int
    """Starts that ended at this objective."""
    minima: Floats
    """(m, 2): the distinct minima, the lowest first."""


@dataclass(frozen=True, eq=False)
class Repeats:
    """The rows that :func:`saturations` takes, each array (n,)."""

    params: Floats
    tokens: Floats
    unique: Floats
    """No more than ``tokens``."""
    log_loss: Floats
    cost: Cost
    delta: float

    def excess(self, theta: Floats) -> Floats:
        """(n,): parameters beyond those that the unique tokens call for, as repetitions of these."""
        return np.maximum(self.params / params_called_for(theta, self.cost, self.unique) - 1, 0)

    def _problem(self, theta: Floats, weights: Floats | None) -> _Problem:
        called = np.minimum(self.params, params_called_for(theta, self.cost, self.unique))
        repeats = np.stack([self.tokens / self.unique - 1, self.params / called - 1])
        log_a, log_b, log_e, alpha, beta = theta
        fresh = np.stack([log_b - beta * np.log(self.unique), log_a - alpha * np.log(called)])
        ones = np.ones_like(self.log_loss) if weights is None else weights
        return _Problem(repeats, fresh, np.array([beta, alpha]), float(log_e), self.log_loss, ones, self.delta)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The objective in (log R_D*, log R_N*) under one law and one weighting; rows of the pairs: tokens, parameters."""

    repeats: Floats
    """(2, n): R_D and R_N."""
    fresh: Floats
    """(2, n): log of the B and the A term without any repetition."""
    slope: Floats
    """(2,): beta, alpha."""
    log_e: float
    log_loss: Floats
    weights: Floats
    delta: float

    def terms(self, log_r: Floats) -> tuple[Floats, Floats]:
        """Log of the B and the A term, (2, n), and their derivatives by log R_D* and log R_N*."""
        r = np.exp(log_r)[:, None]
        x = self.repeats / r
        gained = -r * np.expm1(-x)
        moved = (gained - self.repeats * np.exp(-x)) / (1 + gained)
        return self.fresh - self.slope[:, None] * np.log1p(gained), -self.slope[:, None] * moved

    def huber(self, log_predicted: Floats) -> Floats:
        """Weighted sums over the last axis, in units of delta squared."""
        size = np.abs(log_predicted - self.log_loss) / self.delta
        return np.asarray(np.where(size <= 1, 0.5 * size**2, size - 0.5) @ self.weights)

    def value(self, log_r: Floats) -> tuple[float, Floats]:
        """The objective, in units of delta squared, and its gradient."""
        terms, moved = self.terms(log_r)
        predicted = np.logaddexp(np.logaddexp(terms[0], terms[1]), self.log_e)
        pull = np.clip((predicted - self.log_loss) / self.delta, -1, 1) * self.weights / self.delta
        return float(self.huber(predicted)), np.sum(np.exp(terms - predicted) * moved * pull, axis=1)

    def grid(self) -> Floats:
        """(k, 2): points of the grid, those lower than all their neighbours first, each kind by rising objective."""
        logs = np.log(GRID)
        terms = np.stack([self.terms(np.full(2, log_r))[0] for log_r in logs], axis=1)  # (2, k, n)
        both = np.logaddexp(terms[0], self.log_e)[:, None], terms[1][None]
        cost = self.huber(np.logaddexp(*both))
        padded = np.pad(cost, 1, constant_values=np.inf)
        k = len(logs)
        around = [padded[i : i + k, j : j + k] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
        lowest = (cost <= np.min(around, axis=0)).ravel()
        order = np.lexsort((cost.ravel(), ~lowest))
        return np.stack([logs[order // k], logs[order % k]], axis=1)


def prepared(
    params: Floats, tokens: Floats, unique_tokens: Floats, loss: Floats, *, delta: float = 1e-3, cost: Cost = SIX_ND
) -> Repeats:
    """Rows as :func:`saturations` takes them; arguments as in :func:`fit_repeated`."""
    return Repeats(params, tokens, np.fmin(unique_tokens, tokens), np.log(loss), cost, delta)


def saturations(
    theta: Floats, data: Repeats, *, starts: int = 12, weights: Floats | None = None, ends: Floats | None = None
) -> Saturations:
    """The saturations that fit best under the law ``theta`` (5,), from a grid or from minima ``ends`` (m, 2)."""
    problem = data._problem(theta, weights)
    begin = problem.grid()[:starts] if ends is None else np.log(ends[:WARM])
    found = sorted((_descend(problem, start) for start in begin), key=lambda one: one[0])
    best = found[0][0]
    minima: list[Floats] = []
    for _, end in found:
        if all(np.abs(np.log(end / other)).max() > 0.05 for other in minima):
            minima.append(end)
    return Saturations(
        values=minima[0],
        objective=best * data.delta**2,
        starts=len(found),
        agreeing=sum(value <= best * (1 + 1e-6) + 1e-12 for value, _ in found),
        minima=np.array(minima),
    )


def _descend(problem: _Problem, start: Floats) -> tuple[float, Floats]:
    """The objective and (R_D*, R_N*) at the minimum below ``start``."""
    box = Bounds(np.full(2, np.log(LOWEST)), np.full(2, np.log(HIGHEST)))
    options: Any = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500}
    end = minimize(problem.value, start, jac=True, method="L-BFGS-B", bounds=box, options=options)
    return float(end.fun), np.exp(np.asarray(end.x, dtype=np.float64))


def _fresh_law(
    params: Floats, tokens: Floats, loss: Floats, delta: float, starts: int, form: Form
) -> ParametricFit | Refused:
    law = fit_parametric(params, tokens, loss, delta=delta, starts=starts, form=form)
    if isinstance(law, Refused) and form is Form.free:
        return fit_parametric(params, tokens, loss, delta=delta, starts=starts, form=Form.tied)
    return law


def _draw(fresh: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], replicates: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    weights = np.empty((replicates, len(fresh)))
    for stratum in (fresh, ~fresh):
        size = int(stratum.sum())
        weights[:, stratum] = rng.multinomial(size, np.full(size, 1 / size), size=replicates)
    return weights


def _estimate(many: Floats, value: float, level: float, failed: int) -> Estimate:
    """With its interval; what ends at a bound of the search is not known."""

    def known(number: float | None) -> float | None:
        inside = number is not None and LOWEST * 1.01 < number < HIGHEST / 1.01
        return number if inside else None

    found = percentile(many, float(value), level, failed=failed)
    return Estimate(value=known(found.value), low=known(found.low), high=known(found.high))
