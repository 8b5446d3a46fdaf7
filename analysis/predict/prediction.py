"""What one law or approach answered to a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.fitting.values import Estimate
from analysis.predict.question import AXES, Kind, Question
from analysis.predict.reach import reach_text
from analysis.result import Conventions


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A point according to one law or approach; numbers that were given have no interval."""

    by: str
    """The law's name, or ``<approach>`` of a fit."""
    kind: Kind
    conventions: Conventions
    flops: Estimate
    params: Estimate
    tokens: Estimate
    loss: Estimate
    extra: Mapping[str, Estimate] = field(default_factory=dict)
    """What the kind of question brings besides, by name (see :func:`analysis.predict.question.answer`)."""
    statement: str
    """What was found, how the intervals were made or why there are none, and how far it lies from the data."""

    def to_dict(self) -> dict[str, Any]:
        """As ``format=json`` prints it."""
        numbers = {name: getattr(self, name).to_dict() for name in (*AXES, "loss")}
        return {
            "by": self.by,
            "kind": self.kind.value,
            "conventions": self.conventions.to_dict(),
            **numbers,
            **{name: number.to_dict() for name, number in self.extra.items()},
            "statement": self.statement,
        }


def prediction(
    by: str,
    question: Question,
    conventions: Conventions,
    estimates: Mapping[str, Estimate],
    statements: Sequence[str],
    fitted: tuple[float, float] | None,
    measured: str = "",
) -> Prediction:
    """What was found, by the name of each number, with a warning where it lies far from the ``fitted`` C.

    Parameters
    ----------
    statements
        How the intervals were made, or why there are none.
    measured
        How well the law has foretold larger budgets, as a clause.
    """
    meaning = []
    if question.kind is Kind.inference:
        meaning.append(
            f"The cheapest way, {question.stated['inference_tokens']:g} tokens of use included, to the loss that is "
            f"compute-optimal at flops={question.stated['flops']:g}."
        )
    beyond = reach_text(estimates["flops"].value, fitted, measured)
    return Prediction(
        by=by,
        kind=question.kind,
        conventions=conventions,
        **{name: estimates[name] for name in (*AXES, "loss")},
        extra={name: number for name, number in estimates.items() if name not in (*AXES, "loss")},
        statement=" ".join([*meaning, *statements, *([beyond] if beyond else [])]),
    )


def known(value: float | None) -> float | None:
    """``value``; None for what is not finite, and for 0, below which no float is left."""
    return value if value is not None and np.isfinite(value) and value != 0 else None
