"""What a sweep over learning rates says: the best rate of each size, and whether the axis reached beyond it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.ingest.tables import AXIS, Tables
from trainer.runfolder import DIVERGED

RATE = f"{AXIS}optim.lr"
LEAST_RATES = 3
RATE_AT_EDGE = "rate_at_edge"
"""The flag of points of a size whose best rate is the smallest or the largest that was tried."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best of several rates for one size, token count and choice of the other axes."""

    params: float
    """Total."""
    tokens: float
    others: str
    """The other axes' values, as text."""
    rates: int
    rate: float
    """Where a parabola in log rate through the best and its neighbours is lowest; the best itself at an edge."""
    loss: float
    """Of the best rate, mean over seeds."""
    edge: bool
    rows: tuple[int, ...]
    """Labels of the points in the table."""


def best_rates(points: pd.DataFrame) -> list[Best]:
    """One per size, token count and other axes, wherever :data:`LEAST_RATES` rates or more were tried.

    Losses are means over seeds; a rate at which a run diverged counts as infinitely bad.
    """
    if RATE not in points:
        return []
    others = [name for name in points if str(name).startswith(AXIS) and name != RATE]
    loss = points["loss"].mask(points["verdict"] == DIVERGED, np.inf)
    table = points.assign(_loss=loss)[points[RATE].notna() & (loss > 0)]
    found = []
    for key, group in table.groupby(["params_total", "tokens", *others], dropna=False):
        params, tokens, *values = key if isinstance(key, tuple) else (key,)
        mean = group.groupby(RATE)["_loss"].mean().sort_index()
        if len(mean) < LEAST_RATES or not np.isfinite(mean).any():
            continue
        at = int(np.argmin(mean))
        edge = at in (0, len(mean) - 1)
        said = [f"{str(name).removeprefix(AXIS)}={value}" for name, value in zip(others, values, strict=True)]
        found.append(
            Best(
                params=float(str(params)),
                tokens=float(str(tokens)),
                others=", ".join(said),
                rates=len(mean),
                rate=float(mean.index[at]) if edge else _lowest(mean.index.to_numpy(), mean.to_numpy(), at),
                loss=float(mean.iloc[at]),
                edge=edge,
                rows=tuple(group.index),
            )
        )
    return found


def flag_edges(tables: Tables) -> Tables:
    """The tables with :data:`RATE_AT_EDGE` among the flags of every point it holds for."""
    rows = [row for best in best_rates(tables.points) if best.edge for row in best.rows]
    if not rows:
        return tables
    flags = tables.points["flags"].copy()
    flags[rows] = [f"{text};{RATE_AT_EDGE}".lstrip(";") for text in flags[rows]]
    return replace(tables, points=tables.points.assign(flags=flags))


def _lowest(rates: np.ndarray, losses: np.ndarray, at: int) -> float:
    x, y = np.log(rates[at - 1 : at + 2].astype(np.float64)), losses[at - 1 : at + 2].astype(np.float64)
    if not np.isfinite(y).all():
        return float(rates[at])
    curve = np.polynomial.Polynomial.fit(x, y, 2)
    lowest = curve.deriv().roots()
    return float(np.exp(np.clip(lowest[0].real, x[0], x[2]))) if len(lowest) else float(rates[at])
