"""What a published law answers."""

from __future__ import annotations

from typing import Unpack

from analysis.fitting.values import Estimate
from analysis.laws.constrained import PUBLISHED, PUBLISHED_TEXT
from analysis.laws.forms import Law, SurfaceLaw
from analysis.laws.models import Distance, distance_from_optimal, published_models
from analysis.predict.prediction import Prediction, known, prediction
from analysis.predict.question import AXES, Kind, Numbers, Question, answer
from analysis.result import Conventions
from trainer.errors import UserError

NO_INTERVAL = "No intervals: the law was published without the replicates they would come from."


def predict_law(law: Law, **asked: Unpack[Numbers]) -> Prediction:
    """What a published law says, in its own conventions.

    Parameters
    ----------
    asked
        The numbers of a :class:`~analysis.predict.question.Question`: ``flops``, ``params``, ``tokens``,
        ``unique_tokens``, ``inference_tokens``, ``tokens_per_param``.

    Raises
    ------
    UserError
        If the numbers make no question, or the law knows no loss off its frontier and one is needed.

    Examples
    --------
    >>> predict_law(find_law("besiroglu2024"), flops=1e21)
    >>> predict_law(find_law("besiroglu2024"), params=8e9, tokens=15e12)
    """
    question = Question(**asked)
    numbers = _of_law(law, question)
    estimates = {name: Estimate(value=known(value)) for name, value in numbers.items()}
    statements = [*([PUBLISHED_TEXT] if question.unique_tokens else []), NO_INTERVAL]
    conventions = Conventions(params=law.params.value, flops=law.flops.value, loss=law.loss_unit)
    return prediction(law.name, question, conventions, estimates, statements, law.flops_range)


def predict_models(law: Law) -> list[Distance]:
    """Published models beside a law's frontier, in the order of their years."""
    return [distance_from_optimal(law, model) for model in published_models()]


def _of_law(law: Law, question: Question) -> dict[str, float | None]:
    if isinstance(law, SurfaceLaw) and question.kind is not Kind.optimum:
        found = answer(question, law.array(), law.cost, PUBLISHED)
        return {name: float(value) for name, value in found.items()}
    if question.kind is Kind.optimum:
        given, value = question.given
        at = {"flops": law.at_flops, "params": law.at_params, "tokens": law.at_tokens}[given](value)
        return {name: getattr(at, name) for name in (*AXES, "loss")} | {given: value}
    if question.kind is not Kind.point or question.unique_tokens is not None:
        asked = "inference_tokens=" if question.kind is Kind.inference else "unique_tokens="
        raise UserError(
            f"law={law.name} knows N*(C) alone, and {asked} needs L(N, D); choose a law that has it, such as "
            "besiroglu2024 or muennighoff2023."
        )
    c, n, d = question.point(law.cost)
    return {"flops": c, "params": n, "tokens": d, "loss": None, "params_ratio": n / law.at_flops(c).params}
