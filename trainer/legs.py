"""The order in which a run makes its updates: one path, or a trunk that is left for cooldowns and taken up again."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.recipe import Horizon, Recipe


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Updates that a run makes one after another: a part of the trunk, or a cooldown off it.

    A run without branches is one leg; the last horizon's trunk and cooldown always are.
    """

    begin: int
    """The step of its first update, on its own path,"""
    end: int
    """and one past that of its last."""
    before: int
    """Updates the run has made before it."""
    horizon: Horizon
    """Whose schedule it follows."""
    branch: bool
    """Whether the trunk is taken up again where it begins."""

    @property
    def ends_point(self) -> bool:
        """Whether a point ends with it."""
        return self.end == self.horizon.steps

    @property
    def updates(self) -> int:
        """Of the run, when it has ended."""
        return self.before + self.end - self.begin


def legs(recipe: Recipe) -> list[Leg]:
    """The updates of a run, in the order they are made."""
    found = []
    for horizon in recipe.horizons[:-1]:
        fork = horizon.steps - horizon.cooldown_steps
        at = horizon.before + fork - horizon.trunk
        found.append(Leg(begin=horizon.trunk, end=fork, before=horizon.before, horizon=horizon, branch=False))
        found.append(Leg(begin=fork, end=horizon.steps, before=at, horizon=horizon, branch=True))
    last = recipe.horizons[-1]
    return [*found, Leg(begin=last.trunk, end=last.steps, before=last.before, horizon=last, branch=False)]
