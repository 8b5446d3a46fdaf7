"""The law of repeated data: what repeated tokens and excess parameters are worth (Muennighoff et al. 2023, sec. 3.1).

Arguments broadcast; ``theta`` is (..., 5) as the rows of ``Replicates.values``, and its leading axes broadcast too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.fitting.optimum import balance
from analysis.fitting.values import SIX_ND, Cost, Floats, loss_of_laws


def effective(base: npt.ArrayLike, total: npt.ArrayLike, saturation: npt.ArrayLike) -> Floats:
    """D' = U + U R* (1 - exp(-R / R*)), with R = D / U - 1 repetitions (equation 5; 6 for parameters).

    Parameters
    ----------
    base
        U, unique tokens; or the parameters that these call for.
    total
        D, tokens in all; or parameters in all. No larger than ``base``, they are worth what they are.
    saturation
        R*, positive; infinite where repeated ones are as good as fresh ones.

    Returns
    -------
    D' in units of ``total``: about D for R much below R*, and at most U (1 + R*).
    """
    total, saturation = np.asarray(total, dtype=np.float64), np.asarray(saturation, dtype=np.float64)
    base = np.minimum(base, total)
    repeats = total / base - 1
    with np.errstate(invalid="ignore"):  # infinity times 0
        gained = np.where(np.isinf(saturation), repeats, -saturation * np.expm1(-repeats / saturation))
    return np.asarray(base * (1 + gained))


def params_called_for(theta: Floats, cost: Cost, tokens: npt.ArrayLike) -> Floats:
    """The N for which ``tokens`` fresh tokens are compute-optimal: U_N of equation 11 in appendix A."""
    alpha, beta, held = balance(theta, cost)
    return np.asarray(np.exp((held + beta * np.log(np.asarray(tokens, dtype=np.float64))) / alpha))


def loss_repeated(
    theta: Floats,
    saturation: Floats,
    params: npt.ArrayLike,
    tokens: npt.ArrayLike,
    unique_tokens: npt.ArrayLike,
    cost: Cost = SIX_ND,
) -> Floats:
    """L(N', D'): the loss of ``params`` trained on ``tokens``, of which ``unique_tokens`` are distinct.

    Parameters
    ----------
    theta
        (..., 5): log A, log B, log E, alpha, beta.
    saturation
        (..., 2): R_D* and R_N*; both infinite give the law of fresh tokens.
    params, tokens, unique_tokens
        Positive; they broadcast with the leading axes.
    cost
        How C is counted, which decides how many parameters a number of tokens calls for.

    Returns
    -------
    L in the unit of E, of the broadcast shape.
    """
    saturation, unique = np.asarray(saturation), np.minimum(unique_tokens, tokens)
    d = effective(unique, tokens, saturation[..., 0])
    n = effective(params_called_for(theta, cost, unique), params, saturation[..., 1])
    return loss_of_laws(theta, np.log(n), np.log(d))
