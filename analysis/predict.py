"""What a law or a fit answers: optima, points of one's own, few unique tokens, use after training, published models."""

from __future__ import annotations

from pathlib import Path

from analysis.fitting.values import Estimate
from analysis.laws.constrained import PUBLISHED, PUBLISHED_TEXT
from analysis.laws.forms import Law, SurfaceLaw
from analysis.laws.models import Distance, distance_from_optimal, published_models
from analysis.prediction import Prediction, known, prediction
from analysis.question import AXES, Kind, Question, answer
from analysis.result import APPROACHES, Conventions
from analysis.store import read_fit
from analysis.stored_law import by_approach, refusal
from trainer.errors import UserError

__all__ = ["NO_INTERVAL", "Prediction", "predict_fit", "predict_law", "predict_models"]

NO_INTERVAL = "No intervals: the law was published without the replicates they would come from."


def predict_law(
    law: Law,
    *,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    unique_tokens: float | None = None,
    inference_tokens: float | None = None,
    tokens_per_param: float | None = None,
) -> Prediction:
    """What a published law says, in its own conventions.

    Parameters
    ----------
    flops, params, tokens
        One of them for the compute-optimal point; ``params`` and ``tokens`` for a point of one's own.
    unique_tokens
        With ``flops``, or with a point: how many distinct tokens there are (Muennighoff et al. 2023).
    inference_tokens
        With ``flops``: how many tokens the model will serve (Sardana et al. 2024).
    tokens_per_param
        With ``flops``: the point at this D / N (Gadre et al. 2024).

    Raises
    ------
    UserError
        If the numbers make no question, or the law knows no loss off its frontier and one is needed.
    """
    question = Question(
        flops=flops,
        params=params,
        tokens=tokens,
        unique_tokens=unique_tokens,
        inference_tokens=inference_tokens,
        tokens_per_param=tokens_per_param,
    )
    numbers = _of_law(law, question)
    estimates = {name: Estimate(value=known(value)) for name, value in numbers.items()}
    statements = [*([PUBLISHED_TEXT] if question.unique_tokens else []), NO_INTERVAL]
    conventions = Conventions(params=law.params.value, flops=law.flops.value, loss=law.loss_unit)
    return prediction(law.name, question, conventions, estimates, statements, law.flops_range)


def predict_fit(
    path: Path,
    *,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    unique_tokens: float | None = None,
    inference_tokens: float | None = None,
    tokens_per_param: float | None = None,
) -> list[Prediction]:
    """What each approach of a stored fit says that was not refused, with intervals from its replicates.

    Parameters are those of :func:`predict_law`; all but the compute-optimal point are a matter of Approach 3 alone.

    Raises
    ------
    UserError
        If the numbers make no question, the fit cannot be read, or it refused every approach that could answer.
    """
    question = Question(
        flops=flops,
        params=params,
        tokens=tokens,
        unique_tokens=unique_tokens,
        inference_tokens=inference_tokens,
        tokens_per_param=tokens_per_param,
    )
    fit = read_fit(path)
    able = APPROACHES if question.kind is Kind.optimum else APPROACHES[-1:]
    refused = {name: reason for name in able if (reason := refusal(fit.raw["approaches"][name]))}
    kept = [name for name in able if name not in refused]
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        what = "every approach" if question.kind is Kind.optimum else "Approach 3, which alone answers this,"
        raise UserError(f"path={path}: {what} was refused, so the fit predicts nothing ({reasons}).")
    return [by_approach(fit, name, question) for name in kept]


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
