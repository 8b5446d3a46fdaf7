"""The fit card: what N, C and L mean in a fit, what the fit rests on, and how it was computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from analysis import views
from analysis.fits import Floats
from analysis.page import definitions
from analysis.result import Approach, Envelope, FitResult, Isoflop, Parametric
from analysis.text import count_text, flops_text
from analysis.views import number_of

PARAMS = {
    "total": "all parameters: embedding, blocks and an untied head",
    "non_embedding": "parameters without the embedding and an untied head",
}
FLOPS = {
    "matmul": "every dense matmul with full attention, forward and backward",
    "6nd": "6 times total parameters times tokens",
    "chinchilla": "as in appendix F of Hoffmann et al. 2022",
    "logged": "as the source gives them",
}
DESCRIBED = ("sweep", "corpus", "schedule", "seed", "batch", "lr", "unique_tokens", "loss_std")
"""Columns of the points table that the card sums up, where they hold something."""


def fit_card(fit: FitResult) -> str:
    """The card as HTML."""
    return definitions([*_meaning(fit), *_basis(fit), *_method(fit)])


def _meaning(fit: FitResult) -> Iterator[tuple[str, str]]:
    rows, conventions, cost = fit.primary.rows, fit.primary.conventions, fit.primary.cost
    yield "Source", fit.source
    for name, value in fit.group.items():
        yield f"Group: {name}", value
    yield "N", f"{PARAMS.get(conventions.params, conventions.params)}; {_range(rows.params, count_text)}"
    yield "D", f"training tokens; {_range(rows.tokens, count_text)}"
    yield "C", f"training FLOPs, {FLOPS.get(conventions.flops, conventions.flops)}; {_range(rows.flops, flops_text)}"
    yield "L", f"{conventions.loss}; {_range(rows.loss, '{:.4g}'.format)}"
    yield "D / N", _range(rows.tokens / rows.params, "{:.3g}".format)
    power = "N" if cost.exponent == 1 else f"N^{cost.exponent:.4g}"
    spread = "in every row" if cost.spread < 1e-6 else f"rows are off by {100 * cost.spread:.2g} % at most"
    yield "C as a law", f"C = {cost.coefficient:.4g} {power} D; {spread}"


def _basis(fit: FitResult) -> Iterator[tuple[str, str]]:
    rows = fit.primary.rows
    counts = {
        "point": len(rows),
        "run": len(set(rows.run_id)),
        "cluster": len(set(rows.cluster_id)),
        "size": len(np.unique(rows.params)),
        "budget": len(rows.budgets),
    }
    yield "Counts", ", ".join(number_of(count, name) for name, count in counts.items())
    yield "Left out", number_of(len(fit.excluded), "row")
    for name in DESCRIBED:
        values = _values(fit.points[name]) if name in fit.points else ""
        if values or name == "schedule":
            yield name.capitalize().replace("_", " "), values or "not stated by the source"


def _method(fit: FitResult) -> Iterator[tuple[str, str]]:
    one, two, three = fit.primary.envelope, fit.primary.isoflop, fit.primary.parametric
    if isinstance(one, Envelope):
        at = one.fit
        yield (
            "Approach 1",
            f"rows from {100 * at.tail:g} % of a run's schedule on; {at.runs_touching} of {at.runs} runs are lowest "
            f"somewhere; {at.censored:,} values of C left out, where the smallest or largest size nearby won",
        )
    if isinstance(two, Isoflop):
        yield "Approach 2", f"{len(two.fit.accepted)} of {len(two.fit.parabolas)} budgets have a usable parabola"
    if isinstance(three, Parametric):
        yield from _evidence(three)
    interval = fit.interval
    yield "Intervals", f"{interval.method}; {views.interval_text(interval.level)}, seed {interval.seed}"
    failed = [f"{name} {_failed(approach)}" for name, approach in views.fitted(fit.primary).items()]
    yield "Replicates", f"{interval.replicates:,}" + (f"; without a result: {', '.join(failed)}" if failed else "")


def _evidence(approach: Parametric) -> Iterator[tuple[str, str]]:
    found = approach.fit.certificate
    yield (
        "Approach 3",
        f"sum over rows of Huber(log L − log L(N, D)) with delta = {approach.fit.delta:g}, "
        f"at its least {approach.fit.objective:.6g}",
    )
    yield "Starts", f"{found.starts}, of which {found.starts_agreeing} ended at the best objective"
    gradient = f"gradient {found.gradient_norm:.1e} of its largest possible, condition number {found.condition:.2g}"
    yield "Converged", f"{'yes' if found.converged else 'no'}; {gradient}"
    yield "Not determined by the data", ", ".join(found.unidentified) or "none of the five parameters"


def _failed(approach: Approach) -> str:
    return f"{approach.replicates.failed:,}" if approach.replicates else "not resampled"


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
