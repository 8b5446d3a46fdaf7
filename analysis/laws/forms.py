"""Laws in two forms behind one interface: surfaces L(N, D), and frontiers that know N*(C) and D*(C) alone.

Each law stays in the conventions it was fitted in. What ties N, D and C is its cost, C = k N^g D (6 N D unless stated).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from analysis.config import chosen
from analysis.fitting.optimum import exponents, optimum, optimum_for_params, optimum_for_tokens
from analysis.fitting.values import SIX_ND, Cost, Floats, PowerLaw
from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount


class OwnCount(StrEnum):
    """A count of C that only a fit of one's own has."""

    logged = "logged"
    """As the fitted source gives it."""


@dataclass(frozen=True, kw_only=True)
class Optimal:
    """A compute-optimal point: C, N*, D* and the loss there, in the law's conventions."""

    flops: float
    params: float
    tokens: float
    loss: float | None
    """None where the law knows none."""


@dataclass(frozen=True, kw_only=True)
class Law(ABC):
    """A law and what N, C and L mean in it.

    Raises
    ------
    UserError
        If its numbers give no optimum, or an optimum is asked for that floating-point numbers do not hold.
    """

    name: str
    params: ParamCount = ParamCount.total
    flops: FlopCount | OwnCount = FlopCount.sixnd
    cost: Cost = SIX_ND
    """C = k N^g D, by which the optima are found; ``dataclasses.replace(law, cost=...)`` gives another's."""
    params_range: tuple[float, float] | None = None
    """The smallest and the largest N on whose rows the cost was measured; None for one that is stated."""
    flops_range: tuple[float, float] | None = None
    """The smallest and the largest C of what the law was fitted to; None where its source does not say."""
    loss_unit: str = "nats/token"
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Take plain strings for conventions, and refuse a cost that ties nothing.

        Raises
        ------
        UserError
            If a convention is unknown, a number of the cost is not positive, or C is not counted as 6 N D but costs
            6 N D.
        """
        object.__setattr__(self, "params", chosen(ParamCount, self.params, "law.params"))
        if self.flops is not OwnCount.logged:
            object.__setattr__(self, "flops", chosen(FlopCount, self.flops, "law.flops"))
        positive("cost_coefficient", self.cost.coefficient)
        positive("cost_exponent", self.cost.exponent)
        stated = self.params_range is None
        if stated and self.flops is not FlopCount.sixnd and (self.cost.coefficient, self.cost.exponent) == (6.0, 1.0):
            raise UserError(
                f"law.flops={self.flops.name}: optima need C as a law in N and D; state law.cost_coefficient and "
                "law.cost_exponent of C = coefficient N^exponent D (fit.json has them under cost), or fit with "
                "fit.flops=sixnd and give that law."
            )

    @property
    @abstractmethod
    def a(self) -> float:
        """N* ~ C^a."""

    @property
    def b(self) -> float:
        """D* ~ C^b."""
        return 1 - self.cost.exponent * self.a

    @abstractmethod
    def at_flops(self, flops: float) -> Optimal:
        """N*, D* and L* at a budget of ``flops``."""

    @abstractmethod
    def at_params(self, params: float) -> Optimal:
        """The budget at which ``params`` is optimal, and its D*."""

    @abstractmethod
    def at_tokens(self, tokens: float) -> Optimal:
        """The budget at which ``tokens`` is optimal, and its N*."""

    @abstractmethod
    def loss(self, params: float, tokens: float) -> float | None:
        """L(N, D); None where the law knows no loss off its frontier."""

    @abstractmethod
    def excess(self, params: float, tokens: float) -> float:
        """How far (N, D) is from optimal, on a scale that ranks the points of one budget: the lower the better."""

    def _optimal(self, asked: str, flops: float, params: float, tokens: float, loss: float | None) -> Optimal:
        numbers = [float(x) for x in (flops, params, tokens, 1.0 if loss is None else loss)]
        if not all(0 < number < math.inf for number in numbers):
            raise UserError(
                f"{asked}: the optimum of law={self.name} there lies beyond what floating-point numbers hold; "
                "ask nearer to 1e18."
            )
        flops, params, tokens, _ = numbers
        return Optimal(flops=flops, params=params, tokens=tokens, loss=None if loss is None else float(loss))


@dataclass(frozen=True, kw_only=True)
class SurfaceLaw(Law):
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 10)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Refuse numbers with which the law has no optimum.

        Raises
        ------
        UserError
            If A, B, alpha or beta is not positive, E is negative, or the cost ties nothing.
        """
        super().__post_init__()
        for name in ("A", "B", "alpha", "beta"):
            positive(name, getattr(self, name))
        positive("E", self.E, zero=True)

    def array(self) -> Floats:
        """(5,): log A, log B, log E, alpha, beta, as numerical routines take a surface; log 0 is -inf."""
        log_e = math.log(self.E) if self.E else -math.inf
        return np.array([math.log(self.A), math.log(self.B), log_e, self.alpha, self.beta])

    @property
    def a(self) -> float:
        """N* ~ C^a."""
        return float(exponents(self.array(), self.cost)[0])

    def loss(self, params: float, tokens: float) -> float:
        """L(N, D)."""
        return float(self.E + self.A / params**self.alpha + self.B / tokens**self.beta)

    def excess(self, params: float, tokens: float) -> float:
        """The loss."""
        return self.loss(params, tokens)

    def at_flops(self, flops: float) -> Optimal:
        """N*, D* and L* at a budget of ``flops``."""
        with np.errstate(over="ignore"):
            n, d, loss = optimum(self.array(), self.cost, flops)
        return self._optimal(f"flops={flops:g}", flops, float(n), float(d), float(loss))

    def at_params(self, params: float) -> Optimal:
        """The budget at which ``params`` is optimal, and its D*."""
        with np.errstate(over="ignore"):
            c, d, loss = optimum_for_params(self.array(), self.cost, params)
        return self._optimal(f"params={params:g}", float(c), params, float(d), float(loss))

    def at_tokens(self, tokens: float) -> Optimal:
        """The budget at which ``tokens`` is optimal, and its N*."""
        with np.errstate(over="ignore"):
            c, n, loss = optimum_for_tokens(self.array(), self.cost, tokens)
        return self._optimal(f"tokens={tokens:g}", float(c), float(n), tokens, float(loss))


@dataclass(frozen=True, kw_only=True)
class FrontierLaw(Law):
    """N*(C) as a power law, D*(C) by the cost, and L*(C) = E + loss_coefficient / C^loss_exponent where it is known."""

    n_opt: PowerLaw
    E: float = 0.0
    loss_coefficient: float | None = None
    loss_exponent: float | None = None

    def __post_init__(self) -> None:
        """Refuse a frontier on which N or D does not grow with C, and half a law of the loss.

        Raises
        ------
        UserError
            Naming the number.
        """
        super().__post_init__()
        if not (math.isfinite(self.n_opt.log_coefficient) and self.a > 0 and self.b > 0):
            raise UserError(
                f"law={self.name}: N* ~ C^{self.a:g} and D* ~ C^{self.b:g}, but both must grow with C: "
                "give an exponent between 0 and 1."
            )
        if (self.loss_coefficient is None) != (self.loss_exponent is None):
            raise UserError(f"law={self.name}: state both law.loss_coefficient and law.loss_exponent, or neither.")
        positive("E", self.E, zero=True)
        for name in ("loss_coefficient", "loss_exponent"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))

    @property
    def a(self) -> float:
        """N* ~ C^a."""
        return self.n_opt.exponent

    def loss(self, params: float, tokens: float) -> None:
        """None: off the frontier nothing is known."""

    def excess(self, params: float, tokens: float) -> float:
        """Distance of log N from the optimum at the point's own C."""
        log_c = math.log(self.cost.coefficient) + self.cost.exponent * math.log(params) + math.log(tokens)
        return abs(math.log(params) - self.n_opt.log_coefficient - self.a * log_c)

    def at_flops(self, flops: float) -> Optimal:
        """N*, D* and L* at a budget of ``flops``."""
        return replace(self._at(f"flops={flops:g}", math.log(flops)), flops=flops)

    def at_params(self, params: float) -> Optimal:
        """The budget at which ``params`` is optimal, and its D*."""
        log_c = (math.log(params) - self.n_opt.log_coefficient) / self.a
        return replace(self._at(f"params={params:g}", log_c), params=params)

    def at_tokens(self, tokens: float) -> Optimal:
        """The budget at which ``tokens`` is optimal, and its N*."""
        per_token = math.log(self.cost.coefficient) + self.cost.exponent * self.n_opt.log_coefficient
        return replace(self._at(f"tokens={tokens:g}", (math.log(tokens) + per_token) / self.b), tokens=tokens)

    def _at(self, asked: str, log_c: float) -> Optimal:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            c = float(np.exp(log_c))
            n = float(np.exp(self.n_opt.log_coefficient + self.a * log_c))
            d = float(c / self.cost.flops_per_token(n))
            loss = None
            if self.loss_coefficient is not None and self.loss_exponent is not None:
                loss = float(self.E + self.loss_coefficient * np.exp(-self.loss_exponent * log_c))
        return self._optimal(asked, c, n, d, loss)


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse a number of a law that is not positive (or, with ``zero``, negative) or not finite.

    Raises
    ------
    UserError
        Naming it.
    """
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise UserError(f"law.{name}={value} must be a positive number; see conf/law/ for published laws.")
