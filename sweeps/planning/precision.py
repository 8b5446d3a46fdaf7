"""How precisely a sweep's results so far tell its target, and what that has cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from analysis.config import FitConfig, Quantity
from analysis.fitting.bootstrap import percentile
from analysis.fitting.optimum import fit_cost
from analysis.fitting.parametric import basis_of, fit_parametric, refit_parametric
from analysis.fitting.values import Floats, ParametricFit
from analysis.planning.information import NUMBERS, Target, error_factor, variances
from analysis.planning.information import jacobian as rows_of
from analysis.planning.lackoffit import lack_of_fit
from analysis.text import count_text
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.planning.results import Results, read_results
from trainer.errors import UserError

LEAST_POINTS = 8
REPLICATES = 400


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A target as the results so far tell it."""

    quantity: str
    flops: float | None
    """C of the target; None for an exponent, or a loss at N and D."""
    params: float | None
    """N and D of the target, where it is a loss at them."""
    tokens: float | None
    value: float
    low: float
    high: float
    level: float
    half_width: float
    """How far the interval reaches to its farther side, as a share of the value; an exponent's as it is."""
    wanted: float | None
    """Half-width at which the sweep stops by itself."""
    points: int
    """Done."""
    spent_flops: float
    """Of the done points."""
    form_fails: str
    """How the form of the law fails; empty where no test says so."""

    @property
    def enough(self) -> bool:
        """Whether the wanted precision is reached."""
        return self.wanted is not None and self.half_width <= self.wanted

    @property
    def text(self) -> str:
        """In a line."""
        where = f" at {self.flops:.4g} FLOPs" if self.flops is not None else ""
        if self.params is not None and self.tokens is not None:
            where = f" at {count_text(self.params)} parameters and {count_text(self.tokens)} tokens"
        goal = "" if self.wanted is None else f", wanted ±{self.wanted:.1%}"
        width = f"{self.half_width:.1%}" if self.half_width < 10 else f"{self.half_width:.2g} times that"
        beware = f"; the form of the law fails: {self.form_fails}" if self.form_fails else ""
        return (
            f"{self.quantity}{where}: {self.value:.4g} ({self.low:.4g} to {self.high:.4g}), ±{width} at "
            f"{100 * self.level:g}%{goal}; {self.points} points done, {self.spent_flops:.3g} FLOPs{beware}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def precision_so_far(config: Config, folder: SweepFolder) -> Reached | None:
    """The interval of ``sweep.target`` by Approach 3 on the sweep's done points; None while they tell none.

    The wider of two: the bootstrap's, which few points make too narrow, and the linearised one with Student's t.
    N is counted by ``fit.params``, C by the matmul count. Only reads.
    """
    stated = config.sweep.target
    try:
        numbers = {name: getattr(stated, name) for name in NUMBERS[stated.quantity]}
        target = Target(quantity=stated.quantity, **{name: each for name, each in numbers.items() if each is not None})
    except UserError:  # no target is stated
        return None
    rows = read_results([folder], config.fit.params).largest_family()
    if len(rows) < LEAST_POINTS:
        return None
    fit = fit_parametric(
        rows.params, rows.tokens, rows.loss, objective=config.fit.objective, delta=config.fit.delta,
        form=config.fit.form, E=config.fit.E, starts=config.fit.starts,
    )  # fmt: skip
    if not isinstance(fit, ParametricFit):
        return None
    cost = fit_cost(rows.params, rows.tokens, rows.flops)
    value = float(target.value(fit.array()[None], cost)[0])
    plain = target.quantity is Quantity.exponent
    told = _bootstrapped(rows, fit, target, config.fit)
    error = _linearised(rows, fit, target, config.fit)
    low, high = value - error, value + error
    if told is not None:
        low, high = min(low, told[0]), max(high, told[1])
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    fails = lack_of_fit(rows.params, rows.tokens, rows.loss, fit)
    ends = [one if plain else math.exp(min(one, 300.0)) for one in (value, low, high)]
    sides = max(ends[0] - ends[1], ends[2] - ends[0])
    return Reached(
        quantity=target.quantity.value,
        flops=numbers.get("flops"),
        params=numbers.get("params"),
        tokens=numbers.get("tokens"),
        value=ends[0],
        low=ends[1],
        high=ends[2],
        level=config.fit.level,
        half_width=sides if plain else sides / ends[0],
        wanted=stated.half_width,
        points=len(rows),
        spent_flops=float(rows.spent.sum()),
        form_fails=fails.where,
    )


def _bootstrapped(rows: Results, fit: ParametricFit, target: Target, config: FitConfig) -> tuple[float, float] | None:
    n = len(rows)
    weights = np.random.default_rng(config.seed).multinomial(n, np.full(n, 1 / n), REPLICATES).astype(np.float64)
    theta, good = refit_parametric(rows.params, rows.tokens, rows.loss, weights, fit)
    values: Floats = target.value(theta[good], fit_cost(rows.params, rows.tokens, rows.flops))
    told = percentile(values, None, config.level, failed=int((~good).sum()))
    return None if told.low is None or told.high is None else (told.low, told.high)


def _linearised(rows: Results, fit: ParametricFit, target: Target, config: FitConfig) -> float:
    """Half-width: Student's t times the standard error by the residuals' scatter."""
    spare = len(rows) - fit.free
    if spare < 1:
        return math.inf
    noise = math.sqrt(float(np.sum(fit.residuals**2)) / spare)
    law, basis = fit.array()[None], basis_of(fit.form)
    aim = target.gradient(law, fit_cost(rows.params, rows.tokens, rows.flops)) @ basis
    error = noise * math.sqrt(float(variances(rows_of(law, rows.params, rows.tokens)[0] @ basis, aim)[0]))
    return float(stdtrit(spare, (1 + config.level) / 2)) * error * error_factor(config, noise)
