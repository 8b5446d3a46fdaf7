"""The schemas behind node ``fit`` and group ``law/``; nothing heavy is imported, so that ``--help`` stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trainer.shape import FlopCount, ParamCount


class Resample(StrEnum):
    """What the bootstrap draws, with replacement: points within their budget, any points, or clusters of points."""

    budgets = "budgets"
    cases = "cases"
    clusters = "clusters"


@dataclass(kw_only=True)
class FitConfig:
    """Node ``fit``: how the three approaches and their intervals are computed."""

    params: ParamCount = ParamCount.total
    """The N convention that stands first; every convention the rows carry is fitted besides."""
    flops: str = "auto"
    """The C convention: matmul, logged, sixnd (or 6nd), chinchilla; auto takes the one that most rows have, of equals
    the first of these, and rows without it are left out."""
    level: float = 0.95
    """Of the intervals."""
    replicates: int = 1000
    resample: Resample = Resample.budgets
    seed: int = 0
    """Of the bootstrap."""
    delta: float = 1e-3
    """Approach 3: where the Huber loss turns from square to linear, in log loss."""
    starts: int = 12
    """Approach 3: points of the grid that Newton's method starts from."""
    tail: float = 0.85
    """Approach 1: only rows at this share of a run's schedule, or later, count."""
    window: float | None = None
    """Approach 2: only sizes within this factor of a budget's best one; null uses all."""
    budget_gap: float = 0.1
    """Points whose achieved FLOPs differ by more than this share belong to different budgets."""


@dataclass(kw_only=True)
class LawConfig:
    """Group ``law/``: L(N, D) = E + A / N^alpha + B / D^beta, with what N and C mean in it; all null for none."""

    name: str | None = None
    E: float | None = None
    A: float | None = None
    B: float | None = None
    alpha: float | None = None
    beta: float | None = None
    params: ParamCount = ParamCount.total
    flops: FlopCount = FlopCount.sixnd
    loss: str = "nats/token"
    """Unit of the loss, and whose tokens."""
    source: str = ""
    note: str = ""
