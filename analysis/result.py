"""What a fit yields: frozen values that figures, report, terminal and ``fit.json`` read; nothing here computes a fit.

Letters as in :mod:`analysis.fits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.fits import (
    Cost,
    EnvelopeFit,
    Floats,
    IsoflopFit,
    ParametricFit,
    PowerLaws,
    Refused,
    Replicates,
    finite,
)

FIT_SCHEMA = 1
"""Version of fit.json; a newer one is refused."""

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
        return {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high)}


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
class Optimum:
    """What an approach says about one budget."""

    budget: float
    n_opt: Estimate
    d_opt: Estimate
    loss_opt: Estimate


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
    lost: Mapping[float, float]
    """Accepted budget -> share of the replicates in which it has no minimum, so that they rest on the other budgets;
    empty without replicates."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        budgets = [
            {"budget": p.budget, "rows": len(p.rows), "n_opt": finite(p.n_opt), "refused": p.refused}
            | {"replicates_lost": self.lost.get(p.budget)}
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


def _laws(laws: PowerLaws) -> dict[str, Any]:
    return {
        name: {"log_coefficient": law.log_coefficient, "exponent": law.exponent}
        for name, law in (("n_opt", laws.params), ("d_opt", laws.tokens), ("loss_opt", laws.loss))
    } | {"flops_range": list(laws.flops_range)}
