"""What the numerical routines return: frozen values of arrays and numbers; nothing here computes a fit.

Letters are the field's: N parameters, D tokens, C training FLOPs, L loss; N* ~ C^a, D* ~ C^b (Hoffmann et al. 2022,
table 2); L(N, D) = E + A / N^alpha + B / D^beta (equation 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.config import Form, Objective, Valley
from analysis.fitting.columns import columns, one_length

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


WIDEST_BUDGET = 1.3
"""Rows whose FLOPs differ by more than this factor do not share a budget."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its interval; None where it is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None
    """Where the law lies: the scatter of refits."""
    prediction: tuple[float, float] | None = None
    """Where one more measurement would fall: the scatter of refits and that of measurements about the law."""

    def to_dict(self) -> dict[str, float | None]:
        """As fit.json has it; what is not finite is not known."""
        out = {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high)}
        if self.prediction is not None:
            out |= {"prediction_low": finite(self.prediction[0]), "prediction_high": finite(self.prediction[1])}
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The points of a fit, one row each, under one convention: every field has the shape (n,).

    Numbers may be given as any columns, of which values are taken by position; names as any sequence of strings.

    Raises
    ------
    UserError
        If a field is of another length, or a number is not finite and positive.
    """

    params: Floats
    """N, in parameters."""
    tokens: Floats
    """D, in tokens."""
    flops: Floats
    """C, in FLOPs."""
    loss: Floats
    """L, in any one unit."""
    budget: Floats
    """The geometric mean of the achieved FLOPs of the row's budget: rows of one budget share the number."""
    point_id: tuple[str, ...]
    run_id: tuple[str, ...]
    """Points of one run share it; Approach 1 finds a run's curve by it."""
    cluster_id: tuple[str, ...]
    """Points that ``resample=clusters`` draws together share it."""
    seed: Floats
    """NaN where it is not known."""

    def __post_init__(self) -> None:
        """Take any columns as arrays.

        Raises
        ------
        UserError
            If they are not such columns.
        """
        names = ("params", "tokens", "flops", "loss", "budget")
        found = columns(**{name: getattr(self, name) for name in names})
        for name, column in zip(names, found, strict=True):
            object.__setattr__(self, name, column)
        object.__setattr__(self, "seed", np.asarray(self.seed, dtype=np.float64))
        for name in ("point_id", "run_id", "cluster_id", "seed"):
            one_length(name, getattr(self, name), "params", self.params)
            if name != "seed":
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, index: Ints) -> Rows:
        """Some of the rows."""
        names = {name: tuple(getattr(self, name)[i] for i in index) for name in ("point_id", "run_id", "cluster_id")}
        return Rows(
            params=self.params[index],
            tokens=self.tokens[index],
            flops=self.flops[index],
            loss=self.loss[index],
            budget=self.budget[index],
            seed=self.seed[index],
            **names,
        )

    @property
    def budgets(self) -> Floats:
        """The distinct budgets, rising."""
        return np.unique(self.budget)

    def shared_budgets(self, least: int) -> Floats:
        """The budgets, rising, that ``least`` rows or more share: all of their FLOPs lie within a factor 1.3."""
        _, index, counts = np.unique(self.budget, return_inverse=True, return_counts=True)
        low, high = np.full(len(counts), np.inf), np.zeros(len(counts))
        np.minimum.at(low, index, self.flops)
        np.maximum.at(high, index, self.flops)
        return np.asarray(self.budgets[(counts >= least) & (high <= WIDEST_BUDGET * low)])


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """y = exp(log_coefficient) x^exponent."""

    log_coefficient: float
    exponent: float

    def __call__(self, x: npt.ArrayLike) -> Floats:
        """Y at ``x``, elementwise."""
        return np.exp(self.log_coefficient + self.exponent * np.log(np.asarray(x, dtype=np.float64)))


@dataclass(frozen=True, kw_only=True)
class PowerLaws:
    """N*(C), D*(C) and L*(C). L* has no irreducible term, so it holds only within ``flops_range``."""

    params: PowerLaw
    tokens: PowerLaw
    loss: PowerLaw
    flops_range: tuple[float, float]

    def array(self) -> Floats:
        """(6,): log coefficient and exponent of N*, D*, L*; the rows of ``Replicates.values`` look like this."""
        return np.array(
            [x for law in (self.params, self.tokens, self.loss) for x in (law.log_coefficient, law.exponent)]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Replicates:
    """The bootstrap's fits of one approach, those that failed left out and counted."""

    values: Floats
    """Approach 3: (replicates, 5), log A, log B, log E, alpha, beta; 1 and 2: (replicates, 6), PowerLaws.array()."""
    failed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class BudgetValley:
    """Approach 2 at one budget: the line through its losses over log N, and the minimum of that."""

    budget: float
    rows: Ints
    """Indices into :class:`Rows`."""
    line: Callable[[Floats], Floats] | None = None
    """Loss as a function of log N; None where there were too few sizes for one."""
    n_opt: float | None = None
    """N at the minimum; None where there is none."""
    d_opt: float | None = None
    loss_opt: float | None = None
    refused: str | None = None
    """Why this budget is not used; None where it is."""

    def loss(self, params: npt.ArrayLike) -> Floats:
        """The line at ``params``, elementwise; NaN where there is none."""
        log_n = np.log(np.asarray(params, dtype=np.float64))
        return np.full_like(log_n, np.nan) if self.line is None else np.asarray(self.line(log_n), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class IsoflopFit:
    """Approach 2: a valley per budget and power laws through the accepted minima."""

    valleys: tuple[BudgetValley, ...]
    laws: PowerLaws
    valley: Valley = Valley.parabola
    """The shape of them all."""
    surface: ParametricFit | None = None
    """Approach 3 on the same rows, where it was given, by which ``bias`` was found."""
    cost: Cost
    """C of the rows, as ``surface`` needs it."""
    bias: Floats | None = None
    """(accepted budgets,): log of the valley's N* over the true one, were ``surface`` the truth; NaN where the valley
    of its losses has no minimum; None without a surface."""
    unbiased: bool = False
    """Whether ``bias`` has been taken out of the minima and the laws."""

    @property
    def accepted(self) -> tuple[BudgetValley, ...]:
        """The valleys that the power laws go through."""
        return tuple(valley for valley in self.valleys if valley.refused is None)


@dataclass(frozen=True, kw_only=True, eq=False)
class EnvelopeFit:
    """Approach 1: the lowest loss at each C over all runs, which run has it, and power laws through those points."""

    flops: Floats
    params: Floats
    tokens: Floats
    loss: Floats
    run_id: tuple[str, ...]
    """The winning run at each of ``flops``; all five have one length."""
    curvature: float
    """Second derivative of log N* by log C, from a parabola through the envelope: 0 if a power law holds."""
    undecayed: int
    """Runs left out because their learning rate never decayed."""
    tail: float
    """Only rows at this progress through their schedule, or later, count."""
    runs: int
    runs_touching: int
    """Runs that are the lowest anywhere."""
    censored: int
    """Grid values of C left out because the smallest or the largest size nearby won: the optimum may lie outside."""
    laws: PowerLaws


@dataclass(frozen=True, kw_only=True)
class Window:
    """Approach 2 with only the sizes within ``factor`` of each budget's best one."""

    factor: float | None
    """None for all sizes."""
    a: float | None
    """N* ~ C^a; None where fewer than two budgets keep a valley."""
    b: float | None
    budgets: int
    """That have a usable valley."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """A profile-likelihood interval: how much worse the best fit gets as one number is held."""

    name: str
    """A, B, E, alpha, beta or a."""
    estimate: Estimate
    """An end is None where the data give none."""
    grid: Floats
    """(m,): values at which the number was held, rising."""
    deviance: Floats
    """(m,): likelihood-ratio statistic there; 0 at the estimate."""
    limit: float
    """Where the statistic leaves the interval: the quantile of F(1, n - k) for k free parameters."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Evidence that Approach 3 found its optimum, and whether the data determine it."""

    gradient_norm: float
    """Largest component of the gradient over the largest it could be (all residuals pulling one way): 0 to 1."""
    starts: int
    starts_agreeing: int
    """Starts that ended at the best objective."""
    converged: bool
    unidentified: tuple[str, ...]
    """Parameters that the data do not determine."""
    condition: float
    """Condition number of the scaled Gauss-Newton matrix at the optimum."""
    lowest: float
    """Least objective at which any start ended; below the fit's own where no law lies there."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        return {
            "gradient_norm": finite(self.gradient_norm),
            "starts": self.starts,
            "starts_agreeing": self.starts_agreeing,
            "converged": self.converged,
            "unidentified": list(self.unidentified),
            "condition": finite(self.condition),
            "lowest_objective": finite(self.lowest),
        }


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Training FLOPs per token as a power law in N, coefficient * N^exponent; C = 6 N D has 6 and 1."""

    coefficient: float = 6.0
    exponent: float = 1.0
    spread: float = 0.0
    """Largest relative distance of a row's FLOPs per token from the power law."""

    def flops_per_token(self, params: npt.ArrayLike) -> Floats:
        """C / D at ``params``, elementwise."""
        return np.asarray(self.coefficient * np.asarray(params, dtype=np.float64) ** self.exponent)

    def to_dict(self) -> dict[str, float]:
        """As fit.json has it."""
        return {"coefficient": self.coefficient, "exponent": self.exponent, "spread": self.spread}


SIX_ND = Cost()
"""C = 6 N D."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ParametricFit:
    """Approach 3: L(N, D) = E + A / N^alpha + B / D^beta, by a loss on log L, summed over rows."""

    log_A: float  # noqa: N815
    log_B: float  # noqa: N815
    log_E: float  # noqa: N815
    alpha: float
    beta: float
    objective: float
    delta: float
    """Of the Huber loss that was minimised: what ``how=lad`` and ``how=squared`` came down to."""
    how: Objective
    form: Form
    residuals: Floats
    """log L minus the fitted log L, one per row."""
    certificate: Certificate

    @property
    def above_lowest(self) -> float:
        """How far the objective lies above the lowest of any start, as a share; 0 for less than a millionth."""
        lowest = self.certificate.lowest
        return self.objective / lowest - 1 if self.objective > lowest * (1 + 1e-6) > 0 else 0.0

    @property
    def A(self) -> float:  # noqa: N802
        """Of the law."""
        return math.exp(self.log_A)

    @property
    def B(self) -> float:  # noqa: N802
        """Of the law."""
        return math.exp(self.log_B)

    @property
    def E(self) -> float:  # noqa: N802
        """The irreducible loss."""
        return math.exp(self.log_E)

    @property
    def free(self) -> int:
        """How many parameters were fitted."""
        return 5 if self.form is Form.free else 4

    def array(self) -> Floats:
        """(5,): log A, log B, log E, alpha, beta, as the rows of ``Replicates.values``."""
        return np.array([self.log_A, self.log_B, self.log_E, self.alpha, self.beta])

    def loss(self, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
        """L(N, D), elementwise."""
        log_n = np.log(np.asarray(params, dtype=np.float64))
        log_d = np.log(np.asarray(tokens, dtype=np.float64))
        return loss_of_laws(self.array(), log_n, log_d)


@dataclass(frozen=True, kw_only=True, eq=False)
class RepeatedFit:
    """What repeated tokens and excess parameters are worth (Muennighoff et al. 2023, equations 5 and 6)."""

    law: ParametricFit
    """L(N, D) of fresh tokens, by which repeated ones are measured."""
    r_d: Estimate
    """R_D*: repetitions at which the worth of tokens has mostly saturated."""
    r_n: Estimate
    """R_N*: the same for parameters beyond what the unique tokens call for."""
    rows: int
    """Of them, that repeat their data."""
    objective: float
    residuals: Floats
    """log L minus the fitted log L, one per row."""
    tokens: Floats
    """D of those rows."""
    unique_tokens: Floats
    """How many of the tokens are distinct."""
    starts: int
    starts_agreeing: int

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        law = {name: getattr(self.law, name) for name in ("E", "A", "B", "alpha", "beta")}
        found = {"r_d": self.r_d.to_dict(), "r_n": self.r_n.to_dict(), "rows": self.rows, "law": law}
        evidence = {"objective": self.objective, "starts": self.starts, "starts_agreeing": self.starts_agreeing}
        return found | evidence


@dataclass(frozen=True, kw_only=True, eq=False)
class Refused:
    """An approach that the data do not support."""

    reason: str
    valleys: tuple[BudgetValley, ...] = ()
    """Approach 2: the budgets, each with its own reason."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        return {"refused": self.reason}


def loss_of_laws(theta: Floats, log_n: npt.ArrayLike, log_d: npt.ArrayLike) -> Floats:
    """L of laws ``theta`` (..., 5), as the rows of ``Replicates.values``: their leading axes broadcast with N and D."""
    log_a, log_b, log_e, alpha, beta = np.moveaxis(theta, -1, 0)
    reducible = np.exp(log_a - alpha * np.asarray(log_n)) + np.exp(log_b - beta * np.asarray(log_d))
    return np.asarray(np.exp(log_e) + reducible)


def finite(value: float | None) -> float | None:
    """``value``; None for NaN, infinities and None, none of which JSON holds."""
    return None if value is None or not math.isfinite(value) else float(value)
