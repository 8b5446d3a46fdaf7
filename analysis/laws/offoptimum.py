"""What a surface law says of points off its frontier: how much compute they waste, and over-training.

``theta`` is (..., 5): log A, log B, log E, alpha, beta, e.g. ``SurfaceLaw.array()`` or rows of ``Replicates.values``;
other arguments broadcast with its leading axes. ``cost`` is C = k N^g D.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.fitting.values import Cost, Floats, loss_of_laws


def optimum_for_loss(theta: Floats, cost: Cost, loss: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """C, N* and D* of the compute-optimal point that reaches ``loss``; NaN at or below the irreducible loss.

    At an optimum alpha A / N^alpha = g beta B / D^beta, so both terms follow from their sum L - E.
    """
    log_a, log_b, log_e, alpha, beta = np.moveaxis(theta, -1, 0)
    ratio = alpha / (cost.exponent * beta)
    with np.errstate(invalid="ignore", divide="ignore"):
        reducible = np.log(np.asarray(loss, dtype=np.float64) - np.exp(log_e))
        log_n = (log_a + np.log1p(ratio) - reducible) / alpha
        log_d = (log_b + np.log1p(1 / ratio) - reducible) / beta
    flops = np.exp(np.log(cost.coefficient) + cost.exponent * log_n + log_d)
    below = ~np.isfinite(reducible)
    n, d = np.exp(log_n), np.exp(log_d)
    return np.where(below, np.nan, flops), np.where(below, np.nan, n), np.where(below, np.nan, d)


def overspend(theta: Floats, cost: Cost, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
    """The training compute of (N, D) over that of the compute-optimal point of the same loss: 1 at best."""
    params, tokens = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    loss = loss_of_laws(theta, np.log(params), np.log(tokens))
    return np.asarray(cost.flops_per_token(params) * tokens / optimum_for_loss(theta, cost, loss)[0])


def at_ratio(cost: Cost, flops: npt.ArrayLike, tokens_per_param: npt.ArrayLike) -> tuple[Floats, Floats]:
    """N and D that spend ``flops`` at M = D / N tokens per parameter (Gadre et al. 2024, section 2).

    With :func:`overspend` and the law's loss this is their over-training: L(C, M) is the surface along a budget.
    """
    ratio = np.asarray(tokens_per_param, dtype=np.float64)
    params = (np.asarray(flops, dtype=np.float64) / (cost.coefficient * ratio)) ** (1 / (1 + cost.exponent))
    return params, ratio * params
