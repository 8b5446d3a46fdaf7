"""Loss curves for drawing: few enough to be seen, thinned without losing their shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fitting.values import Floats, Ints
from analysis.ingest.tables import loss_column
from analysis.report.style import padded
from analysis.result import ConventionFit, Envelope

CURVE_POINTS, MOST_CURVES, MOST_CURVE_POINTS = 200, 300, 20_000
"""Per curve, curves, and points of all curves together: more can neither be seen nor loaded quickly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Loss against C of one run."""

    run_id: str
    params: float
    flops: Floats
    loss: Floats


def training_curves(fit: ConventionFit, curves: pd.DataFrame | None) -> list[Curve]:
    """The curves of the rows' runs by rising N, thinned for drawing; C is counted as the rows count it.

    Of very many curves, evenly spaced ones stay, and each is thinned by :func:`thinned`.
    """
    if curves is None or curves.empty:
        return []
    codes, names = pd.factorize(curves["run_id"])
    rows = {run: i for i, run in enumerate(fit.rows.run_id)}
    row_of = np.array([rows.get(str(name), -1) for name in names])
    used = curves[row_of[codes] >= 0] if (row_of < 0).any() else curves
    if used.empty:
        return []
    loss = curves[loss_column(used[["run_id", "val_loss"]])].to_numpy(dtype=np.float64)
    tokens = curves["tokens"].to_numpy(dtype=np.float64)
    good = (row_of[codes] >= 0) & np.isfinite(loss) & (loss > 0) & np.isfinite(tokens) & (tokens > 0)
    drawn = np.flatnonzero(np.bincount(codes[good], minlength=len(names)) >= 2)
    at = row_of[drawn]
    drawn = drawn[np.lexsort((fit.rows.flops[at], fit.rows.params[at]))]
    if len(drawn) > MOST_CURVES:
        drawn = drawn[np.linspace(0, len(drawn) - 1, MOST_CURVES).astype(int)]
    points = min(CURVE_POINTS, MOST_CURVE_POINTS // max(1, len(drawn)))
    kept = np.flatnonzero(good & np.isin(codes, drawn))
    kept = kept[np.lexsort((tokens[kept], codes[kept]))]
    ends = np.searchsorted(codes[kept], [drawn, drawn + 1]).T
    return [
        _curve(fit, row_of[run], tokens[kept[first:last]], loss[kept[first:last]], points)
        for run, (first, last) in zip(drawn, ends, strict=True)
    ]


def thinned(x: Floats, y: Floats, most: int) -> Ints:
    """Indices of at most ``most`` of the points (n,), by rising ``x``, that keep a line's shape.

    Largest triangle three buckets (Steinarsson, "Downsampling time series for visual representation", 2013): the ends,
    and of each bucket the point that spans the largest triangle with its neighbours, so that a spike of one point
    stays. Here buckets are of equal width in ``x``, and a neighbour is the mean of its bucket: none waits for another.
    """
    n = len(x)
    if n <= most:
        return np.arange(n)
    inner = slice(1, n - 1)
    bucket = ((x[inner] - x[0]) / max(x[-1] - x[0], 1e-300) * (most - 2)).astype(np.int64).clip(0, most - 3)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    counts = np.diff(starts, append=n - 2)
    mean_x, mean_y = (np.concatenate([z[:1], np.add.reduceat(z[inner], starts) / counts, z[-1:]]) for z in (x, y))
    own = np.repeat(np.arange(len(starts)), counts)
    x0, y0, x1, y1 = mean_x[own], mean_y[own], mean_x[own + 2], mean_y[own + 2]
    area = np.abs((x0 - x1) * (y[inner] - y0) - (x0 - x[inner]) * (y1 - y0))
    by_area = np.lexsort((area, own))
    largest = by_area[starts + counts - 1]
    return np.concatenate([[0], 1 + largest, [n - 1]])


def curve_window(curves: Sequence[Curve], approach: Envelope) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of the C and the loss axis that leave the first tenth of every run's training above the window."""
    fit = approach.fit
    late = [curve.loss[curve.flops >= 0.1 * curve.flops[-1]] for curve in curves]
    flops = [fit.flops, *(np.array([0.03, 1]) * curve.flops[-1] for curve in curves)]
    return padded(np.concatenate(flops), 1.2), padded(np.concatenate([fit.loss, *late]), 1.03)


def _curve(fit: ConventionFit, row: int, tokens: Floats, loss: Floats, points: int) -> Curve:
    """A run's curve, C from its tokens at the row's FLOPs per token."""
    rows = fit.rows
    flops = tokens * (rows.flops[row] / rows.tokens[row])
    keep = thinned(np.log(flops), np.log(loss), points)
    return Curve(run_id=rows.run_id[row], params=float(rows.params[row]), flops=flops[keep], loss=loss[keep])
