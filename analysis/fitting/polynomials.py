"""Least squares of a polynomial, for one set of weights or for all replicates of a bootstrap at once."""

from __future__ import annotations

import numpy as np

from analysis.fitting.values import Floats


def polynomials(x: Floats, y: Floats, weights: Floats, degree: int) -> Floats:
    """Weighted least squares of ``y`` on the powers of ``x`` up to ``degree``.

    It goes by polynomials that are orthogonal under the weights (Forsythe 1957, "Generation and use of orthogonal
    polynomials for data-fitting with a digital computer"), so no system of equations can be ill-conditioned or
    singular: a replicate without enough distinct x gives NaN or nonsense in its own row and leaves the others alone.

    Parameters
    ----------
    x
        (columns,), best between -1 and 1.
    y, weights
        (batch, columns); weights of any positive scale, 0 where a column does not count.

    Returns
    -------
    (batch, degree + 1): coefficients, that of the lowest power first.
    """
    batch = len(weights)
    out = np.zeros((batch, degree + 1))
    before, here = np.zeros_like(weights), np.ones_like(weights)  # the orthogonal polynomials at x
    power_before, power = np.zeros_like(out), np.zeros_like(out)  # and their coefficients
    power[:, 0] = 1
    norm_before = np.ones((batch, 1))
    rest = np.where(weights > 0, y, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(degree + 1):
            norm = np.sum(weights * here**2, axis=1, keepdims=True)
            share = np.sum(weights * here * rest, axis=1, keepdims=True) / norm
            out += share * power
            rest = rest - share * here
            middle = np.sum(weights * x * here**2, axis=1, keepdims=True) / norm
            lag = norm / norm_before
            before, here = here, (x - middle) * here - lag * before
            power_before, power = power, np.roll(power, 1, axis=1) - middle * power - lag * power_before
            norm_before = norm
    return out
