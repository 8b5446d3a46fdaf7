"""Compute-optimal N and D in closed form, for a law L = E + A / N^alpha + B / D^beta and C = k N^g D.

With g = 1, k = 6 this is Hoffmann et al. 2022, equation 4. ``theta`` is (..., 5): log A, log B, log E, alpha, beta.
Results broadcast over the leading axes of ``theta`` and the shape of the other argument, in that order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.fitting.columns import columns
from analysis.fitting.values import Cost, Floats, loss_of_laws
from trainer.errors import UserError


def exponents(theta: Floats, cost: Cost) -> tuple[Floats, Floats]:
    """(a, b) with N* ~ C^a and D* ~ C^b; for C = 6 N D they are beta and alpha over alpha + beta."""
    _, _, _, alpha, beta = np.moveaxis(np.asarray(theta), -1, 0)
    a = beta / (alpha + cost.exponent * beta)
    return a, 1 - cost.exponent * a


def optimum(theta: Floats, cost: Cost, flops: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """N*, D* and L* at ``flops``."""
    theta, log_c = _aligned(theta, flops)
    alpha, beta, held = balance(theta, cost)
    g, log_k = cost.exponent, np.log(cost.coefficient)
    log_n = (held + beta * (log_c - log_k)) / (alpha + g * beta)
    log_d = log_c - log_k - g * log_n
    return np.exp(log_n), np.exp(log_d), loss_of_laws(theta, log_n, log_d)


def optimum_for_params(theta: Floats, cost: Cost, params: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """C, D* and L* of the budget at which ``params`` is optimal."""
    theta, log_n = _aligned(theta, params)
    alpha, beta, held = balance(theta, cost)
    log_d = (alpha * log_n - held) / beta
    return _flops(cost, log_n, log_d), np.exp(log_d), loss_of_laws(theta, log_n, log_d)


def optimum_for_tokens(theta: Floats, cost: Cost, tokens: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """C, N* and L* of the budget at which ``tokens`` is optimal."""
    theta, log_d = _aligned(theta, tokens)
    alpha, beta, held = balance(theta, cost)
    log_n = (held + beta * log_d) / alpha
    return _flops(cost, log_n, log_d), np.exp(log_n), loss_of_laws(theta, log_n, log_d)


def optimum_for_loss(theta: Floats, cost: Cost, loss: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """C, N* and D* of the compute-optimal point that reaches ``loss``.

    At an optimum alpha A / N^alpha = g beta B / D^beta, so both terms follow from their sum L - E.

    Parameters
    ----------
    theta
        (..., 5): log A, log B, log E, alpha, beta.
    cost
        C = k N^g D.
    loss
        In the unit of E; unlike the arguments of the other optima it broadcasts with the leading axes of ``theta``.

    Returns
    -------
    C in FLOPs, N* and D*, each of the broadcast shape; NaN where ``loss`` is not above the irreducible loss.
    """
    log_a, log_b, log_e, alpha, beta = np.moveaxis(np.asarray(theta), -1, 0)
    ratio = alpha / (cost.exponent * beta)
    with np.errstate(invalid="ignore", divide="ignore"):
        reducible = np.log(np.asarray(loss, dtype=np.float64) - np.exp(log_e))
        log_n = (log_a + np.log1p(ratio) - reducible) / alpha
        log_d = (log_b + np.log1p(1 / ratio) - reducible) / beta
    below = ~np.isfinite(reducible)
    n, d = np.exp(log_n), np.exp(log_d)
    return (
        np.where(below, np.nan, _flops(cost, log_n, log_d)),
        np.where(below, np.nan, n),
        np.where(below, np.nan, d),
    )


def balance(theta: Floats, cost: Cost) -> tuple[Floats, Floats, Floats]:
    """Alpha, beta, and what alpha log N - beta log D is wherever (N, D) is an optimum; each (...)."""
    log_a, log_b, _, alpha, beta = np.moveaxis(np.asarray(theta), -1, 0)
    return alpha, beta, log_a - log_b + np.log(alpha) - np.log(cost.exponent * beta)


def fit_cost(params: npt.ArrayLike, tokens: npt.ArrayLike, flops: npt.ArrayLike) -> Cost:
    """FLOPs per token as a power law in N, by least squares in logs; one size gives C proportional to N D.

    Parameters
    ----------
    params, tokens, flops
        (n,), positive: N, D and C in FLOPs of each point, at least one.

    Raises
    ------
    UserError
        If a number is not finite and positive, the columns differ in length, or they are empty.
    """
    params, tokens, flops = columns(params=params, tokens=tokens, flops=flops)
    if not len(params):
        raise UserError("params is empty; FLOPs per token are fitted to one point or more.")
    x, y = np.log(params), np.log(flops) - np.log(tokens)
    if np.ptp(x) < 1e-9:
        return Cost(coefficient=float(np.exp(np.mean(y - x))), exponent=1.0, spread=float(np.ptp(y)))
    centre = x.mean()
    exponent = float(np.sum((x - centre) * y) / np.sum((x - centre) ** 2))
    if abs(exponent - 1) < 1e-9:  # C = 6 N D, up to the source's rounding
        exponent = 1.0
    level = float(np.mean(y) - exponent * centre)
    spread = float(np.max(np.abs(np.expm1(y - level - exponent * x))))
    return Cost(coefficient=float(np.exp(level)), exponent=exponent, spread=spread)


def _aligned(theta: Floats, argument: npt.ArrayLike) -> tuple[Floats, Floats]:
    """``theta`` with axes added for ``argument``, and log ``argument``."""
    log, theta = np.log(np.asarray(argument, dtype=np.float64)), np.asarray(theta)
    return theta.reshape(theta.shape[:-1] + (1,) * log.ndim + theta.shape[-1:]), log


def _flops(cost: Cost, log_n: Floats, log_d: Floats) -> Floats:
    return np.asarray(np.exp(np.log(cost.coefficient) + cost.exponent * log_n + log_d))
