"""The fit card: what a reader needs to judge or repeat a fit, in the order of a published checklist.

The checklist is that of Li, Kudugunta and Zettlemoyer, "(Mis)Fitting: a survey of scaling laws" (2025), arXiv
2502.18969: the law and its variables, the training set-up, what was collected of it, how the law was fitted, how it was
tested. What the source does not say is said to be unknown.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from enum import Enum

import numpy as np
import pandas as pd

from analysis.config import FitConfig, Form, Objective
from analysis.fitting.repeated import OVERRUN
from analysis.fitting.values import Floats, ParametricFit, Refused
from analysis.ingest.frames import flat
from analysis.report.page import definitions, subheading
from analysis.report.style import interval_text, number_of
from analysis.result import Approach, Envelope, FitResult, Isoflop, Parametric, once
from analysis.text import count_text, flops_text
from analysis.version import version_of

Items = Iterator[tuple[str, str]]

PARAMS = {
    "total": "all parameters: embedding, blocks and an untied head",
    "non_embedding": "parameters without the embedding and an untied head",
}
FLOPS = {
    "matmul": "every dense matmul with full attention, forward and backward",
    "chinchilla": "as in appendix F of Hoffmann et al. 2022",
    "logged": "as the source gives them",
}
FORMS = {
    Form.free: "L(N, D) = E + A / N^alpha + B / D^beta, five free parameters (Hoffmann et al. 2022, equation 10)",
    Form.tied: "L(N, D) = E + A / N^alpha + B / D^alpha, four free parameters (alpha = beta)",
    Form.fixed_E: "L(N, D) = E + A / N^alpha + B / D^beta with E given, four free parameters",
}
OBJECTIVES = {
    Objective.huber: "sum over rows of Huber(log L − log L(N, D)) with delta = {delta:g}",
    Objective.lad: "sum over rows of |log L − log L(N, D)|, by Huber with delta = {delta:g}",
    Objective.squared: "sum over rows of (log L − log L(N, D))², by Huber with delta = {delta:g}",
}
DESCRIBED = ("sweep", "corpus", "schedule", "batch", "lr", "steps", "loss_std")
"""Columns of the points table that the card sums up, where they hold something."""
ALWAYS = ("corpus", "schedule")
"""Those of which it says so where they hold nothing."""
SOFTWARE = ("isoflop", "numpy", "scipy", "pandas")


def fit_card(fit: FitResult) -> str:
    """The card as HTML."""
    parts = {
        "The law": _law,
        "Training": _training,
        "What was collected": _collected,
        "How it was fitted": _fitting,
        "How far to trust it": _trust,
        "To repeat it": _again,
    }
    return "\n".join(subheading(title) + definitions(part(fit)) for title, part in parts.items())


def flops_meaning(fit: FitResult, count: str) -> str:
    """What C counts in a fit; "" for a count that has no words here."""
    counted = {"total": "total ", "non_embedding": "non-embedding "}.get(fit.params_of_6nd or "", "")
    return f"6 times {counted}parameters times tokens" if count == "6nd" else FLOPS.get(count, "")


def _law(fit: FitResult) -> Items:
    rows, conventions, cost = fit.primary.rows, fit.primary.conventions, fit.primary.cost
    three, meaning = fit.primary.parametric, flops_meaning(fit, conventions.flops) or conventions.flops
    yield "Form", FORMS[three.fit.form] if isinstance(three, Parametric) else FORMS[Form.free] + "; refused"
    yield "Power laws", "N* ∝ C^a and D* ∝ C^b; Approaches 1 and 2 fit them to log N* and log D* by least squares"
    yield "N", f"{PARAMS.get(conventions.params, conventions.params)}; {_range(rows.params, count_text)}"
    yield "D", f"training tokens; {_range(rows.tokens, count_text)}"
    yield "C", f"training FLOPs, {meaning}; {_range(rows.flops, flops_text)}"
    yield "L", f"{conventions.loss}; {_range(rows.loss, '{:.4g}'.format)}"
    yield "D / N", _range(rows.tokens / rows.params, count_text)
    power = "N" if cost.exponent == 1 else f"N^{cost.exponent:.4g}"
    spread = "in every row" if cost.spread < 1e-6 else f"rows are off by {100 * cost.spread:.2g} % at most"
    yield "C as a law", f"C = {cost.coefficient:.4g} {power} D; {spread}"


def _training(fit: FitResult) -> Items:
    rows = fit.primary.rows
    yield "Source", fit.source
    for name, value in fit.group.items():
        yield f"Group: {name}", value
    seeds = np.unique(rows.seed[np.isfinite(rows.seed)])
    counts = {
        "point": len(rows),
        "run": len(set(rows.run_id)),
        "cluster": len(set(rows.cluster_id)),
        "size": len(np.unique(rows.params)),
        "budget": len(rows.budgets),
    }
    yield "Counts", ", ".join(number_of(count, name) for name, count in counts.items())
    yield "Seeds", ", ".join(f"{seed:g}" for seed in seeds[:12]) or "not stated by the source"
    yield "Repeated data", _epochs(fit)
    for name in DESCRIBED:
        values = _values(fit.points[name]) if name in fit.points else ""
        if values or name in ALWAYS:
            yield name.capitalize().replace("_", " "), values or "not stated by the source"


def _collected(fit: FitResult) -> Items:
    one, rows = fit.primary.envelope, fit.primary.rows
    most = max(Counter(rows.run_id).values())
    several = "" if most == 1 else f" (up to {most} points a run, at the ends of its horizons)"
    yield "Checkpoints, Approaches 2 and 3", f"the loss that each point ends at{several}"
    if isinstance(one, Envelope):
        undecayed = f"; {number_of(one.fit.undecayed, 'run')} left out that never decayed" if one.fit.undecayed else ""
        yield (
            "Checkpoints, Approach 1",
            f"every logged loss from {100 * one.fit.tail:g} % of a run's schedule on, interpolated in log C{undecayed}",
        )
    reasons = Counter(out.reason for out in fit.excluded)
    listed = "; ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(4))
    more = f"; and {len(reasons) - 4} more reasons" if len(reasons) > 4 else ""
    yield "Left out", number_of(len(fit.excluded), "row") + (f": {listed}{more}" if listed else "")
    yield "Outliers", "none dropped by rule: only the rows listed under “Rows left out” are missing"
    yield "Losses", "as measured, not smoothed; fits see their logarithm"


def _fitting(fit: FitResult) -> Items:
    one, two, three = fit.primary.envelope, fit.primary.isoflop, fit.primary.parametric
    if isinstance(one, Envelope):
        at = one.fit
        yield (
            "Approach 1",
            f"{at.runs_touching} of {at.runs} runs are lowest somewhere; {at.censored:,} values of C left out, where "
            "the smallest or largest size nearby won",
        )
    if isinstance(two, Isoflop):
        shape = f"{two.fit.valley.value} in log N by least squares" if two.fit.valley.value != "surface" else "surface"
        bias = "; bias taken out" if two.fit.unbiased else ""
        accepted = f"{len(two.fit.accepted)} of {len(two.fit.valleys)} budgets have a usable minimum"
        yield "Approach 2", f"{shape}; {accepted}{bias}"
    if isinstance(three, Parametric):
        found = three.fit.certificate
        yield "Approach 3, objective", OBJECTIVES[three.fit.how].format(delta=three.fit.delta)
        yield "Least objective", f"{three.fit.objective:.6g}{above_text(three.fit)}"
        yield "Optimiser", "Newton's method with the exact Hessian, damped, on (log A, log B, E, alpha, beta)"
        starts = "the best of a grid of (alpha, beta) on which the law is linear in E, A and B"
        agreeing = f"of which {found.starts_agreeing} ended at the best objective"
        yield "Starts", f"{found.starts}, {agreeing}; {starts}"
        yield (
            "Converged",
            f"{'yes' if found.converged else 'no'}; gradient {found.gradient_norm:.1e} of its largest possible",
        )
        yield "Condition number", count_text(found.condition)
        yield "Not determined by the data", ", ".join(found.unidentified) or "none of the five parameters"


def above_text(fit: ParametricFit) -> str:
    """What a start found below the law's own objective; "" where nothing."""
    if not fit.above_lowest:
        return ""
    above = f"{100 * fit.above_lowest:.2g} % above the lowest of any start"
    return f" of a law; {above}, where the losses do not fall with N or D"


def _trust(fit: FitResult) -> Items:
    interval, test = fit.interval, fit.backtest
    yield "Intervals", f"{interval.method}; {interval_text(interval.level)}"
    failed = [
        f"{name} {at.replicates.failed:,} of {at.replicates.failed + len(at.replicates.values):,}"
        for name, at in fit.primary.approaches.items()
        if isinstance(at, Approach) and len(at.replicates.values) + at.replicates.failed
    ]
    others = {len(at.replicates.values) + at.replicates.failed for at in _others(fit)}
    fewer = f", and {max(others):,} under other conventions" if others else ""
    yield (
        "Replicates",
        f"{interval.replicates:,}{fewer}" + (f"; without a result: {', '.join(failed)}" if failed else ""),
    )
    if isinstance(test, Refused):
        yield "Validation", f"none: {test.reason}"
        return
    each = once(test.loss)
    told = f"{each.inside} of {each.measured} held-out losses inside their intervals"
    reach = f", up to {count_text(each.reach)} times the C fitted" if each.reach else ""
    yield "Validation", f"backtest from {number_of(len(test.loss), 'origin')}, {told}{reach}"
    last = test.loss[-1]
    yield "Error beyond the data", f"{100 * np.expm1(last.error):.2g} % of the loss, the largest budget left out"


def _others(fit: FitResult) -> list[Approach]:
    """What was fitted under the conventions after the first."""
    return [at for under in fit.by_convention[1:] for at in under.approaches.values() if isinstance(at, Approach)]


def _again(fit: FitResult) -> Items:
    yield "Seed of the intervals", str(fit.interval.seed)
    if fit.config is not None:
        yield "Settings", _settings(fit.config)
    if fit.reading:
        yield "Rows", " ".join(f"{name}={value}" for name, value in flat(fit.reading).items())
    software = [f"{name} {version_of(name) or 'of unknown version'}" for name in SOFTWARE]
    yield "Software", ", ".join([f"Python {platform.python_version()}", *software])


def _settings(config: FitConfig) -> str:
    def text(value: object) -> str:
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        return str(value.value if isinstance(value, Enum) else value)

    return " ".join(f"fit.{at.name}={text(getattr(config, at.name))}" for at in fields(config))


def _epochs(fit: FitResult) -> str:
    if "unique_tokens" not in fit.points or not fit.points["unique_tokens"].notna().any():
        return "not stated by the source"
    epochs = (fit.points["tokens"] / fit.points["unique_tokens"]).dropna()
    count = int((epochs > OVERRUN).sum())
    return f"{number_of(count, 'row')} see data more than once, {epochs.max():.3g} times at most" if count else "none"


def _range(values: Floats, text: Callable[[float], str]) -> str:
    return f"{text(float(values.min()))} to {text(float(values.max()))}"


def _values(column: pd.Series) -> str:
    """What a column holds: each value where they are few, the range of many numbers; "" where it holds nothing."""
    known = column[column.notna() & (column.astype(str) != "")]
    distinct = sorted(known.unique())
    if len(distinct) <= 6:
        return ", ".join(value if isinstance(value, str) else f"{value:.6g}" for value in distinct)
    if pd.api.types.is_numeric_dtype(known):
        return f"{known.min():.4g} to {known.max():.4g}"
    return f"{', '.join(map(str, distinct[:5]))} and {len(distinct) - 5} more"
