"""Which points a run trains: each its own, but for points of one trunk. Pure.

With ``schedule=wsd`` the points that differ in nothing but their tokens (one shape, one seed, the same axes) are one
run: a trunk at a constant rate that is left for a cooldown at each of them (Hägele et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sweeps.config import Config
from sweeps.planning.design import Target
from sweeps.planning.recipes import make_recipe, steps_of
from trainer.config import Decay
from trainer.errors import UserError
from trainer.recipe import Horizon, Recipe

Runs = dict[tuple[Target, int], tuple[Recipe, Mapping[int, float | None]]]
"""By target and seed: the run that gives the point, and what its points, by their steps, were asked to cost."""
Unfit = list[tuple[Target, int, str]]
"""Targets and seeds that no run can be made of, and why."""


def grouped(config: Config, wanted: Sequence[Target], corpus: str) -> tuple[Runs, Unfit]:
    """The runs of a design's points under one config, and the points that are refused."""
    runs: Runs = {}
    unfit: Unfit = []
    for targets in _together(config, wanted):
        for seed in seeds(config):
            fit = [target for target in targets if target.seeds is None or seed in target.seeds]
            while fit:
                recipe = make_recipe(config, fit[0].shape, [target.tokens for target in fit], seed, corpus)
                reasons = {target: refusal(config, recipe, target) for target in fit}
                bad = [(target, seed, reason) for target, reason in reasons.items() if reason is not None]
                if not bad:
                    asked = {horizon_of(recipe, target).steps: target.budget for target in fit}
                    runs.update({(target, seed): (recipe, asked) for target in fit})
                    break
                unfit += bad
                fit = [target for target in fit if reasons[target] is None]  # the mean of their tokens is another one
    return runs, unfit


def horizon_of(recipe: Recipe, target: Target) -> Horizon:
    """The point of a run that a target asked for."""
    steps = steps_of(target.tokens, recipe.optim.batch)
    return next(horizon for horizon in recipe.horizons if horizon.steps == steps)


def budget_error(recipe: Recipe, horizon: Horizon, target: Target) -> float | None:
    """Planned over asked FLOPs, minus 1; None where none were asked for."""
    return None if target.budget is None else recipe.model.flops(horizon.tokens) / target.budget - 1


def seeds(config: Config) -> list[int]:
    """The sweep's seeds, checked."""
    found = config.sweep.seeds
    if not found or len(set(found)) < len(found) or any(not 0 <= seed < 2**63 for seed in found):
        raise UserError(
            f"sweep.seeds={found} must list different whole numbers of 0 or more, e.g. sweep.seeds=[0,1,2]."
        )
    return list(found)


def shares_trunks(config: Config) -> bool:
    """Whether points of one shape share a run up to their cooldowns."""
    return config.schedule.decay is Decay.wsd and config.schedule.trunks


def _together(config: Config, wanted: Sequence[Target]) -> list[list[Target]]:
    """The targets of each run."""
    if not shares_trunks(config):
        return [[target] for target in wanted]
    by_shape: dict[object, list[Target]] = {}
    for target in wanted:
        by_shape.setdefault(target.shape, []).append(target)
    return list(by_shape.values())


def refusal(config: Config, recipe: Recipe, target: Target) -> str | None:
    """Why a run must not give a point; None where it may."""
    horizon = horizon_of(recipe, target)
    error = budget_error(recipe, horizon, target)
    if horizon.steps < config.optim.min_steps:
        return f"{horizon.steps} updates are fewer than optim.min_steps={config.optim.min_steps}"
    if error is not None and abs(error) > config.sweep.tolerance:
        return f"whole batches miss the budget by {error:+.1%}, more than sweep.tolerance={config.sweep.tolerance:g}"
    return None
