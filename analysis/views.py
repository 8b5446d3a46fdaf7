"""What the figures show, as plain numbers: the figures for papers and the report draw the same values from here.

Nothing is fitted: bands are percentiles of the bootstrap's replicates, lines are the fitted laws evaluated on grids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.bootstrap import LEAST_REPLICATES
from analysis.fits import Floats, Ints, Parabola, Refused
from analysis.isoflop import WIDEST_BUDGET
from analysis.laws import Law
from analysis.optimum import optimum
from analysis.powerlaw import optimum_of_laws
from analysis.result import ConventionFit, Conventions, Envelope, Isoflop, Parametric
from analysis.tables import loss_column
from analysis.text import flops_text

TITLES = {
    "envelope": "Approach 1, envelope",
    "isoflop": "Approach 2, isoFLOP",
    "parametric": "Approach 3, parametric",
}
COLOURS = {"envelope": "#0072B2", "isoflop": "#D55E00", "parametric": "#009E73"}
"""Okabe and Ito's, which colour-blind readers tell apart."""
DASHES = {"envelope": "solid", "isoflop": "dashed", "parametric": "dashdot"}
"""So that a print without colours still tells the approaches apart."""
LAW_COLOURS = ("#CC79A7", "#56B4E9", "#E69F00", "#000000")
COLOUR_MAP = "viridis"
COUNTS = {"total": "total", "non_embedding": "non-embedding"}
FRONTIER_POINTS = 80
PARABOLA_POINTS = 60
SURFACE_POINTS = 60
MOST_SLICES = 9
CURVE_POINTS, MOST_CURVES, MOST_CURVE_POINTS = 200, 300, 20_000
"""Per curve, curves, and points of all curves together: more can neither be seen nor loaded quickly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frontier:
    """N* or D* against C, with the central interval of the replicates; all arrays have one length."""

    flops: Floats
    value: Floats
    low: Floats | None
    high: Floats | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Loss against C of one run."""

    run_id: str
    params: float
    flops: Floats
    loss: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The fitted loss over the (C, N) plane: ``loss`` is (params, flops)."""

    flops: Floats
    params: Floats
    loss: Floats
    levels: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """The fitted loss along one budget, and the rows that lie on it."""

    budget: float
    params: Floats
    loss: Floats
    rows: Ints


def number_of(count: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def budgets_text(budgets: Sequence[float], most: int = 6) -> str:
    """Budgets in one line, the middle ones left out where they are many."""
    texts = [flops_text(budget) for budget in budgets]
    if len(texts) > most:
        texts = [*texts[: most - 1], f"… ({len(texts)} budgets)", texts[-1]]
    return ", ".join(texts)


def params_label(conventions: Conventions, symbol: str = "N") -> str:
    """Axis label of N with its convention."""
    return f"{symbol}, {COUNTS.get(conventions.params, conventions.params)} parameters"


def flops_label(conventions: Conventions) -> str:
    """Axis label of C with its convention."""
    return f"C, training FLOPs ({conventions.flops})"


def loss_label(conventions: Conventions) -> str:
    """Axis label of the loss with its unit."""
    return f"L, {conventions.loss}"


def tokens_label(symbol: str = "D") -> str:
    """Axis label of D."""
    return f"{symbol}, training tokens"


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high] for a logarithmic axis: as many as ``most`` labels leave room for."""
    if high < 4 * low:
        return _even_ticks(low, high, most)
    found: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [tick for e in decades for d in digits if low <= (tick := d * 10.0**e) <= high]
        gap = np.diff(np.log(found)).min(initial=np.inf) / np.log(high / low)
        if len(found) <= most and gap >= 0.8 / most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    scale = 10.0 ** math.floor(math.log10(max(high - low, 1e-12 * high)) - 1)
    for step in (1, 2, 2.5, 5, 10, 20, 25, 50, 100):
        first, last = math.ceil(low / (step * scale)), math.floor(high / (step * scale))
        if last - first < most:
            return [float(f"{i * step * scale:.12g}") for i in range(first, last + 1)]
    return [low]


def frontier(
    fit: ConventionFit, approach: Envelope | Isoflop | Parametric, flops: Floats, level: float
) -> tuple[Frontier, Frontier]:
    """N* and D* of an approach at ``flops``, with the band that holds ``level`` of its replicates."""
    value = _optima(fit, approach, _values(approach), flops)
    replicates = approach.replicates
    if replicates is None or len(replicates.values) < LEAST_REPLICATES:
        return Frontier(flops=flops, value=value[0], low=None, high=None), Frontier(
            flops=flops, value=value[1], low=None, high=None
        )
    every = _optima(fit, approach, replicates.values, flops)
    bands = [np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0) for values in every[:2]]
    params, tokens = (
        Frontier(flops=flops, value=v, low=low, high=high) for v, (low, high) in zip(value[:2], bands, strict=True)
    )
    return params, tokens


def fitted(fit: ConventionFit) -> dict[str, Envelope | Isoflop | Parametric]:
    """The approaches that were not refused, in Hoffmann's order."""
    return {name: approach for name, approach in fit.approaches.items() if not isinstance(approach, Refused)}


def frontier_flops(fit: ConventionFit) -> Floats:
    """The C over which frontiers are drawn: from the least of the rows to ten times the largest."""
    return np.geomspace(fit.rows.flops.min(), 10 * fit.rows.flops.max(), FRONTIER_POINTS)


def training_curves(fit: ConventionFit, curves: pd.DataFrame | None) -> list[Curve]:
    """The curves of the rows' runs by rising N, thinned for drawing; C is counted as the rows count it.

    Of very many curves, evenly spaced ones stay; each keeps at most 200 points, evenly spaced in log C, the ends
    included.
    """
    if curves is None or curves.empty:
        return []
    rows = {run: i for i, run in enumerate(fit.rows.run_id)}
    used = curves[curves["run_id"].isin(list(rows))]
    loss = loss_column(used)
    every = (_curve(fit, rows[str(run)], frame, loss) for run, frame in used.groupby("run_id", sort=False))
    found = sorted((curve for curve in every if curve is not None), key=lambda at: (at.params, at.flops[-1]))
    if len(found) > MOST_CURVES:
        found = [found[i] for i in np.linspace(0, len(found) - 1, MOST_CURVES).astype(int)]
    points = min(CURVE_POINTS, MOST_CURVE_POINTS // max(1, len(found)))
    return [_thinned(curve, points) for curve in found]


def curve_window(curves: Sequence[Curve], approach: Envelope) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of the C and the loss axis that leave the first tenth of every run's training above the window."""
    fit = approach.fit
    late = [curve.loss[curve.flops >= 0.1 * curve.flops[-1]] for curve in curves]
    flops = [fit.flops, *(np.array([0.03, 1]) * curve.flops[-1] for curve in curves)]
    return padded(np.concatenate(flops), 1.2), padded(np.concatenate([fit.loss, *late]), 1.03)


def parabola_line(fit: ConventionFit, parabola: Parabola) -> tuple[Floats, Floats]:
    """N and loss along a parabola, over its rows' sizes and a little beyond."""
    sizes = fit.rows.params[parabola.rows]
    params = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, PARABOLA_POINTS)
    return params, parabola.loss(params)


def minima(approach: Isoflop) -> tuple[Floats, Floats, Floats, Floats]:
    """C, N*, D* and L* of the parabolas that the power laws go through."""
    found = [(p.budget, p.n_opt, p.d_opt, p.loss_opt) for p in approach.fit.accepted]
    flops, params, tokens, loss = np.array(found, dtype=np.float64).T
    return flops, params, tokens, loss


def refusals(parabolas: Iterable[Parabola]) -> list[tuple[str, list[float]]]:
    """Each reason for which budgets were refused, and those budgets."""
    by_reason: dict[str, list[float]] = {}
    for parabola in parabolas:
        if parabola.refused is not None:
            by_reason.setdefault(parabola.refused, []).append(parabola.budget)
    return list(by_reason.items())


def surface(fit: ConventionFit, law: Parametric, levels: int = 11) -> Surface:
    """The fitted loss around the rows, with contour levels evenly spaced in log L over the losses seen."""
    rows = fit.rows
    flops = np.geomspace(rows.flops.min() / 1.5, rows.flops.max() * 1.5, SURFACE_POINTS)
    params = np.geomspace(rows.params.min() / 1.5, rows.params.max() * 1.5, SURFACE_POINTS)
    tokens = flops[None, :] / fit.cost.flops_per_token(params)[:, None]
    loss = law.fit.loss(params[:, None], tokens)
    lowest = max(float(loss.min()), float(rows.loss.min()) * 0.98)
    return Surface(
        flops=flops, params=params, loss=loss, levels=np.geomspace(lowest, float(rows.loss.max()) * 1.02, levels)
    )


def slices(fit: ConventionFit, law: Parametric) -> list[Slice]:
    """The fitted loss along budgets, over their rows' sizes and a little beyond.

    The budgets are the rows' own, thinned to nine, where those with three sizes or more hold half of the rows;
    otherwise seven values of C, evenly spaced in logs, each with the rows at most 15 % away from it.
    """
    rows = fit.rows
    shared = [
        (float(c), index)
        for c, index in ((c, np.flatnonzero(rows.budget == c)) for c in rows.budgets)
        if len(np.unique(rows.params[index])) >= 3 and np.ptp(np.log(rows.flops[index])) <= np.log(WIDEST_BUDGET)
    ]
    if len(shared) >= 2 and 2 * sum(len(index) for _, index in shared) >= len(rows):
        kept = np.unique(np.linspace(0, len(shared) - 1, min(len(shared), MOST_SLICES)).astype(int))
        chosen = [shared[i] for i in kept]
    else:
        even = np.geomspace(rows.flops.min(), rows.flops.max(), 7)
        chosen = [(float(c), np.flatnonzero(np.abs(rows.flops / c - 1) <= 0.15)) for c in even]
    return [_slice(fit, law, budget, index) for budget, index in chosen]


def interval_text(level: float) -> str:
    """How a level is called: 95 %."""
    return f"{100 * level:g} %"


def law_frontier(law: Law, flops: Floats) -> tuple[Floats, Floats]:
    """N* and D* of a published law at ``flops``, in its own conventions."""
    optima = [law.at_flops(float(c)) for c in flops]
    return np.array([at.params for at in optima]), np.array([at.tokens for at in optima])


def law_label(law: Law, conventions: Conventions) -> str:
    """A published law's name, with how it counts N and C where that differs from the fit."""
    pairs = ((law.params.value, conventions.params), (law.flops.value, conventions.flops))
    other = [COUNTS.get(own, own) for own, here in pairs if own != here]
    return f"{law.name} ({', '.join(other)})" if other else law.name


def _values(approach: Envelope | Isoflop | Parametric) -> Floats:
    return approach.fit.array() if isinstance(approach, Parametric) else approach.fit.laws.array()


def _optima(
    fit: ConventionFit, approach: Envelope | Isoflop | Parametric, values: Floats, flops: Floats
) -> tuple[Floats, Floats, Floats]:
    if isinstance(approach, Parametric):
        return optimum(values, fit.cost, flops)
    return optimum_of_laws(values[..., None, :], approach.fit.laws.flops_range, flops)


def _curve(fit: ConventionFit, row: int, frame: pd.DataFrame, column: str) -> Curve | None:
    """A run's curve, C from its tokens at the row's FLOPs per token; None with fewer than two losses."""
    loss = frame[column].to_numpy(dtype=np.float64)
    flops = frame["tokens"].to_numpy(dtype=np.float64) * (fit.rows.flops[row] / fit.rows.tokens[row])
    good = np.isfinite(loss) & np.isfinite(flops) & (loss > 0) & (flops > 0)
    if good.sum() < 2:
        return None
    order = np.argsort(flops[good], kind="stable")
    return Curve(
        run_id=fit.rows.run_id[row],
        params=float(fit.rows.params[row]),
        flops=flops[good][order],
        loss=loss[good][order],
    )


def _thinned(curve: Curve, points: int) -> Curve:
    """The rows nearest to ``points`` values of C, evenly spaced in logs, first and last included."""
    if len(curve.flops) <= points:
        return curve
    logs = np.log(curve.flops)
    keep = np.unique(np.searchsorted(logs, np.linspace(logs[0], logs[-1], points)).clip(0, len(logs) - 1))
    return replace(curve, flops=curve.flops[keep], loss=curve.loss[keep])


def _slice(fit: ConventionFit, law: Parametric, budget: float, index: Ints) -> Slice:
    """Over the rows' sizes, or around N* where they are fewer than three."""
    sizes = fit.rows.params[index]
    if len(np.unique(sizes)) < 3:
        sizes = optimum(law.fit.array(), fit.cost, budget)[0] * np.array([0.25, 4])
    params = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, PARABOLA_POINTS)
    loss = law.fit.loss(params, budget / fit.cost.flops_per_token(params))
    return Slice(budget=budget, params=params, loss=loss, rows=index)


def residual_percent(law: Parametric) -> Floats:
    """Measured over fitted loss, minus 1, in percent; one per row."""
    return 100 * np.expm1(law.fit.residuals)


def extent(frontier: Frontier) -> list[Floats]:
    """What an axis must hold to show a frontier."""
    return [at for at in (frontier.value, frontier.low, frontier.high) if at is not None]


def padded(values: npt.ArrayLike | Sequence[Floats], factor: float) -> tuple[float, float]:
    """Ends of a logarithmic axis around ``values``, ``factor`` beyond the smallest and the largest."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    flat = flat[np.isfinite(flat) & (flat > 0)]
    return float(flat.min() / factor), float(flat.max() * factor)
