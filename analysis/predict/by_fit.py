"""What the approaches of a fit answer, with intervals from its replicates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from analysis.fitting.bootstrap import Scatter, percentile
from analysis.fitting.powerlaw import optimum_of_laws
from analysis.fitting.values import Cost, Estimate, Floats
from analysis.laws.constrained import PUBLISHED, PUBLISHED_TEXT
from analysis.laws.forms import OwnCount, SurfaceLaw
from analysis.predict.prediction import Prediction, known, prediction
from analysis.predict.question import AXES, Kind, Numbers, Question, answer
from analysis.predict.reach import cost_text, measured_text
from analysis.result import APPROACHES, Conventions, FitResult
from analysis.store import StoredFit
from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount

SCATTERS = {"params": "n_opt", "tokens": "d_opt", "loss": "loss_opt"}
"""What a number's measurement is called in fit.json."""
SURFACE = ("A", "B", "E", "alpha", "beta")


def predict_fit(fit: FitResult | StoredFit | Path | str, **asked: Unpack[Numbers]) -> list[Prediction]:
    """What each approach of a fit says that was not refused, with intervals from its replicates.

    Parameters
    ----------
    fit
        In memory, or a folder that :func:`~analysis.store.write_fit` wrote: both say the same.
    asked
        The numbers of a :class:`~analysis.predict.question.Question`, as for
        :func:`~analysis.predict.by_law.predict_law`; all but the compute-optimal point are a matter of Approach 3
        alone.

    Raises
    ------
    UserError
        If the numbers make no question, the fit cannot be read, or it refused every approach that could answer.

    Examples
    --------
    >>> result = fit_tables(read_file("points.csv"), FitConfig())
    >>> predict_fit(result, flops=1e22)
    """
    question = Question(**asked)
    fit = StoredFit.of(fit)
    able = APPROACHES if question.kind is Kind.optimum else APPROACHES[-1:]
    refused = {name: reason for name in able if (reason := refusal(fit.raw["approaches"][name]))}
    kept = [name for name in able if name not in refused]
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        what = "every approach" if question.kind is Kind.optimum else "Approach 3, which alone answers this,"
        raise UserError(f"{fit.name}: {what} was refused, so the fit predicts nothing ({reasons}).")
    return [by_approach(fit, name, question) for name in kept]


def by_approach(fit: StoredFit, name: str, question: Question) -> Prediction:
    """What the approach ``name`` says, which the fit did not refuse; Approaches 1 and 2 know optima alone."""
    approach, cost, interval = fit.raw["approaches"][name], Cost(**fit.raw["cost"]), fit.raw["interval"]
    many, worth, saturation = fit.replicates.get(fit.key(name)), "", PUBLISHED
    if name == "parametric":
        theta = _theta({key: approach[key]["value"] for key in SURFACE})
        if question.unique_tokens is not None:
            theta, saturation, worth, own = _repeated(fit, theta)
            many = None if own else many
        point = answer(question, theta, cost, saturation)
        replicas = None if many is None else answer(question, many, cost, saturation)
    else:
        laws = approach["laws"]
        six = [laws[key][part] for key in ("n_opt", "d_opt", "loss_opt") for part in ("log_coefficient", "exponent")]
        span = (float(laws["flops_range"][0]), float(laws["flops_range"][1]))
        point = _by_laws(np.array(six), span, question)
        replicas = None if many is None else _by_laws(many, span, question)
    if replicas is not None and name == "envelope":
        replicas = {key: values for key, values in replicas.items() if key != "loss"}  # see analysis.frontier
    scatter = _scatter(fit, name, question)
    estimates = {
        key: _estimate(
            float(value),
            None if replicas is None else replicas.get(key),
            interval["level"],
            scatter.get(key),
            approach.get("replicates_failed", 0),
        )
        for key, value in point.items()
    }
    estimates |= {key: Estimate(value=estimates[key].value) for key in question.known}
    statements = [*([worth] if worth else []), _how(question, estimates, interval)]
    known_optimum = all(estimates[key].value is not None for key in AXES)
    if name != "parametric" and estimates["loss"].value is None and known_optimum:
        statements.append("The loss is not known: C lies outside the budgets of this approach.")
    n = estimates["params"].value
    if name == "parametric" and n is not None:  # the power laws of the others hold D* themselves
        beyond = cost_text([n], cost, _fitted(fit, "params"))
        statements += [beyond] if beyond else []
    conventions = Conventions(**fit.raw["conventions"])
    measured = measured_text(fit.raw.get("backtest"), name)
    return prediction(name, question, conventions, estimates, statements, _fitted(fit), measured)


def refusal(approach: Mapping[str, Any]) -> str | None:
    """Why an approach of fit.json is not to be quoted; None where it is."""
    if "refused" in approach:
        return str(approach["refused"])
    return None if approach.get("certificate", {}).get("converged", True) else "it did not converge"


def law_of_fit(fit: FitResult | StoredFit | Path | str) -> SurfaceLaw:
    """Approach 3 of a fit, in memory or stored, as a law that counts N and C as the fit did, with its measured cost.

    Raises
    ------
    UserError
        If the fit cannot be read, or refused Approach 3.
    """
    fit = StoredFit.of(fit)
    found = fit.raw["approaches"]["parametric"]
    if reason := refusal(found):
        raise UserError(f"{fit.name}: Approach 3 was refused, so there is no law ({reason}).")
    counted = fit.raw["conventions"]["flops"]
    return SurfaceLaw(
        name="parametric",
        params=ParamCount(fit.raw["conventions"]["params"]),
        flops=OwnCount.logged if counted == OwnCount.logged else FlopCount(counted),
        params_range=_fitted(fit, "params"),
        cost=Cost(**fit.raw["cost"]),
        flops_range=_fitted(fit),
        loss_unit=fit.raw["conventions"]["loss"],
        source=fit.raw["source"],
        **{name: found[name]["value"] for name in SURFACE},
    )


def _how(question: Question, estimates: Mapping[str, Estimate], interval: Mapping[str, Any]) -> str:
    unknown = [name for name in AXES if estimates[name].value is None]
    if unknown:
        given, value = question.given
        return f"Not known: there is no optimum at {given}={value:g} that a floating-point number can hold."
    if not any(number.low is not None for number in estimates.values()):
        return "No intervals: the fit keeps no or too few replicates."
    of = "of the optimum, not of a single run" if question.kind is Kind.optimum else "of the law, not of a single run"
    return f"{100 * interval['level']:g}% intervals; {interval['method']}; {of}."


def _by_laws(laws: Floats, span: tuple[float, float], question: Question) -> dict[str, Floats]:
    """C, N, D and L from the power laws of Approach 1 or 2, which are inverted for N or D."""
    given, value = question.given
    c = np.full(laws.shape[:-1], value)
    if given != "flops":
        level, exponent = laws[..., 0 if given == "params" else 2], laws[..., 1 if given == "params" else 3]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            c = np.where(exponent > 0, np.exp((np.log(value) - level) / exponent), np.nan)
    n, d, loss = optimum_of_laws(laws, span, c)
    return {"flops": c, "params": n, "tokens": d, "loss": loss} | {given: np.full(laws.shape[:-1], value)}


def _repeated(fit: StoredFit, theta: Floats) -> tuple[Floats, Floats, str, bool]:
    """The law of fresh tokens, R_D* and R_N*, whose they are, and whether the fit has its own."""
    own = fit.raw.get("repeated") or {}
    if (own.get("r_d") or {}).get("value") is None:
        return theta, PUBLISHED, PUBLISHED_TEXT, False
    r_n = own["r_n"]["value"]
    saturation = np.array([own["r_d"]["value"], np.inf if r_n is None else r_n])
    excess = "excess parameters as good as any" if r_n is None else f"R_N* = {r_n:.3g}"
    worth = f"Repeated tokens: R_D* = {saturation[0]:.3g}, {excess}, and the law of fresh tokens, all of this fit."
    return _theta(own["law"]), saturation, worth, True


def _theta(law: Mapping[str, float]) -> Floats:
    with np.errstate(divide="ignore"):
        return np.array([*(np.log(law[key]) for key in SURFACE[:3]), *(law[key] for key in SURFACE[3:])])


def _scatter(fit: StoredFit, name: str, question: Question) -> dict[str, Scatter]:
    """How measurements scatter about what was asked: minima at a budget, or the loss of a run of one's own."""
    scatter = fit.scatter(name)
    if question.kind is Kind.optimum and question.given[0] == "flops":
        return {key: scatter[at] for key, at in SCATTERS.items() if at in scatter}
    of_a_run = question.kind is Kind.point and question.unique_tokens is None and "loss_opt" in scatter
    return {"loss": scatter["loss_opt"]} if of_a_run else {}


def _fitted(fit: StoredFit, what: str = "flops") -> tuple[float, float] | None:
    """The smallest and the largest C, or another number of the rows; None where fit.json does not say."""
    found = (fit.raw.get("ranges") or {}).get(what)
    return None if not found else (float(found[0]), float(found[1]))


def _estimate(point: float, replicas: Floats | None, level: float, scatter: Scatter | None, failed: int) -> Estimate:
    value = known(point)
    if value is None or replicas is None:
        return Estimate(value=value)
    return percentile(replicas, value, level, scatter, failed)
