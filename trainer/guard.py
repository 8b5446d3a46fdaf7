"""Updates that are better not made: the loss or the gradient's norm far above what it was, or not finite.

As in OLMo 2 (Walsh et al. 2024, section 3.2), an update is skipped where either lies several standard deviations above
its mean over the last 128 updates. What was skipped enters the mean too, so that a new level is accepted in the end.
Window, usual threshold and the updates before it judges are those of their ``SkipStepOptimizer``
(https://github.com/allenai/OLMo-core, ``optim/skip_step_optimizer.py``), which also skips what lies as far below.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

WINDOW = 128
LEAST = 64
"""Updates before it judges by anything but being finite."""
MOST_IN_A_ROW = 32
"""So many updates skipped one after another end a run."""


@dataclass(kw_only=True)
class Guard:
    """What has been seen; part of every checkpoint."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    in_a_row: int = 0
    skipped: int = 0
    """Of all updates."""

    def judge(self, sigmas: float, loss: float, norm: float) -> str | None:
        """Why the update of this loss and gradient norm is to be skipped; None for nothing."""
        reason = None
        for name, value, seen in (("loss", loss, self.losses), ("grad_norm", norm, self.norms)):
            if not math.isfinite(value):
                reason = reason or f"{name} is {value}"
                continue
            if len(seen) >= LEAST:
                limit = statistics.fmean(seen) + sigmas * statistics.pstdev(seen)
                if value > limit:
                    reason = reason or f"{name} {value:.4g} is above {limit:.4g}"
            seen.append(value)
            del seen[:-WINDOW]
        self.in_a_row = self.in_a_row + 1 if reason else 0
        self.skipped += reason is not None
        return reason
