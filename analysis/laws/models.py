"""Published models, dense decoder-only transformers, and how far each lies from compute-optimal."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from analysis.laws.forms import Law, SurfaceLaw
from analysis.laws.offoptimum import overspend

MODELS = Path(__file__).with_name("models.csv")


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model as its makers describe it; sizes are as quoted, so mostly of all parameters."""

    name: str
    params: float
    tokens: float
    """Seen in pre-training."""
    year: int
    source: str

    @property
    def flops(self) -> float:
        """6 N D."""
        return 6 * self.params * self.tokens


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Where a model lies beside a law's frontier."""

    model: PublishedModel
    flops: float
    """C of the model by the law's own count and cost, which the ratios rest on."""
    params_ratio: float
    """N over the N* of the compute the model was trained with: above 1, too large for it."""
    loss: float | None
    """What the law expects; None where it knows no loss off its frontier."""
    overspend: float | None
    """Training compute over that of the compute-optimal model of equal loss."""


def published_models() -> tuple[PublishedModel, ...]:
    """The models, by year."""
    with MODELS.open(newline="") as file:
        return tuple(
            PublishedModel(
                name=row["name"],
                params=float(row["params"]),
                tokens=float(row["tokens"]),
                year=int(row["year"]),
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )


def distance_from_optimal(law: Law, model: PublishedModel) -> Distance:
    """How far a model lies from compute-optimal, were ``law`` true of it.

    A law knows its own data and recipe alone: a model with better data reaches a lower loss than the law expects. What
    carries over is how compute is split between N and D.
    """
    flops = float(law.cost.flops_per_token(model.params)) * model.tokens
    wasted = None
    if isinstance(law, SurfaceLaw):
        wasted = float(overspend(law.array(), law.cost, model.params, model.tokens))
    return Distance(
        model=model,
        flops=flops,
        params_ratio=model.params / law.at_flops(flops).params,
        loss=law.loss(model.params, model.tokens),
        overspend=wasted,
    )
