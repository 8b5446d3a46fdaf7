"""The learning rate over a run, matched exactly to its steps.

The factor is a broken line through points between updates: 0 just before the first update, 1 at the update that ends
the warm-up, ``final`` just after the last update. So no update is spent at a rate of zero, at either end, and a run
with other steps is another run: nothing is read off a schedule made for a longer one (Hoffmann et al. 2022, app. B).
"""

from __future__ import annotations

import math

from trainer.config import Cooldown, Decay
from trainer.recipe import ScheduleRecipe


def rate_factor(schedule: ScheduleRecipe, *, steps: int, step: int, cooldown: int | None = None) -> float:
    """Learning rate of update ``step`` (from 0) over the peak, of a path of ``steps`` updates.

    With ``w`` warm-up and ``c`` cooldown steps: ``(step + 1) / (w + 1)`` while warming up, then cosine or linear decay
    over the remaining ``steps - w``; wsd stays at 1 and falls over the last ``c``. Where warm-up and cooldown overlap
    the lower one counts.

    Parameters
    ----------
    cooldown
        Of a wsd path whose cooldown is not the schedule's own: how many updates it takes.
    """
    warm = min(1.0, (step + 1) / (schedule.warmup_steps + 1))
    if schedule.decay is Decay.wsd:
        shape, length = schedule.cooldown_shape, schedule.cooldown_steps if cooldown is None else cooldown
    else:
        shape, length = Cooldown(schedule.decay.value), steps - schedule.warmup_steps
    gone = (step - (steps - length)) / length if length > 0 else 0.0
    remaining = _fall(shape, min(1.0, max(0.0, gone)))
    return min(warm, schedule.final + (1 - schedule.final) * remaining)


def _fall(shape: Cooldown, x: float) -> float:
    """From 1 at x=0 to 0 at x=1; ``sqrt`` is the 1 - sqrt(x) of Hägele et al. 2024."""
    if shape is Cooldown.linear:
        return 1 - x
    if shape is Cooldown.sqrt:
        return 1 - math.sqrt(x)
    return 0.5 * (1 + math.cos(math.pi * x))
