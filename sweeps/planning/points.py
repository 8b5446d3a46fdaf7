"""The plan as a value and as a file: every point of a sweep, what it costs, and what was refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sweeps.paths import SweepFolder
from trainer.errors import UserError
from trainer.files import write_json, write_whole
from trainer.recipe import SCHEMA, Horizon, check_schema
from trainer.runfolder import RunConfig


@dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """A point, the run that gives it, and what it will cost."""

    horizon: Horizon
    """The point as one of its run's."""
    run: RunConfig
    budget_error: float | None
    """Achieved over asked FLOPs, minus 1."""
    predicted_loss: float | None
    devices: int
    """That the run has; where they are more than ``device.per_run``, those that can hold it only together."""
    hours: float
    """Device-hours: those of its own updates, where it shares a trunk."""
    price: float
    memory_gb: float
    """Of all its devices together."""

    @property
    def point_id(self) -> str:
        """Its name."""
        return self.horizon.point_id

    @property
    def flops_spent(self) -> float:
        """Training FLOPs (matmul count) of its own updates: of the trunk what shorter points lack, and its cooldown."""
        recipe = self.run.recipe
        return recipe.model.flops(self.horizon.own * recipe.optim.batch)

    def row(self) -> dict[str, Any]:
        """One line of the plan's table."""
        recipe, shape, horizon = self.run.recipe, self.run.recipe.model, self.horizon
        return {
            "point_id": self.point_id,
            "run_id": self.run.run_id,
            "budget": self.run.budget_of(self.point_id),
            **{f"axis.{key}": value for key, value in self.run.axes.items()},
            "seed": recipe.seed,
            "layers": shape.layers,
            "d_model": shape.d_model,
            "params_non_embedding": shape.params_non_embedding,
            "params_total": shape.params_total,
            "tokens": horizon.tokens,
            "steps": horizon.steps,
            "batch": recipe.optim.batch,
            "lr": recipe.optim.lr,
            "flops_matmul": shape.flops(horizon.tokens),
            "flops_spent": self.flops_spent,
            "updates_before": horizon.before,
            "updates_own": horizon.own,
            "budget_error": self.budget_error,
            "predicted_loss": self.predicted_loss,
            "devices": self.devices,
            "together": self.run.runtime.together,
            "memory_gb": self.memory_gb,
            "hours": self.hours,
            "price": self.price,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every point of a sweep, and every point that was refused with the reason."""

    sweep: str
    points: Sequence[PlannedPoint]
    refused: Sequence[Mapping[str, Any]] = field(default_factory=list)
    design: Mapping[str, Any] | None = None
    """Of an optimal design: its batches, and what it says of them."""
    forecast: Mapping[str, Any] | None = None
    """What it may be expected to show; None where nobody asked."""

    @property
    def totals(self) -> dict[str, float]:
        """Of all points; what points share counts once."""
        return {
            "points": len(self.points),
            "tokens": sum(point.horizon.own * point.run.recipe.optim.batch for point in self.points),
            "flops_matmul": sum(point.flops_spent for point in self.points),
            "device_hours": sum(point.hours for point in self.points),
            "price": sum(point.price for point in self.points),
        }

    def to_dict(self) -> dict[str, Any]:
        """As ``plan.json`` has it."""
        return {
            "schema": SCHEMA,
            "sweep": self.sweep,
            "points": [point.row() for point in self.points],
            "refused": [dict(refusal) for refusal in self.refused],
            "totals": self.totals,
            "design": None if self.design is None else dict(self.design),
            "forecast": None if self.forecast is None else dict(self.forecast),
        }


def run_hours(points: Iterable[PlannedPoint]) -> dict[str, float]:
    """Device-hours of each run for the points given."""
    hours: dict[str, float] = {}
    for point in points:
        hours[point.run.run_id] = hours.get(point.run.run_id, 0.0) + point.hours
    return hours


def write_plan(plan: Plan, folder: SweepFolder) -> None:
    """Write ``plan.json`` (whole) and ``plan.csv`` (the table alone); the forecast of the same points is kept.

    Raises
    ------
    UserError
        If a newer isoflop wrote the one that is there.
    """
    written, rows = plan.to_dict(), [point.row() for point in plan.points]
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        there = json.loads(folder.plan_path.read_text())
        check_schema(there.get("schema", SCHEMA), str(folder.plan_path))
        if plan.forecast is None and [row["point_id"] for row in there["points"]] == [row["point_id"] for row in rows]:
            written["forecast"] = there.get("forecast")
    write_json(folder.plan_path, written, levels=2)
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(folder.plan_path.with_suffix(".csv"), text.getvalue())


def read_plan(folder: SweepFolder) -> dict[str, Any]:
    """The sweep's last plan, as :meth:`Plan.to_dict` wrote it.

    Raises
    ------
    UserError
        If there is none, or a newer isoflop wrote it.
    """
    try:
        raw: dict[str, Any] = json.loads(folder.plan_path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"sweep.name={folder.name} has no plan under root={folder.root}; run `isoflop plan` or `isoflop submit` "
            "first, or correct root= or sweep=."
        ) from None
    except ValueError:
        raw = {}
    if isinstance(raw, dict) and "schema" in raw:
        check_schema(raw["schema"], str(folder.plan_path))
    columns = {"point_id", "run_id", "budget", "params_non_embedding", "tokens", "flops_matmul", "hours"}
    points = raw.get("points") if isinstance(raw, dict) else None
    if not isinstance(points, list) or not all(isinstance(row, dict) and columns <= set(row) for row in points):
        raise UserError(f"{folder.plan_path} is damaged; run `isoflop plan` to write it again.")
    return raw
