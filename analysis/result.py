"""What a fit yields: frozen values that figures, report, terminal and ``fit.json`` read; nothing here computes a fit.

Letters are the field's: N parameters, D tokens, C training FLOPs, L loss; N* ~ C^a, D* ~ C^b (Hoffmann et al. 2022,
table 2); L(N, D) = E + A / N^alpha + B / D^beta (equation 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FIT_SCHEMA = 1
"""Version of fit.json; a newer one is refused."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

APPROACHES = ("envelope", "isoflop", "parametric")
"""Hoffmann's Approaches 1, 2 and 3, by the names fit.json gives them."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its interval; None where it is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """As fit.json has it; what is not finite is not known."""
        return {"value": _finite(self.value), "low": _finite(self.low), "high": _finite(self.high)}


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A row left out of the fit."""

    row: str
    """The point's id, or the row's number in its CSV file ("row 1" is the first below the header)."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What N, C and L mean in a fit."""

    params: str
    """``total`` or ``non_embedding``."""
    flops: str
    """``matmul``, ``6nd``, ``chinchilla`` or ``logged`` (as the source gives it)."""
    loss: str
    """The loss and its unit."""

    def to_dict(self) -> dict[str, str]:
        """As fit.json has it."""
        return {"params": self.params, "flops": self.flops, "loss": self.loss}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The points of a fit as arrays of one length, under one convention."""

    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    budget: Floats
    """The geometric mean of the achieved FLOPs of the row's budget: rows of one budget share the number."""
    point_id: tuple[str, ...]
    run_id: tuple[str, ...]
    cluster_id: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def budgets(self) -> Floats:
        """The distinct budgets, rising."""
        return np.unique(self.budget)


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
class Parabola:
    """Approach 2 at one budget: loss = c2 x^2 + c1 x + c0 with x = log N - centre."""

    budget: float
    rows: Ints
    """Indices into :class:`Rows`."""
    coefficients: tuple[float, float, float] | None = None
    """(c2, c1, c0); None where there were too few points for one."""
    centre: float = 0.0
    n_opt: float | None = None
    """The vertex in parameters; None where the parabola is refused and has no minimum."""
    d_opt: float | None = None
    loss_opt: float | None = None
    refused: str | None = None
    """Why this budget is not used; None where it is."""

    def loss(self, params: npt.ArrayLike) -> Floats:
        """The parabola at ``params``, elementwise; NaN where there is none."""
        x = np.log(np.asarray(params, dtype=np.float64)) - self.centre
        if self.coefficients is None:
            return np.full_like(x, np.nan)
        return np.asarray(np.polyval(self.coefficients, x), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class IsoflopFit:
    """Approach 2: a parabola per budget and power laws through the accepted vertices."""

    parabolas: tuple[Parabola, ...]
    laws: PowerLaws

    @property
    def accepted(self) -> tuple[Parabola, ...]:
        """The parabolas that the power laws go through."""
        return tuple(parabola for parabola in self.parabolas if parabola.refused is None)


@dataclass(frozen=True, kw_only=True, eq=False)
class EnvelopeFit:
    """Approach 1: the lowest loss at each C over all runs, which run has it, and power laws through those points."""

    flops: Floats
    params: Floats
    tokens: Floats
    loss: Floats
    run_id: tuple[str, ...]
    """The winning run at each of ``flops``; all five have one length."""
    tail: float
    """Only rows at this progress through their schedule, or later, count."""
    runs: int
    runs_touching: int
    """Runs that are the lowest anywhere."""
    censored: int
    """Grid values of C left out because the smallest or the largest size nearby won: the optimum may lie outside."""
    laws: PowerLaws


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

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        return {
            "gradient_norm": _finite(self.gradient_norm),
            "starts": self.starts,
            "starts_agreeing": self.starts_agreeing,
            "converged": self.converged,
            "unidentified": list(self.unidentified),
            "condition": _finite(self.condition),
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


@dataclass(frozen=True, kw_only=True, eq=False)
class ParametricFit:
    """Approach 3: L(N, D) = E + A / N^alpha + B / D^beta, by a Huber loss on log L, summed over rows."""

    log_A: float  # noqa: N815
    log_B: float  # noqa: N815
    log_E: float  # noqa: N815
    alpha: float
    beta: float
    objective: float
    delta: float
    residuals: Floats
    """log L minus the fitted log L, one per row."""
    certificate: Certificate

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

    def array(self) -> Floats:
        """(5,): log A, log B, log E, alpha, beta, as the rows of ``Replicates.values``."""
        return np.array([self.log_A, self.log_B, self.log_E, self.alpha, self.beta])

    def loss(self, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
        """L(N, D), elementwise."""
        log_n = np.log(np.asarray(params, dtype=np.float64))
        log_d = np.log(np.asarray(tokens, dtype=np.float64))
        reducible = np.exp(self.log_A - self.alpha * log_n) + np.exp(self.log_B - self.beta * log_d)
        return np.asarray(self.E + reducible)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """What an approach says about one budget."""

    budget: float
    n_opt: Estimate
    d_opt: Estimate
    loss_opt: Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class Refused:
    """An approach that the data do not support."""

    reason: str
    parabolas: tuple[Parabola, ...] = ()
    """Approach 2: the budgets, each with its own reason."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        return {"refused": self.reason}


@dataclass(frozen=True, kw_only=True, eq=False)
class Approach:
    """What all three approaches give."""

    a: Estimate
    b: Estimate
    optima: tuple[Optimum, ...]
    replicates: Replicates | None

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        out: dict[str, Any] = {"a": self.a.to_dict(), "b": self.b.to_dict()}
        for name in ("n_opt", "d_opt", "loss_opt"):
            out[name] = [{"budget": at.budget, **getattr(at, name).to_dict()} for at in self.optima]
        out["replicates_failed"] = self.replicates.failed if self.replicates else 0
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Envelope(Approach):
    """Approach 1 with intervals."""

    fit: EnvelopeFit

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        counts = {name: getattr(self.fit, name) for name in ("tail", "runs", "runs_touching", "censored")}
        return super().to_dict() | counts | {"laws": _laws(self.fit.laws)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Isoflop(Approach):
    """Approach 2 with intervals."""

    fit: IsoflopFit

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        budgets = [
            {"budget": p.budget, "rows": len(p.rows), "n_opt": _finite(p.n_opt), "refused": p.refused}
            for p in self.fit.parabolas
        ]
        return super().to_dict() | {"parabolas": budgets, "laws": _laws(self.fit.laws)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Parametric(Approach):
    """Approach 3 with intervals."""

    fit: ParametricFit
    E: Estimate
    A: Estimate
    B: Estimate
    alpha: Estimate
    beta: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        law = {name: getattr(self, name).to_dict() for name in ("E", "A", "B", "alpha", "beta")}
        evidence = {
            "objective": self.fit.objective,
            "delta": self.fit.delta,
            "certificate": self.fit.certificate.to_dict(),
        }
        return super().to_dict() | law | evidence


@dataclass(frozen=True, kw_only=True, eq=False)
class ConventionFit:
    """The three approaches under one convention."""

    conventions: Conventions
    cost: Cost
    rows: Rows
    envelope: Envelope | Refused
    isoflop: Isoflop | Refused
    parametric: Parametric | Refused

    @property
    def approaches(self) -> dict[str, Envelope | Isoflop | Parametric | Refused]:
        """By name, in Hoffmann's order."""
        return {"envelope": self.envelope, "isoflop": self.isoflop, "parametric": self.parametric}

    def to_dict(self) -> dict[str, Any]:
        """As ``by_convention`` of fit.json has it."""
        approaches = {name: approach.to_dict() for name, approach in self.approaches.items()}
        return {"conventions": self.conventions.to_dict(), "cost": self.cost.to_dict(), "approaches": approaches}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """How the intervals were made."""

    method: str
    level: float
    replicates: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        return {"method": self.method, "level": self.level, "replicates": self.replicates, "seed": self.seed}


@dataclass(frozen=True, kw_only=True, eq=False)
class Backtest:
    """Approach 3 fitted without the largest budget, and what it then says about that budget's losses."""

    budget: float
    """The budget held out."""
    rows: int
    """Held-out losses."""
    level: float
    coverage: float
    """Share of them inside the prediction interval: parameters and residuals resampled."""
    coverage_parameters: float
    """Share inside the interval from the parameters alone, which is not a prediction interval."""
    error: float
    """Root mean square of log(predicted / measured)."""
    bias: float
    """Mean of log(predicted / measured): above 0, the larger budget did better than foretold."""
    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        names = ("budget", "rows", "level", "coverage", "coverage_parameters", "error", "bias")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """Everything one ``fit`` knows."""

    source: str
    primary: ConventionFit
    by_convention: tuple[ConventionFit, ...]
    """Every N convention the rows carry, the primary one first."""
    interval: Interval
    points: pd.DataFrame
    """The rows used, in the order of ``primary.rows``, in the points schema."""
    excluded: tuple[Exclusion, ...]
    backtest: Backtest | Refused
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was assumed about the source, one sentence each."""
    group: Mapping[str, str] = field(default_factory=dict)
    """With ``group_by``: the columns and values that make this group."""

    def to_dict(self) -> dict[str, Any]:
        """Exactly ``fit.json``."""
        primary = self.primary.to_dict()
        return {
            "schema": FIT_SCHEMA,
            "source": self.source,
            "group": dict(self.group),
            "rows": {
                "used": len(self.primary.rows),
                "excluded": [{"row": out.row, "reason": out.reason} for out in self.excluded],
            },
            "conventions": primary["conventions"],
            "cost": primary["cost"],
            "interval": self.interval.to_dict(),
            "approaches": primary["approaches"],
            "by_convention": [fit.to_dict() for fit in self.by_convention],
            "backtest": self.backtest.to_dict(),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _laws(laws: PowerLaws) -> dict[str, Any]:
    return {
        name: {"log_coefficient": law.log_coefficient, "exponent": law.exponent}
        for name, law in (("n_opt", laws.params), ("d_opt", laws.tokens), ("loss_opt", laws.loss))
    } | {"flops_range": list(laws.flops_range)}
