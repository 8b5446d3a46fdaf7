"""The compute-optimal point where unique data run out (Muennighoff et al. 2023, section 3.1 and equations 5 and 6)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.fitting.effective import loss_repeated
from analysis.fitting.optimum import balance
from analysis.fitting.values import Cost, Floats
from analysis.laws.search import lowest

PUBLISHED = np.array([15.387756, 5.309743])
"""R_D* and R_N* of Muennighoff et al. 2023, appendix A, with the digits of the authors' code: 182 runs on C4."""
PUBLISHED_TEXT = f"Repeated tokens: R_D* = {PUBLISHED[0]:.2f}, R_N* = {PUBLISHED[1]:.2f} (Muennighoff et al. 2023, C4)."
REACH = np.log(1e6)  # around the optimum of fresh tokens


def optimum_constrained(
    theta: Floats, saturation: Floats, cost: Cost, flops: npt.ArrayLike, unique_tokens: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """N, D and L that are best at ``flops`` when no more than ``unique_tokens`` distinct tokens exist.

    Parameters
    ----------
    theta
        (..., 5): log A, log B, log E, alpha, beta of fresh tokens.
    saturation
        (..., 2): R_D* and R_N*.
    cost
        C = k N^g D.
    flops, unique_tokens
        (...): broadcast with the leading axes.

    Returns
    -------
    Three of (...): where ``unique_tokens`` suffices, the compute-optimal point of fresh tokens.
    """
    flops, unique = np.asarray(flops, dtype=np.float64), np.asarray(unique_tokens, dtype=np.float64)
    theta, saturation = np.asarray(theta), np.asarray(saturation)
    wide, pairs = theta[..., None, :], saturation[..., None, :]
    per_token = np.log(cost.coefficient)

    def log_tokens(log_n: Floats) -> Floats:
        return np.asarray(np.log(flops)[..., None] - per_token - cost.exponent * log_n)

    def loss(log_n: Floats) -> Floats:
        d = np.exp(log_tokens(log_n))
        return loss_repeated(wide, pairs, np.exp(log_n), d, unique[..., None], cost)

    alpha, beta, held = balance(theta, cost)
    fresh = (held + beta * (np.log(flops) - per_token)) / (alpha + cost.exponent * beta)
    shape = np.broadcast_shapes(fresh.shape, unique.shape, saturation.shape[:-1])
    start = np.broadcast_to(fresh, shape)
    enough = np.exp(log_tokens(start[..., None])[..., 0]) <= unique
    log_n = np.where(enough, start, lowest(loss, start - REACH, start + REACH))[..., None]
    return np.exp(log_n[..., 0]), np.exp(log_tokens(log_n)[..., 0]), loss(log_n)[..., 0]
