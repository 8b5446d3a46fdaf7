"""What keeps a row out of every fit: one rule after another, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.ingest.fill import FLOPS, SIZES
from analysis.ingest.tables import UNREADABLE

OWN = ("diverged", "failed", "unfinished")
"""How verdicts begin that say by themselves what they are."""
SCHEDULE_MISS = 0.05
"""Share by which a run's tokens may differ from its schedule's."""
TOKENS_PER_STEP = 1.5
"""Factor by which tokens per step may change within a run."""
STRETCHES = 10
"""Into so many stretches a run's rows are cut to compare their tokens per step."""


def defects(
    points: pd.DataFrame, curves: pd.DataFrame, params: str, flops: str
) -> Iterator[tuple[str | pd.Series, pd.Series]]:
    """(reason, or each row's own; the rows it holds for); the first that holds for a row is the one to tell.

    Parameters
    ----------
    params, flops
        The columns of N and C that must hold a number.
    """
    verdict = points["verdict"]
    plain = verdict.str.startswith(OWN) | verdict.str.endswith(UNREADABLE)
    yield verdict.where(plain, "verdict=" + verdict), ~verdict.isin(["", "done"])
    has_c, has_d = _any(points, FLOPS), _any(points, ("tokens",))
    fillable = {"tokens": has_c & _any(points, SIZES), params: has_c & has_d & ~_any(points, SIZES)}
    for column in ("loss", "tokens", params, flops):
        missing = ~np.isfinite(points[column])
        if column in fillable:
            name = "tokens" if column == "tokens" else "params"
            yield f"{column} is missing; fit.fill={name} takes it from C = 6 N D", missing & fillable[column]
        yield f"{column} is missing or not a number", missing
        yield f"{column} is not positive", points[column] <= 0
    yield "unique_tokens is not positive", points["unique_tokens"] <= 0
    off = (points["tokens"] / points["horizon"] - 1).abs() > SCHEDULE_MISS
    yield _mismatch(points, off), off
    faults = counter_faults(curves)
    yield points["run_id"].map(faults), points["run_id"].isin(faults)


def counter_faults(curves: pd.DataFrame) -> dict[str, str]:
    """Runs whose token counter cannot be right, and what was seen.

    Tokens may not fall as steps rise, nor may tokens per step change by more than :data:`TOKENS_PER_STEP`: both happen
    where an attempt inherits another's counter. Runs without steps are not looked at.
    """
    known = curves[np.isfinite(curves["step"]) & np.isfinite(curves["tokens"])]
    if known.empty:
        return {}
    run = known["run_id"].cat.codes.to_numpy()
    step, tokens = known["step"].to_numpy(), known["tokens"].to_numpy()
    if (np.diff(run) < 0).any() or ((np.diff(run) == 0) & (np.diff(step) < 0)).any():
        order = np.lexsort((tokens, step, run))
        run, step, tokens = run[order], step[order], tokens[order]
    names = known["run_id"].cat.categories
    first = np.flatnonzero(np.diff(run, prepend=-1))
    faults = {
        names[code]: f"its tokens per step range from {low:.4g} to {high:.4g}: correct the counter, or leave out its "
        "steps if the batch size did change"
        for code, low, high in _pace(run, step, tokens, first)
    }
    for i in np.flatnonzero((np.diff(run) == 0) & (np.diff(tokens) < 0))[::-1]:  # so that a run's first fall is told
        faults[names[run[i]]] = f"its tokens fall from {tokens[i]:.4g} to {tokens[i + 1]:.4g} as its steps rise"
    return faults


def _pace(
    run: np.ndarray, step: np.ndarray, tokens: np.ndarray, first: np.ndarray
) -> Iterator[tuple[int, float, float]]:
    """(code, least, greatest tokens per step) of runs in which they differ by too much, over stretches of its rows."""
    lengths = np.diff(first, append=len(run))
    at = first[:, None] + np.rint((lengths[:, None] - 1) * np.linspace(0, 1, STRETCHES + 1)).astype(int)
    steps, gained = np.diff(step[at]), np.diff(tokens[at])
    with np.errstate(divide="ignore", invalid="ignore"):
        pace = np.where(steps > 0, gained / steps, np.nan)
    low, high = np.fmin.reduce(pace, axis=1), np.fmax.reduce(pace, axis=1)
    for i in np.flatnonzero(high > TOKENS_PER_STEP * low):
        yield int(run[first[i]]), float(low[i]), float(high[i])


def _mismatch(points: pd.DataFrame, off: pd.Series) -> pd.Series:
    wrong = points[off]
    told = [
        f"its schedule was for {horizon:.4g} tokens, it ended at {tokens:.4g}"
        for horizon, tokens in zip(wrong["horizon"], wrong["tokens"], strict=True)
    ]
    return pd.Series(told, index=wrong.index, dtype=object).reindex(points.index)


def _any(points: pd.DataFrame, columns: tuple[str, ...]) -> pd.Series:
    """Rows with a positive number in any of the columns."""
    return (points[list(columns)] > 0).any(axis=1)
