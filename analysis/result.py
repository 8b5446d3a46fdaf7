"""What a fit yields: frozen values that figures, report, terminal and ``fit.json`` read; nothing here computes a fit.

Letters as in :mod:`analysis.fitting.values`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import FitConfig, Form
from analysis.fitting.bootstrap import Scatter
from analysis.fitting.values import (
    Bools,
    Cost,
    EnvelopeFit,
    Estimate,
    Floats,
    IsoflopFit,
    ParametricFit,
    PowerLaws,
    Profile,
    Refused,
    RepeatedFit,
    Replicates,
    Rows,
    Window,
    finite,
)
from analysis.ingest.clean import PARAMS
from analysis.ingest.tables import Exclusion
from analysis.planning.lackoffit import LackOfFit
from analysis.version import version_of

FIT_SCHEMA = 1
"""Version of fit.json; a newer one is refused."""

SAME = 1e-3
"""Two counts of C that differ less, as a share, are one."""

APPROACHES = ("envelope", "isoflop", "parametric")
"""Hoffmann's Approaches 1, 2 and 3, by the names fit.json gives them."""


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
    replicates: Replicates
    scatter: Mapping[str, Scatter] = field(default_factory=dict)
    """``n_opt``, ``d_opt``, ``loss_opt`` -> how measurements of it scatter about the law, where that is known."""

    @property
    def quotable(self) -> bool:
        """Whether the approach found its optimum, so that its numbers mean something."""
        return True

    @property
    def remark(self) -> str:
        """What keeps its numbers from being quoted, or its parameters; "" for nothing."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        out: dict[str, Any] = {"a": self.a.to_dict(), "b": self.b.to_dict()}
        for name in ("n_opt", "d_opt", "loss_opt"):
            out[name] = [{"budget": at.budget, **getattr(at, name).to_dict()} for at in self.optima]
        out["replicates_failed"] = self.replicates.failed
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Envelope(Approach):
    """Approach 1 with intervals."""

    fit: EnvelopeFit
    curvature: Estimate
    """Of log N* against log C; an interval that leaves out 0 speaks against a power law."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        names = ("tail", "runs", "runs_touching", "censored", "undecayed")
        counts = {name: getattr(self.fit, name) for name in names} | {"curvature": self.curvature.to_dict()}
        return super().to_dict() | counts | {"laws": _laws(self.fit.laws)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Isoflop(Approach):
    """Approach 2 with intervals."""

    fit: IsoflopFit
    lost: Mapping[float, float]
    """Accepted budget -> share of the replicates in which it has no minimum, so that they rest on the other budgets;
    empty without replicates."""
    windows: tuple[Window, ...] = ()
    """How the exponents move with the sizes that count, the narrowest first."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        budgets: list[dict[str, Any]] = [
            {"budget": p.budget, "rows": len(p.rows), "n_opt": finite(p.n_opt), "refused": p.refused}
            | {"replicates_lost": self.lost.get(p.budget)}
            for p in self.fit.valleys
        ]
        if self.fit.bias is not None:
            bias = {at.budget: float(value) for at, value in zip(self.fit.accepted, self.fit.bias, strict=True)}
            for row, at in zip(budgets, self.fit.valleys, strict=True):
                row["bias"] = finite(bias.get(at.budget))
        windows = [{"factor": at.factor, "a": at.a, "b": at.b, "budgets": at.budgets} for at in self.windows]
        how = {"valley": self.fit.valley.value, "unbiased": self.fit.unbiased, "windows": windows}
        return super().to_dict() | {"valleys": budgets, "laws": _laws(self.fit.laws)} | how


@dataclass(frozen=True, kw_only=True, eq=False)
class Parametric(Approach):
    """Approach 3 with intervals."""

    fit: ParametricFit
    E: Estimate
    A: Estimate
    B: Estimate
    alpha: Estimate
    beta: Estimate
    form: LackOfFit
    """Tests of the law's form."""
    if_bent: tuple[Optimum, ...]
    """N* and L* where the form may fail in any one way that was tested, at the stated budgets and beyond; no D*."""
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    """By the name of what was held; empty unless asked for."""

    @property
    def quotable(self) -> bool:
        """Whether Newton's method converged."""
        return self.fit.certificate.converged

    @property
    def remark(self) -> str:
        """What the certificate says against the fit; "" for nothing."""
        found = self.fit.certificate
        if not found.converged:
            return f"did not converge: relative gradient {found.gradient_norm:.1g}"
        if self.fit.form is Form.tied:
            return "a and b follow from alpha = beta, not from the data"
        return f"not determined: {', '.join(found.unidentified)}" if found.unidentified else ""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it: where its numbers are not to be quoted, why, and the evidence alone."""
        law = {name: getattr(self, name).to_dict() for name in ("E", "A", "B", "alpha", "beta")}
        evidence: dict[str, Any] = {
            "objective": self.fit.objective,
            "delta": finite(self.fit.delta),
            "how": self.fit.how.value,
            "form": self.fit.form.value,
            "certificate": self.fit.certificate.to_dict(),
        }
        if not self.quotable:
            return {"refused": self.remark} | evidence | {"replicates_failed": self.replicates.failed}
        bent = [
            {"budget": at.budget, "n_opt": at.n_opt.to_dict(), "loss_opt": at.loss_opt.to_dict()} for at in self.if_bent
        ]
        form = {"lack_of_fit": self.form.to_dict(), "if_bent": bent}
        profiles = {name: at.estimate.to_dict() for name, at in self.profiles.items()}
        return super().to_dict() | law | evidence | form | ({"profiles": profiles} if profiles else {})


@dataclass(frozen=True, kw_only=True, eq=False)
class ConventionFit:
    """The three approaches under one convention."""

    conventions: Conventions
    cost: Cost
    rows: Rows
    measured: IsoflopFit | Refused
    """The valleys as they were measured, without Approach 3's help: what backtests and predictions are held against."""
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
class Holdout:
    """What a fit to the budgets up to one foretold of those beyond it; the arrays have one length."""

    fitted_to: float
    """The largest C fitted."""
    rows: int
    """Fitted."""
    flops: Floats
    """C of what was held out."""
    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats
    """The prediction interval: refits and the scatter of measurements."""
    law_low: Floats
    law_high: Floats
    """The interval from refits alone, which is not a prediction interval."""

    @property
    def inside(self) -> Bools:
        """Which of the measured lie inside the prediction interval."""
        return np.asarray((self.low <= self.measured) & (self.measured <= self.high))

    @property
    def law_inside(self) -> Bools:
        """Which of the measured lie inside the interval from refits alone."""
        return np.asarray((self.law_low <= self.measured) & (self.measured <= self.law_high))

    @property
    def coverage(self) -> float:
        """Share of the measured inside the prediction interval."""
        return float(np.mean(self.inside))

    @property
    def law_coverage(self) -> float:
        """Share of the measured inside the interval from refits alone."""
        return float(np.mean(self.law_inside))

    @property
    def error(self) -> float:
        """Root mean square of log(predicted / measured)."""
        return float(np.sqrt(np.mean(np.log(self.predicted / self.measured) ** 2)))

    @property
    def bias(self) -> float:
        """Mean of log(predicted / measured): above 0, larger budgets turned out lower than foretold."""
        return float(np.mean(np.log(self.predicted / self.measured)))

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        return {
            "fitted_to": self.fitted_to,
            "rows": self.rows,
            "held_out": len(self.measured),
            "reach": float(self.flops.max() / self.fitted_to),
            "coverage": self.coverage,
            "law_coverage": self.law_coverage,
            "error": self.error,
            "bias": self.bias,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Backtest:
    """Rolling origins: the fit cut at one budget after another, the last leaving only the largest out."""

    level: float
    loss: tuple[Holdout, ...]
    """Approach 3 on the losses of held-out rows, by rising origin."""
    n_opt: Mapping[str, tuple[Holdout, ...]]
    """Each approach on the minima of held-out budgets, by rising origin; empty where there are none."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        minima = {name: [at.to_dict() for at in held] for name, held in self.n_opt.items()}
        counted: dict[str, Any] = {"loss": once(self.loss).to_dict()}
        counted["n_opt"] = {name: once(held).to_dict() for name, held in self.n_opt.items()}
        origins = {"loss": [at.to_dict() for at in self.loss], "n_opt": minima}
        return {"level": self.level, **origins, "counted_once": counted}

    def coverage(self, approach: str) -> tuple[int, int]:
        """(inside, measured): how many minima of held-out budgets lay in the approach's prediction intervals.

        Each counts once, as the last origin before it foretold it.
        """
        found = once(self.n_opt.get(approach, ()))
        return found.inside, found.measured

    def coverage_of_losses(self) -> tuple[int, int]:
        """(inside, measured): the same for Approach 3 and the held-out losses."""
        found = once(self.loss)
        return found.inside, found.measured


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What several origins foretold, each of the measured counted once."""

    measured: int
    inside: int
    """Of them, inside the prediction interval."""
    law_inside: int
    """Of them, inside the interval from refits alone."""
    reach: float | None
    """The largest C over the C fitted, as counted; None where nothing was measured."""

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        names = ("measured", "inside", "law_inside", "reach")
        return {name: getattr(self, name) for name in names}


def once(held: Sequence[Holdout]) -> Counted:
    """Nested origins, by rising C, counted together: what lies beyond several, as the last before it foretold it."""
    inside = law_inside = measured = 0
    reach = None
    ends = [at.fitted_to for at in held[1:]] + [np.inf] * len(held[:1])
    for at, end in zip(held, ends, strict=True):
        next_to = at.flops <= end * (1 + 1e-9)
        if next_to.any():
            reach = max(reach or 0.0, float(at.flops[next_to].max() / at.fitted_to))
        measured += int(next_to.sum())
        inside += int((next_to & at.inside).sum())
        law_inside += int((next_to & at.law_inside).sum())
    return Counted(measured=measured, inside=inside, law_inside=law_inside, reach=reach)


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """Everything one ``fit`` knows."""

    source: str
    primary: ConventionFit
    by_convention: tuple[ConventionFit, ...]
    """Every pair of an N and a C convention that all rows carry, the primary one first."""
    interval: Interval
    points: pd.DataFrame
    """The rows used, in the order of ``primary.rows``, in the points schema."""
    excluded: tuple[Exclusion, ...]
    backtest: Backtest | Refused
    warnings: tuple[str, ...]
    compared: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """With ``fit.compare``: a by approach under every way to resample."""
    repeated: RepeatedFit | Refused | None = None
    """What repeated tokens are worth; None where no row repeats its data."""
    notes: tuple[str, ...] = ()
    """What was assumed about the source, one sentence each."""
    group: Mapping[str, str] = field(default_factory=dict)
    """With ``group_by``: the columns and values that make this group."""
    config: FitConfig | None = None
    """The settings, where they are known: for the record."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """What the verb was told of where rows come from (path, columns, where, ...), by the names of its settings."""

    @property
    def params_of_6nd(self) -> str | None:
        """The N in 6 N D: ``total`` or ``non_embedding``; None where the rows do not show it."""
        points = self.points
        for count, column in PARAMS.items():
            if "flops_6nd" in points and column in points:
                off = points["flops_6nd"] / (6 * points[column] * points["tokens"]) - 1
                if len(off) and (off.abs() < SAME).all():
                    return count.value
        return None

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
            "ranges": {
                name: [float(values.min()), float(values.max())]
                for name in ("params", "tokens", "flops", "loss")
                for values in (getattr(self.primary.rows, name),)
            },
            "conventions": primary["conventions"],
            "cost": primary["cost"],
            "params_of_6nd": self.params_of_6nd,
            "interval": self.interval.to_dict(),
            "approaches": primary["approaches"],
            "by_convention": [fit.to_dict() for fit in self.by_convention],
            "backtest": self.backtest.to_dict(),
            "compared": {how: {name: a.to_dict() for name, a in found.items()} for how, found in self.compared.items()},
            "repeated": None if self.repeated is None else self.repeated.to_dict(),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "version": version_of("isoflop"),
            "config": None if self.config is None else self.config.to_dict(),
            "reading": dict(self.reading),
        }


def _laws(laws: PowerLaws) -> dict[str, Any]:
    return {
        name: {"log_coefficient": law.log_coefficient, "exponent": law.exponent}
        for name, law in (("n_opt", laws.params), ("d_opt", laws.tokens), ("loss_opt", laws.loss))
    } | {"flops_range": list(laws.flops_range)}
