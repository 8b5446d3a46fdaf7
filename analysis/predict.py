"""What a law or a fit says about a budget, a model size or a token count: the other two, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.bootstrap import percentile
from analysis.fits import Cost, Floats
from analysis.laws import Law
from analysis.optimum import optimum, optimum_for_params, optimum_for_tokens
from analysis.powerlaw import optimum_of_laws
from analysis.result import APPROACHES, Conventions, Estimate
from analysis.store import StoredFit, read_fit
from trainer.errors import UserError

NO_INTERVAL = "No intervals: the law was published without the replicates they would come from."
GIVEN = ("flops", "params", "tokens")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A compute-optimal point according to one law or approach; the number that was given has no interval."""

    by: str
    """The law's name, or ``<approach>`` of a fit."""
    conventions: Conventions
    flops: Estimate
    params: Estimate
    tokens: Estimate
    loss: Estimate
    statement: str
    """How the intervals were made, or why there are none."""

    def to_dict(self) -> dict[str, Any]:
        """As ``format=json`` prints it."""
        numbers = {name: getattr(self, name).to_dict() for name in ("flops", "params", "tokens", "loss")}
        return {
            "by": self.by,
            "conventions": self.conventions.to_dict(),
            **numbers,
            "statement": self.statement,
        }


def predict_law(
    law: Law, *, flops: float | None = None, params: float | None = None, tokens: float | None = None
) -> Prediction:
    """The optimum of a published law, in its own conventions, for exactly one of the three.

    Raises
    ------
    UserError
        If none or several are given, or the number is not positive.
    """
    given, value = _given(flops, params, tokens)
    at = {"flops": law.at_flops, "params": law.at_params, "tokens": law.at_tokens}[given](value)
    numbers = {name: Estimate(value=getattr(at, name)) for name in ("flops", "params", "tokens", "loss")}
    numbers[given] = Estimate(value=value)
    return Prediction(
        by=law.name,
        conventions=Conventions(params=law.params.value, flops=law.flops.value, loss=law.loss_unit),
        statement=NO_INTERVAL,
        **numbers,
    )


def predict_fit(
    path: Path, *, flops: float | None = None, params: float | None = None, tokens: float | None = None
) -> list[Prediction]:
    """The optimum according to each approach that a stored fit did not refuse, with intervals from its replicates.

    Raises
    ------
    UserError
        If none or several of the three are given, the fit cannot be read, or it refused every approach.
    """
    given, value = _given(flops, params, tokens)
    fit = read_fit(path)
    found = [
        _predict(fit, name, approach, given, value)
        for name in APPROACHES
        if "refused" not in (approach := fit.raw["approaches"][name])
    ]
    if not found:
        reasons = "; ".join(f"{name}: {fit.raw['approaches'][name]['refused']}" for name in APPROACHES)
        raise UserError(f"path={path}: every approach was refused, so the fit predicts nothing ({reasons}).")
    return found


def _predict(fit: StoredFit, name: str, approach: Mapping[str, Any], given: str, value: float) -> Prediction:
    conventions = Conventions(**fit.raw["conventions"])
    cost, interval = Cost(**fit.raw["cost"]), fit.raw["interval"]
    many = fit.replicates.get(f"{conventions.params}/{name}")
    if name == "parametric":
        theta = np.array(
            [
                *(np.log(approach[key]["value"]) for key in ("A", "B", "E")),
                *(approach[key]["value"] for key in ("alpha", "beta")),
            ]
        )
        point = _by_surface(theta, cost, given, value)
        replicas = None if many is None else _by_surface(many, cost, given, value)
    else:
        laws = approach["laws"]
        six = np.array(
            [laws[key][part] for key in ("n_opt", "d_opt", "loss_opt") for part in ("log_coefficient", "exponent")]
        )
        span = (float(laws["flops_range"][0]), float(laws["flops_range"][1]))
        point = _by_laws(six, span, given, value)
        replicas = None if many is None else _by_laws(many, span, given, value)
    if name == "envelope" and replicas is not None:
        replicas = {key: many for key, many in replicas.items() if key != "loss"}  # see approaches._envelope
    numbers = {
        key: _estimate(float(point[key]), None if replicas is None else replicas.get(key), interval["level"])
        for key in point
    }
    numbers[given] = Estimate(value=value)
    other = numbers["tokens" if given != "tokens" else "params"]
    if other.value is None:
        statement = f"Not known: there is no optimum at {given}={value:g} that a floating-point number can hold."
    elif replicas is None or other.low is None:
        statement = "No intervals: the fit keeps no or too few replicates."
    else:
        statement = (
            f"{100 * interval['level']:g}% intervals; {interval['method']}; of the optimum, not of a single run."
        )
    if name != "parametric" and numbers["loss"].value is None and other.value is not None:
        statement += " The loss is not known: C lies outside the budgets of this approach."
    return Prediction(by=name, conventions=conventions, statement=statement, **numbers)


def _by_surface(theta: Floats, cost: Cost, given: str, value: float) -> dict[str, Floats]:
    """C, N, D and L from Approach 3."""
    solve = {"flops": optimum, "params": optimum_for_params, "tokens": optimum_for_tokens}[given]
    with np.errstate(over="ignore"):  # what is not finite is not known
        first, other, loss = solve(theta, cost, value)
    if given == "flops":
        return {"flops": np.full_like(first, value), "params": first, "tokens": other, "loss": loss}
    c = first
    own = np.full_like(c, value)
    n, d = (own, other) if given == "params" else (other, own)
    return {"flops": c, "params": n, "tokens": d, "loss": loss}


def _by_laws(laws: Floats, span: tuple[float, float], given: str, value: float) -> dict[str, Floats]:
    """C, N, D and L from the power laws of Approach 1 or 2, which are inverted for N or D."""
    c = np.full(laws.shape[:-1], value)
    if given != "flops":
        level, exponent = laws[..., 0 if given == "params" else 2], laws[..., 1 if given == "params" else 3]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            c = np.where(exponent > 0, np.exp((np.log(value) - level) / exponent), np.nan)
    n, d, loss = optimum_of_laws(laws, span, c)
    return {"flops": c, "params": n, "tokens": d, "loss": loss}


def _estimate(point: float, replicas: Floats | None, level: float) -> Estimate:
    if not 0 < point < np.inf:
        return Estimate(value=None)
    return Estimate(value=point) if replicas is None else percentile(replicas, point, level)


def _given(flops: float | None, params: float | None, tokens: float | None) -> tuple[str, float]:
    values = {name: value for name, value in zip(GIVEN, (flops, params, tokens), strict=True) if value is not None}
    if len(values) != 1:
        shown = " ".join(f"{name}={value:g}" for name, value in values.items()) or "nothing"
        raise UserError(f"predict got {shown}; give exactly one of flops=, params= and tokens=.")
    ((name, value),) = values.items()
    if not (np.isfinite(value) and value > 0):
        raise UserError(f"{name}={value} is not a positive number; give one such as {name}=1e18.")
    return name, float(value)
