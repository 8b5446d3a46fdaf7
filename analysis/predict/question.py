"""What can be asked of a law, and what a surface L(N, D) answers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from analysis.fitting.effective import loss_repeated
from analysis.fitting.optimum import optimum, optimum_for_loss, optimum_for_params, optimum_for_tokens
from analysis.fitting.values import Cost, Floats
from analysis.laws.constrained import optimum_constrained
from analysis.laws.inference import FORWARD, optimum_with_inference
from analysis.laws.offoptimum import at_ratio
from trainer.errors import UserError

AXES = ("flops", "params", "tokens")


class Kind(StrEnum):
    """What a question is about."""

    optimum = "optimum"
    """The compute-optimal point for one of C, N and D."""
    point = "point"
    """A point of one's own: its loss, and how far from optimal it lies."""
    constrained = "constrained"
    """The best point at a budget when unique tokens are few."""
    inference = "inference"
    """The cheapest way, use included, to the loss that is optimal at a budget."""


class Numbers(TypedDict, total=False):
    """The keywords of :class:`Question`, for functions that make one of theirs."""

    flops: float | None
    params: float | None
    tokens: float | None
    unique_tokens: float | None
    inference_tokens: float | None
    tokens_per_param: float | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """The numbers that were given, in the law's conventions.

    One of ``flops``, ``params`` and ``tokens`` asks for the compute-optimal point; ``params`` and ``tokens`` together
    for a point of one's own.

    Raises
    ------
    UserError
        If one is not positive, or together they ask for nothing that a law answers.
    """

    flops: float | None = None
    """C, in FLOPs."""
    params: float | None = None
    """N, in parameters."""
    tokens: float | None = None
    """D, in tokens."""
    unique_tokens: float | None = None
    """With ``flops``, or with a point: how many distinct tokens there are (Muennighoff et al. 2023)."""
    inference_tokens: float | None = None
    """With ``flops``: how many tokens the model will serve (Sardana et al. 2024)."""
    tokens_per_param: float | None = None
    """With ``flops``: the point at this D / N (Gadre et al. 2024)."""

    def __post_init__(self) -> None:
        """Refuse what makes no question.

        Raises
        ------
        UserError
            Naming what was given, and what is allowed.
        """
        for name, value in self.stated.items():
            if not (np.isfinite(value) and value > 0):
                raise UserError(f"{name}={value} is not a positive number; give one such as {name}=1e18.")
        shown = " ".join(f"{name}={value:g}" for name, value in self.stated.items()) or "nothing"
        axes = tuple(name for name in AXES if name in self.stated)
        if len(axes) != 1 and axes != ("params", "tokens"):
            raise UserError(
                f"predict got {shown}; give exactly one of flops=, params= and tokens=, or params= and tokens= "
                "together for a point of your own."
            )
        beside = [name for name in self.stated if name not in AXES]
        budget = axes == ("flops",) and (len(beside) == 1 or "inference_tokens" not in beside)
        if beside and not budget and not (len(axes) == 2 and beside == ["unique_tokens"]):
            raise UserError(
                f"predict got {shown}; unique_tokens=, tokens_per_param= or inference_tokens= go with flops=, the last "
                "with nothing besides; unique_tokens= goes with params= and tokens= together too."
            )

    @property
    def stated(self) -> dict[str, float]:
        """What was given, by name."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) for name, value in given.items() if value is not None}

    @property
    def kind(self) -> Kind:
        """What is asked."""
        if self.tokens_per_param is not None or (self.params is not None and self.tokens is not None):
            return Kind.point
        if self.unique_tokens is not None:
            return Kind.constrained
        return Kind.optimum if self.inference_tokens is None else Kind.inference

    @property
    def given(self) -> tuple[str, float]:
        """The one of C, N and D that was given; of a point, the first."""
        name = next(name for name in AXES if name in self.stated)
        return name, self.stated[name]

    @property
    def known(self) -> frozenset[str]:
        """Which of C, N and D are no matter of the law: they have no interval."""
        if self.kind is Kind.point:
            return frozenset(AXES)
        return frozenset() if self.kind is Kind.inference else frozenset({self.given[0]})

    def point(self, cost: Cost) -> tuple[float, float, float]:
        """C, N and D of a point of one's own."""
        if self.flops is not None and self.tokens_per_param is not None:
            size, length = at_ratio(cost, self.flops, self.tokens_per_param)
            return self.flops, float(size), float(length)
        n, d = self.stated["params"], self.stated["tokens"]
        return float(cost.flops_per_token(n) * d), n, d


def answer(question: Question, theta: Floats, cost: Cost, saturation: Floats) -> dict[str, Floats]:
    """What a surface says.

    Parameters
    ----------
    theta
        (..., 5): log A, log B, log E, alpha, beta.
    cost
        C = k N^g D.
    saturation
        (2,): R_D* and R_N*, for what repeated tokens are worth.

    Returns
    -------
    flops, params, tokens, loss
        (...): of the point found; what is not finite is not known.
    params_ratio, overspend
        Of a point: N over the N* of its C, and C over that of the optimum of equal loss.
    epochs, loss_fresh
        With unique tokens: how often each is seen, and the loss were all of them fresh.
    flops_total, saving
        With inference: of training and use, and the share of that saved against the compute-optimal model.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        match question.kind:
            case Kind.optimum:
                return _optimum(question, theta, cost)
            case Kind.point:
                found = _point(question, theta, cost, saturation)
            case Kind.constrained:
                found = _constrained(question, theta, cost, saturation)
            case Kind.inference:
                found = _inference(question, theta, cost)
    shape = theta.shape[:-1]
    return {name: np.broadcast_to(np.asarray(value, dtype=np.float64), shape) for name, value in found.items()}


def _optimum(question: Question, theta: Floats, cost: Cost) -> dict[str, Floats]:
    given, value = question.given
    solve = {"flops": optimum, "params": optimum_for_params, "tokens": optimum_for_tokens}[given]
    others = [name for name in AXES if name != given]
    first, second, loss = solve(theta, cost, value)
    return {given: np.full_like(first, value), others[0]: first, others[1]: second, "loss": loss}


def _point(question: Question, theta: Floats, cost: Cost, saturation: Floats) -> dict[str, npt.ArrayLike]:
    c, n, d = question.point(cost)
    fresh = loss_repeated(theta, np.array([np.inf, np.inf]), n, d, d, cost)
    found: dict[str, npt.ArrayLike] = {"flops": c, "params": n, "tokens": d, "loss": fresh}
    if question.unique_tokens is not None:
        loss = loss_repeated(theta, saturation, n, d, question.unique_tokens, cost)
        found |= {"loss": loss, "epochs": max(1.0, d / question.unique_tokens), "loss_fresh": fresh}
    found["params_ratio"] = n / optimum(theta, cost, c)[0]
    found["overspend"] = c / optimum_for_loss(theta, cost, found["loss"])[0]
    return found


def _constrained(question: Question, theta: Floats, cost: Cost, saturation: Floats) -> dict[str, npt.ArrayLike]:
    flops, unique = question.stated["flops"], question.stated["unique_tokens"]
    n, d, loss = optimum_constrained(theta, saturation, cost, flops, unique)
    best, _, fresh = optimum(theta, cost, flops)
    epochs = np.maximum(1.0, d / unique)
    found: dict[str, npt.ArrayLike] = {"flops": flops, "params": n, "tokens": d, "loss": loss}
    return found | {"epochs": epochs, "loss_fresh": fresh, "params_ratio": n / best}


def _inference(question: Question, theta: Floats, cost: Cost) -> dict[str, npt.ArrayLike]:
    flops, served = question.stated["flops"], question.stated["inference_tokens"]
    best, _, loss = optimum(theta, cost, flops)
    n, d, total = optimum_with_inference(theta, cost, loss, served)
    whole = flops + FORWARD * cost.flops_per_token(best) * served
    found: dict[str, npt.ArrayLike] = {"flops": cost.flops_per_token(n) * d, "params": n, "tokens": d, "loss": loss}
    return found | {"params_ratio": n / best, "flops_total": total, "saving": 1 - total / whole}
