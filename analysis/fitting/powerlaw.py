"""Straight lines in logs, for one fit and for all replicates of a bootstrap at once."""

from __future__ import annotations

import numpy as np

from analysis.fitting.values import Bools, Floats, PowerLaw, PowerLaws


def lines(x: Floats, y: Floats, used: Bools) -> tuple[Floats, Floats]:
    """Least squares of ``y`` on ``x`` over the ``used`` columns of each row.

    Parameters
    ----------
    x
        (columns,) or (batch, columns).
    y, used
        (batch, columns).

    Returns
    -------
    intercept, slope
        (batch,); NaN where fewer than two distinct x are used.
    """
    weight = used.astype(np.float64)
    count = weight.sum(axis=1)
    y = np.where(used, y, 0.0)
    x = np.where(used, x, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x, mean_y = x.sum(axis=1) / count, y.sum(axis=1) / count
        dx = (x - mean_x[:, None]) * weight
        spread = np.sum(dx**2, axis=1)
        slope = np.where(spread > 1e-18, np.sum(dx * y, axis=1) / spread, np.nan)
        return mean_y - slope * mean_x, slope


def power_laws(log_flops: Floats, log_n: Floats, log_d: Floats, log_loss: Floats, used: Bools) -> Floats:
    """(batch, 6): N*(C), D*(C), L*(C) as ``PowerLaws.array()``; arguments as in :func:`lines`."""
    fits = [line for y in (log_n, log_d, log_loss) for line in lines(log_flops, y, used)]
    return np.stack(fits, axis=1)


def to_laws(values: Floats, flops_range: tuple[float, float]) -> PowerLaws:
    """Six numbers as the object they stand for."""
    params, tokens, loss = (
        PowerLaw(log_coefficient=float(values[i]), exponent=float(values[i + 1])) for i in (0, 2, 4)
    )
    return PowerLaws(params=params, tokens=tokens, loss=loss, flops_range=flops_range)


def optimum_of_laws(values: Floats, flops_range: tuple[float, float], flops: Floats) -> tuple[Floats, Floats, Floats]:
    """N*, D*, L* at ``flops`` for ``values`` (..., 6): the leading axes broadcast with ``flops``.

    L* has no irreducible term, so it is NaN out of ``flops_range``, whose ends may be missed by 5 %.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # what is not finite is not known
        log_c = np.log(flops)
        n, d, loss = (np.exp(values[..., i] + values[..., i + 1] * log_c) for i in (0, 2, 4))
    inside = (flops >= flops_range[0] / 1.05) & (flops <= flops_range[1] * 1.05)
    return n, d, np.where(inside, loss, np.nan)
