"""From tables to a :class:`FitResult`: clean, count N and C in each convention, fit, resample, test, warn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.approaches import fit_approaches
from analysis.backtest import backtest
from analysis.bootstrap import METHODS, groups_drawn, resample
from analysis.clean import FLOPS, PARAMS, clean, flops_convention, params_conventions
from analysis.config import FitConfig
from analysis.envelope import Curves
from analysis.fits import Floats
from analysis.isoflop import group_budgets
from analysis.result import Conventions, FitResult, Interval, Rows
from analysis.tables import Tables, loss_column
from analysis.warn import warnings
from trainer.errors import UserError

__all__ = ["FitConfig", "check", "fit_tables"]


def fit_tables(tables: Tables, config: FitConfig, group: Mapping[str, str] | None = None) -> FitResult:
    """Fit all three approaches to a source's rows, under every N convention that they carry.

    Parameters
    ----------
    group
        Columns and values that chose these rows, for the record.

    Raises
    ------
    UserError
        If a setting is out of range, corpora are mixed, or no row is usable.
    """
    check(config)
    flops = flops_convention(tables.points, config.flops)
    finished = tables.points[tables.points["verdict"].isin(["", "done"])]
    first = params_conventions(finished if len(finished) else tables.points, config.params)[0]
    cleaned = clean(tables, first, flops)
    points = cleaned.points
    if points.empty:
        raise UserError(_nothing(cleaned))
    budget = group_budgets(points[FLOPS[flops]].to_numpy(copy=True), config.budget_gap)
    counts = [count for count in params_conventions(points, first) if (points[PARAMS[count]] > 0).all()]
    rows = [_rows(points, PARAMS[count], FLOPS[flops], budget) for count in counts]
    weights = resample(groups_drawn(rows[0], config.resample), config.resample, config.replicates, config.seed)
    curves, note = _decayed(cleaned)
    fits = tuple(
        fit_approaches(
            under,
            _curves(curves, points, PARAMS[count], FLOPS[flops]),
            weights,
            Conventions(params=count.value, flops=flops, loss=_loss_unit(points)),
            config,
        )
        for count, under in zip(counts, rows, strict=True)
    )
    return FitResult(
        source=tables.source,
        primary=fits[0],
        by_convention=fits,
        interval=Interval(
            method=METHODS[config.resample], level=config.level, replicates=config.replicates, seed=config.seed
        ),
        points=points,
        excluded=cleaned.excluded,
        backtest=backtest(fits[0].rows, config),
        warnings=warnings(fits, points),
        notes=(*tables.notes, *note),
        group=dict(group or {}),
    )


def check(config: FitConfig) -> None:
    """Refuse settings out of range.

    Raises
    ------
    UserError
        Naming the setting, its value and what is allowed.
    """
    rules = (
        ("level", 0 < config.level < 1, "between 0 and 1, e.g. 0.95"),
        ("replicates", config.replicates >= 0, "0 or more, e.g. 1000"),
        ("delta", config.delta > 0, "above 0, e.g. 1e-3"),
        ("starts", 1 <= config.starts <= 576, "from 1 to 576, e.g. 12"),
        ("tail", 0 <= config.tail < 1, "from 0 to below 1, e.g. 0.85"),
        ("window", config.window is None or config.window > 1, "above 1, or null"),
        ("budget_gap", config.budget_gap > 0, "above 0, e.g. 0.1"),
        ("seed", config.seed >= 0, "0 or more"),
    )
    for name, good, allowed in rules:
        if not good:
            raise UserError(f"fit.{name}={getattr(config, name)} is out of range; give a number {allowed}.")


def _nothing(tables: Tables) -> str:
    reasons = pd.Series([out.reason for out in tables.excluded]).value_counts()
    if reasons.empty:
        return f"{tables.source} holds no points; let runs finish, or name another source."
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.head(3).items())
    return f"{tables.source} holds no usable row ({listed}); check columns., where= or the runs."


def _loss_unit(points: pd.DataFrame) -> str:
    return str(points["loss_unit"].iloc[0]) or "as given by the source"


def _rows(points: pd.DataFrame, params: str, flops: str, budget: Floats) -> Rows:
    return Rows(
        params=points[params].to_numpy(copy=True),
        tokens=points["tokens"].to_numpy(copy=True),
        flops=points[flops].to_numpy(copy=True),
        loss=points["loss"].to_numpy(copy=True),
        budget=budget,
        point_id=tuple(points["point_id"]),
        run_id=tuple(points["run_id"]),
        cluster_id=tuple(points["cluster_id"]),
    )


def _decayed(tables: Tables) -> tuple[pd.DataFrame, list[str]]:
    """Curves of the used runs with one column ``loss``, and a note where it is not the validation's."""
    used = tables.curves[tables.curves["run_id"].isin(tables.points["run_id"])]
    columns = ["run_id", "tokens", "progress", "loss"]
    if used.empty:
        return pd.DataFrame({name: [] for name in columns}), []
    column = loss_column(used)
    curves = used[np.isfinite(used[column]) & (used[column] > 0)].assign(loss=lambda rows: rows[column])[columns]
    if column == "train_loss":
        return curves, ["Approach 1 uses training losses: not every run has two or more validation losses."]
    ends = tables.points[tables.points["run_id"].isin(curves["run_id"])].assign(progress=1.0)
    return pd.concat([curves, ends[columns]], ignore_index=True), []


def _curves(curves: pd.DataFrame, points: pd.DataFrame, params: str, flops: str) -> Curves:
    """The curves in a convention: C is each run's FLOPs per token times the tokens so far."""
    runs = points.drop_duplicates("run_id").set_index("run_id")
    name = curves["run_id"]
    per_token = name.map(runs[flops] / runs["tokens"]).to_numpy(dtype=np.float64, copy=True)
    tokens = curves["tokens"].to_numpy(dtype=np.float64, copy=True)
    good = np.flatnonzero(tokens > 0)
    return Curves(
        run_id=tuple(name.iloc[good]),
        params=name.map(runs[params]).to_numpy(dtype=np.float64, copy=True)[good],
        tokens=tokens[good],
        flops=(per_token * tokens)[good],
        loss=curves["loss"].to_numpy(dtype=np.float64, copy=True)[good],
        progress=curves["progress"].to_numpy(dtype=np.float64, copy=True)[good],
    )
