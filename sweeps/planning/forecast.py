"""What a plan may be expected to show: its points, the prior and the noise, handed to the simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.fitting.isoflop import group_budgets
from analysis.fitting.optimum import fit_cost
from analysis.fitting.values import Cost, Floats, Ints
from analysis.planning.forecast import Forecast, forecast
from analysis.planning.noise import Noise
from sweeps.config import Config, Design
from sweeps.paths import SweepFolder
from sweeps.planning.design import numbers
from sweeps.planning.points import Plan, PlannedPoint
from sweeps.planning.prior import Prior, find_noise, find_prior
from trainer.errors import UserError
from trainer.shape import ParamCount, Shape

FURTHER = (1.0, 10.0, 100.0)
"""Times the largest budget: where optima are foretold unless ``forecast.targets`` or ``sweep.target`` says."""
SAME = 0.01
"""C that differ by less are one: points miss their budget by a little."""
LEAST_REPLICATES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlook:
    """A forecast, and what it rests on."""

    told: Forecast
    prior: Prior
    noise: Noise
    hours: dict[float, float]
    """Planned device-hours of each budget's points."""
    points: int
    of: int
    """The sweep's points; more than ``points`` where axes of the sweep multiply them."""

    def to_dict(self) -> dict[str, Any]:
        """As plan.json has it."""
        noise = {"value": self.noise.value, "source": self.noise.source, "freedom": self.noise.freedom}
        said = self.told.to_dict()
        for row in said["budgets"]:
            row["hours"] = self.hours[row["budget"]]
        return said | {
            "prior": self.prior.source,
            "params": self.prior.params.value,
            "noise": noise,
            "points": self.points,
        }


def foretell(config: Config, plan: Plan, folder: SweepFolder, tell: Callable[[str, float], None]) -> Outlook:
    """Forecast the points of a plan that share the first one's values on the sweep's axes.

    N is counted as the prior counts it, C by the matmul count, at what the points will really reach.

    Parameters
    ----------
    tell
        Hears what is computed and the share that is done.

    Raises
    ------
    UserError
        If there is no prior, or a setting is out of range.
    """
    points = [point for point in plan.points if point.run.axes == plan.points[0].run.axes]
    shapes = [point.run.recipe.model for point in points]
    prior = find_prior(config, folder, cost_of(shapes, ParamCount.non_embedding))
    noise = find_noise(config, folder)
    params, tokens, flops = columns(points, prior.params)
    budget = group_budgets(flops, config.fit.budget_gap)
    if config.forecast.replicates < LEAST_REPLICATES:
        raise UserError(f"forecast.replicates={config.forecast.replicates} must be {LEAST_REPLICATES} or more.")
    targets = [factor * float(flops.max()) for factor in FURTHER]
    if config.sweep.target.flops is not None:
        aim = config.sweep.target.flops
        targets = [aim] if abs(targets[0] / aim - 1) < SAME else sorted([targets[0], aim])
    if config.forecast.targets:
        targets = sorted(numbers("forecast.targets", config.forecast.targets))
    told = forecast(
        params,
        tokens,
        flops,
        budget,
        prior.laws,
        noise=noise.value,
        targets=tuple(targets),
        cost=fit_cost(params, tokens, flops),
        config=replace(config.fit, replicates=config.forecast.replicates, seed=config.forecast.seed),
        curve=_curves(config, points),
        spent=np.array([point.flops_spent for point in points]),
        tell=tell,
    )
    hours = np.array([point.hours for point in points])
    return Outlook(
        told=told,
        prior=prior,
        noise=noise,
        hours={float(at): float(hours[budget == at].sum()) for at in np.unique(budget)},
        points=len(points),
        of=len(plan.points),
    )


def columns(points: Sequence[PlannedPoint], count: ParamCount) -> tuple[Floats, Floats, Floats]:
    """N, D and C of planned points."""
    rows = [
        (shape.params(count), point.horizon.tokens, shape.flops(point.horizon.tokens))
        for point in points
        for shape in [point.run.recipe.model]
    ]
    params, tokens, flops = np.array(rows, dtype=np.float64).T.copy()
    return params, tokens, flops


def cost_of(shapes: Sequence[Shape], count: ParamCount) -> Cost:
    """FLOPs per token of shapes, matmul count, as a power law."""
    params = np.array([shape.params(count) for shape in shapes], dtype=np.float64)
    return fit_cost(params, np.ones(len(params)), np.array([shape.flops_per_token() for shape in shapes]))


def _curves(config: Config, points: Sequence[PlannedPoint]) -> Ints | None:
    """Which points are horizons of one trunk, or of one size in a design of horizons."""
    by_size = config.sweep.design is Design.horizons
    if not by_size and not any(point.run.recipe.branches for point in points):
        return None
    known: dict[object, int] = {}
    recipes = [point.run.recipe for point in points]
    keys = [(recipe.model, recipe.seed) if by_size else recipe.run_id for recipe in recipes]
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
