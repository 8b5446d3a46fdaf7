"""A source's rows and curves, counted in any pair of conventions, and fitted under each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.approaches import Surface, fit_approaches, fit_law
from analysis.config import FitConfig
from analysis.fitting.bootstrap import Resamples
from analysis.fitting.curves import Curves
from analysis.fitting.isoflop import group_budgets
from analysis.fitting.values import Rows
from analysis.ingest.clean import FLOPS, PARAMS, params_conventions
from analysis.ingest.tables import Tables, loss_column
from analysis.result import ConventionFit, Conventions
from trainer.shape import ParamCount

OTHER_REPLICATES = 300
"""For what stands beside the main result."""
ALIKE = 1e-6  # two counts of C that differ less are one


@dataclass(frozen=True, eq=False)
class Study:
    """The rows and curves of one fit, counted in any convention."""

    points: pd.DataFrame
    decayed: pd.DataFrame
    config: FitConfig

    def rows(self, params: ParamCount, flops: str) -> Rows:
        """The points as arrays."""
        points, c = self.points, self.points[FLOPS[flops]].to_numpy(copy=True)
        return Rows(
            params=points[PARAMS[params]].to_numpy(copy=True),
            tokens=points["tokens"].to_numpy(copy=True),
            flops=c,
            loss=points["loss"].to_numpy(copy=True),
            budget=group_budgets(c, self.config.budget_gap),
            point_id=tuple(points["point_id"]),
            run_id=tuple(points["run_id"]),
            cluster_id=tuple(points["cluster_id"]),
            seed=points["seed"].to_numpy(copy=True),
        )

    def curves(self, params: ParamCount, flops: str) -> Curves:
        """The curves of the points' runs."""
        return _curves(self.decayed, self.points, PARAMS[params], FLOPS[flops])

    def fit(self, params: ParamCount, flops: str, surface: Surface, resamples: Resamples) -> ConventionFit:
        """The three approaches under one pair of conventions."""
        conventions = Conventions(params=params.value, flops=flops, loss=_loss_unit(self.points))
        rows, curves = self.rows(params, flops), self.curves(params, flops)
        return fit_approaches(rows, curves, resamples, surface, conventions, self.config)

    def others(self, params: ParamCount, flops: str, resamples: Resamples) -> Iterator[ConventionFit]:
        """Every other pair of conventions that all rows carry, from fewer replicates."""
        fewer = resamples.first(OTHER_REPLICATES)
        for count in params_conventions(self.points, params):
            if not (self.points[PARAMS[count]] > 0).all():
                continue
            rows = self.rows(count, flops)
            surface = Surface.of(rows, fit_law(rows, self.config), fewer)
            for other in self._flops_conventions(flops):
                if (count, other) != (params, flops):
                    yield self.fit(count, other, surface, fewer)

    def _flops_conventions(self, first: str) -> list[str]:
        """The C conventions that every row carries, ``first`` foremost; of two that count alike the former."""
        kept = [first]
        for name in FLOPS:
            here = self.points[FLOPS[name]]
            if (here > 0).all() and all(np.abs(here / self.points[FLOPS[one]] - 1).max() > ALIKE for one in kept):
                kept.append(name)
        return kept


def _loss_unit(points: pd.DataFrame) -> str:
    return str(points["loss_unit"].iloc[0]) or "as given by the source"


def comparable_curves(tables: Tables) -> tuple[pd.DataFrame, list[str]]:
    """Curves of the used runs with one column ``loss``, and a note where it is not the validation's."""
    used = tables.curves[tables.curves["run_id"].isin(tables.points["run_id"])]
    columns = ["run_id", "tokens", "progress", "loss", "lr"]
    if used.empty:
        return pd.DataFrame({name: [] for name in columns}), []
    column = loss_column(used)
    curves = used[np.isfinite(used[column]) & (used[column] > 0)].assign(loss=lambda rows: rows[column])[columns]
    if column == "train_loss":
        return curves, ["Approach 1 uses training losses: not every run has two or more validation losses."]
    ends = tables.points[tables.points["run_id"].isin(curves["run_id"])].assign(progress=1.0, lr=np.nan)
    return pd.concat([curves, ends[columns]], ignore_index=True), []


def _curves(curves: pd.DataFrame, points: pd.DataFrame, params: str, flops: str) -> Curves:
    """The curves in a convention: C is each run's FLOPs per token times the tokens so far."""
    runs = points.drop_duplicates("run_id").set_index("run_id")
    codes, names = pd.factorize(curves["run_id"])
    here = runs.reindex(names)
    per_token = (here[flops] / here["tokens"]).to_numpy(dtype=np.float64)
    tokens, loss, progress, lr = (
        curves[name].to_numpy(dtype=np.float64) for name in ("tokens", "loss", "progress", "lr")
    )
    good = slice(None) if (tokens > 0).all() else np.flatnonzero(tokens > 0)
    return Curves(
        names=tuple(map(str, names)),
        params=here[params].to_numpy(dtype=np.float64),
        run=codes[good],
        tokens=tokens[good],
        flops=(per_token[codes] * tokens)[good],
        loss=loss[good],
        progress=progress[good],
        lr=np.where(lr >= 0, lr, np.nan)[good],
    )
