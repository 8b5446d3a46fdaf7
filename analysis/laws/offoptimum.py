"""What a surface law says of points off its frontier: how much compute they waste, and over-training.

``theta`` is (..., 5): log A, log B, log E, alpha, beta, e.g. ``SurfaceLaw.array()`` or rows of ``Replicates.values``;
other arguments broadcast with its leading axes. ``cost`` is C = k N^g D.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.fitting.optimum import optimum_for_loss
from analysis.fitting.values import Cost, Floats, loss_of_laws


def overspend(theta: Floats, cost: Cost, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
    """The training compute of (N, D) over that of the compute-optimal point of the same loss: 1 at best.

    Parameters
    ----------
    theta
        (..., 5): log A, log B, log E, alpha, beta.
    cost
        C = k N^g D.
    params, tokens
        N and D, positive; they broadcast with the leading axes of ``theta``.

    Returns
    -------
    A ratio of FLOPs, of the broadcast shape.
    """
    params, tokens = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    loss = loss_of_laws(theta, np.log(params), np.log(tokens))
    return np.asarray(cost.flops_per_token(params) * tokens / optimum_for_loss(theta, cost, loss)[0])


def at_ratio(cost: Cost, flops: npt.ArrayLike, tokens_per_param: npt.ArrayLike) -> tuple[Floats, Floats]:
    """N and D that spend ``flops`` at M = D / N tokens per parameter (Gadre et al. 2024, section 2).

    With :func:`overspend` and the law's loss this is their over-training: L(C, M) is the surface along a budget.

    Parameters
    ----------
    cost
        C = k N^g D.
    flops, tokens_per_param
        C in FLOPs and M, positive; they broadcast.

    Returns
    -------
    N and D, each of the broadcast shape.
    """
    ratio = np.asarray(tokens_per_param, dtype=np.float64)
    params = (np.asarray(flops, dtype=np.float64) / (cost.coefficient * ratio)) ** (1 / (1 + cost.exponent))
    return params, ratio * params
