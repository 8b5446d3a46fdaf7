"""What the numerical routines return: frozen values of arrays and numbers; nothing here computes a fit.

Letters are the field's: N parameters, D tokens, C training FLOPs, L loss; N* ~ C^a, D* ~ C^b (Hoffmann et al. 2022,
table 2); L(N, D) = E + A / N^alpha + B / D^beta (equation 10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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
            "gradient_norm": finite(self.gradient_norm),
            "starts": self.starts,
            "starts_agreeing": self.starts_agreeing,
            "converged": self.converged,
            "unidentified": list(self.unidentified),
            "condition": finite(self.condition),
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
        return loss_of_laws(self.array(), log_n, log_d)


@dataclass(frozen=True, kw_only=True, eq=False)
class Refused:
    """An approach that the data do not support."""

    reason: str
    parabolas: tuple[Parabola, ...] = ()
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
