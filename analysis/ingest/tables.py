"""The two tables that every source of runs is brought to: ``points`` and ``curves``.

Numbers are float64 with NaN for what is not known (FLOPs exceed 2^63, so integers would not hold them); texts are
strings with "" for what is not known, in ``curves`` categories, as millions of rows share few. Columns beyond the
schema (a sweep's axes, a file's own) stay at the right, where ``where=`` and ``group_by=`` reach them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

NUMBER, TEXT, CATEGORY = "number", "text", "category"
AXIS = "axis."
"""What the columns of a sweep's axes begin with: ``axis.optim.lr``."""

UNREADABLE = "is text, not a number"
"""How the verdict of a row ends that holds text for N, D or its loss."""

POINT_COLUMNS: dict[str, str] = {
    "run_id": TEXT,
    "point_id": TEXT,
    "cluster_id": TEXT,
    "sweep": TEXT,
    "seed": NUMBER,
    "corpus": TEXT,
    "budget": NUMBER,
    "params_total": NUMBER,
    "params_non_embedding": NUMBER,
    "params_embedding": NUMBER,
    "params_head": NUMBER,
    "tokens": NUMBER,
    "unique_tokens": NUMBER,
    "flops_6nd": NUMBER,
    "flops_matmul": NUMBER,
    "flops_chinchilla": NUMBER,
    "flops_logged": NUMBER,
    "steps": NUMBER,
    "batch": NUMBER,
    "lr": NUMBER,
    "schedule": TEXT,
    "horizon": NUMBER,
    "loss": NUMBER,
    "loss_unit": TEXT,
    "loss_std": NUMBER,
    "bits_per_byte": NUMBER,
    "verdict": TEXT,
    "flags": TEXT,
}
"""One row per point: loss in ``loss_unit`` (nats per token unless the source says otherwise), flags joined by ";"."""

CURVE_COLUMNS: dict[str, str] = {
    "run_id": CATEGORY,
    "step": NUMBER,
    "tokens": NUMBER,
    "flops": NUMBER,
    "train_loss": NUMBER,
    "val_loss": NUMBER,
    "lr": NUMBER,
    "progress": NUMBER,
}
"""One row per logged step; ``progress`` is the share of the run's own schedule that is done, in (0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A row left out of the fit."""

    row: str
    """The point's id, or the row's number in its CSV file ("row 1" is the first below the header)."""
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """What a source gives: usable points, their runs' curves, and each row left out with its reason."""

    source: str
    """Where the rows come from, for people to read."""
    points: pd.DataFrame
    curves: pd.DataFrame
    excluded: tuple[Exclusion, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What was assumed on the way, one sentence each."""


def complete_points(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with every column of the points schema, typed, in order; further columns follow."""
    return _complete(frame, POINT_COLUMNS)


def complete_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with every column of the curves schema, typed, in order; further columns follow."""
    return _complete(frame, CURVE_COLUMNS)


def joined(parts: Sequence[Tables], source: str) -> Tables:
    """Several sources as one."""
    return Tables(
        source=source,
        points=complete_points(pd.concat([part.points for part in parts], ignore_index=True)),
        curves=complete_curves(
            pd.concat([part.curves.astype({"run_id": object}) for part in parts], ignore_index=True)
        ),
        excluded=tuple(out for part in parts for out in part.excluded),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def numbers(column: pd.Series | Sequence[object]) -> np.ndarray:
    """A column as a new float64 array, whatever it held: Python integers beyond 2^63, texts, nothing.

    What is not a number becomes NaN.
    """
    if isinstance(column, pd.Series) and column.dtype.kind in "iuf":
        return column.to_numpy(dtype=np.float64, copy=True)
    with suppress(TypeError, ValueError, OverflowError):
        array = np.array(list(column), dtype=np.float64)
        if array.ndim == 1:  # a column of lists would give two
            return array
    return np.array([_number(value) for value in column], dtype=np.float64)


def loss_column(curves: pd.DataFrame) -> str:
    """Which losses of some runs' curves compare: validation where every run measured two or more, else training."""
    measured = curves[np.isfinite(curves["val_loss"]) & (curves["val_loss"] > 0)]
    every = (measured.groupby("run_id", observed=True).size() >= 2).sum() == curves["run_id"].nunique()
    return "val_loss" if every else "train_loss"


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _complete(frame: pd.DataFrame, schema: dict[str, str]) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    for name, kind in schema.items():
        if kind == NUMBER:
            values = numbers(frame[name]) if name in frame else np.full(len(frame), np.nan)
            columns[name] = pd.Series(values, index=frame.index)
        else:
            given = frame[name] if name in frame else pd.Series([""] * len(frame), index=frame.index, dtype=object)
            columns[name] = _texts(given) if kind == TEXT else _categories(given)
    for name in frame.columns:
        columns.setdefault(str(name), frame[name])
    return pd.DataFrame(columns, index=frame.index)


def _texts(column: pd.Series) -> pd.Series:
    given = column.astype(object)
    return given.where(given.notna(), "").map(str).astype(object)


def _categories(column: pd.Series) -> pd.Series:
    """A column as categories of strings: each distinct value is looked at once."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    renamed, names = pd.factorize(_texts(pd.Series(values, dtype=object)))
    return pd.Series(pd.Categorical.from_codes(renamed[codes], categories=names), index=column.index)
