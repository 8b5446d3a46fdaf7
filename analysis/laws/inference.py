"""The cheapest way to a loss when the model will be used, not only trained (Sardana et al. 2024, equation 2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.fitting.values import Cost, Floats
from analysis.laws.search import lowest

FORWARD = 1 / 3  # of training's FLOPs per token: 2 N of 6 N


def optimum_with_inference(
    theta: Floats, cost: Cost, loss: npt.ArrayLike, inference_tokens: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """N and D that reach ``loss`` at the least compute for training and ``inference_tokens`` together.

    Minimises k N^g D + k N^g D_inf / 3 subject to L(N, D) = ``loss``; with C = 6 N D that is 6 N D + 2 N D_inf. Along
    the curve of equal loss the total is log-convex in the share of L - E that is left to N, so it has one minimum.

    Parameters
    ----------
    theta
        (..., 5): log A, log B, log E, alpha, beta.
    cost
        Training compute, C = k N^g D.
    loss
        (...): above the irreducible loss.
    inference_tokens
        (...): D_inf, tokens in and out over the model's life, 0 or more.

    Returns
    -------
    N, D and the total of training and inference FLOPs, each (...); NaN at or below the irreducible loss.
    """
    log_a, log_b, log_e, alpha, beta = (part[..., None] for part in np.moveaxis(theta, -1, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        reducible = np.log(np.asarray(loss, dtype=np.float64)[..., None] - np.exp(log_e))
        served = np.log(FORWARD * np.asarray(inference_tokens, dtype=np.float64))[..., None]

    def logs(odds: Floats) -> tuple[Floats, Floats, Floats]:
        log_n = (log_a - reducible + np.logaddexp(0, -odds)) / alpha
        log_d = (log_b - reducible + np.logaddexp(0, odds)) / beta
        return log_n, log_d, np.log(cost.coefficient) + cost.exponent * log_n + np.logaddexp(log_d, served)

    shape = np.broadcast_shapes(reducible.shape, served.shape, alpha.shape)[:-1]
    with np.errstate(invalid="ignore"):
        odds = lowest(lambda x: logs(x)[2], np.full(shape, -30.0), np.full(shape, 30.0))
        n, d, total = (np.exp(part[..., 0]) for part in logs(odds[..., None]))
    return n, d, total
