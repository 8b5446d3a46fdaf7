"""A sweep at a glance, as the terminal and the browser show it: budgets, what runs, curves, cost, the fit so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sweeps.dispatch.state import ENDED, PointState, State
from sweeps.paths import SweepFolder
from sweeps.watch.sofar import SoFar

CURVE_POINTS = 60
"""Of a curve, at most."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The points of one budget; None for those that were asked for in tokens."""

    flops: float | None
    points: int
    done: int
    running: int
    failed: int
    """Diverged ones included."""
    progress: float
    """Share of the FLOPs that is trained."""
    best_loss: float | None
    best_params: int | None
    """Non-embedding parameters of the best done point."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All that is shown."""

    sweep: str
    states: Sequence[PointState]
    budgets: Sequence[Budget]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    """Of runs: (tokens, training loss), thinned."""
    fit: SoFar | None
    fitting: bool
    spent_hours: float
    planned_hours: float
    price_per_hour: float
    eta_seconds: float | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will change by itself."""
        return all(state.state in ENDED for state in self.states)

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self) | {"states": [state.to_dict() for state in self.states], "ended": self.ended}


def overview(
    folder: SweepFolder,
    states: Sequence[PointState],
    fit: SoFar | None,
    *,
    fitting: bool = False,
    price_per_hour: float = 0.0,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Overview:
    """What the states say, gathered; ``curves`` None reads those of running points."""
    if curves is None:
        running = dict.fromkeys(state.run_id for state in states if state.state is State.running)
        curves = {run_id: read_curve(folder, run_id) for run_id in running}
    return Overview(
        sweep=folder.name,
        states=states,
        budgets=budgets(states),
        curves=curves,
        fit=fit,
        fitting=fitting,
        spent_hours=sum(state.spent_hours for state in states),
        planned_hours=sum(state.hours for state in states),
        price_per_hour=price_per_hour,
        eta_seconds=remaining_seconds(states),
    )


def budgets(states: Sequence[PointState]) -> list[Budget]:
    """The points by budget, by rising budget."""
    groups: dict[float | None, list[PointState]] = {}
    for state in states:
        groups.setdefault(state.budget, []).append(state)
    ordered = sorted(groups.items(), key=lambda item: math.inf if item[0] is None else item[0])
    return [_budget(flops, group) for flops, group in ordered]


def _budget(flops: float | None, states: Sequence[PointState]) -> Budget:
    done = [state for state in states if state.state is State.done and state.loss is not None]
    best = min(done, key=lambda state: state.loss or math.inf, default=None)
    total = sum(state.flops for state in states)
    return Budget(
        flops=flops,
        points=len(states),
        done=len(done),
        running=sum(state.state is State.running for state in states),
        failed=sum(state.state in (State.failed, State.diverged) for state in states),
        progress=sum(state.flops * state.progress for state in states) / total if total else 0.0,
        best_loss=None if best is None else best.loss,
        best_params=None if best is None else best.params_non_embedding,
    )


def read_curve(folder: SweepFolder, run_id: str) -> list[tuple[float, float]]:
    """A run's training losses by tokens, thinned evenly; of a trunk with cooldowns, the trunk's."""
    rows = [row for row in folder.run(run_id).metrics() if row.get("train_loss") is not None and "branch" not in row]
    every = max(1, math.ceil(len(rows) / CURVE_POINTS))
    kept = rows[::-every][::-1]  # the newest is always there
    return [(float(row["tokens"]), float(row["train_loss"])) for row in kept]


def remaining_seconds(states: Sequence[PointState]) -> float | None:
    """Until the sweep ends: what is left of the FLOPs at the speed of the points that run now."""
    speed = sum((s.tokens_per_second or 0.0) * s.flops_per_token for s in states)
    left = sum(s.flops * (1 - s.progress) for s in states if s.state not in ENDED)
    return left / speed if speed and left else None
