"""Signs that a run was limited by its optimisation, not by its size or its data: flags of its final record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.recipe import Horizon

FEW_STEPS = "few_steps"
STILL_FALLING = "still_falling"
SKIPPED_UPDATES = "skipped_updates"

LEAST_STEPS = 400
"""Byte models with fewer updates lie visibly off the law of those with more."""
TAIL = 0.8
"""The fall is looked at from the first validation at or after this share of the run."""
STEEP = 0.05
"""Relative fall of the validation loss over the end of a run: a run whose rate has decayed loses one or two percent."""


def limits(horizon: Horizon, evaluated: Sequence[tuple[int, float]], guard: Mapping[str, Any]) -> list[str]:
    """The flags of a point, from its validations (updates along its path, loss) and what its guard has seen."""
    flags = []
    if horizon.steps < LEAST_STEPS:
        flags.append(FEW_STEPS)
    late = [loss for step, loss in evaluated if step >= TAIL * horizon.steps]
    if len(late) >= 2 and late[0] - late[-1] > STEEP * late[-1]:
        flags.append(STILL_FALLING)
    if guard.get("skipped"):
        flags.append(SKIPPED_UPDATES)
    return flags
