"""Refits of points drawn within small groups scatter too little; by how much, the drawn weights say.

Drawing m points of m with replacement has (m - 1) / m of the variance that new errors would have, and with four or five
points a budget that is a tenth of an interval's width (Rao and Wu, "Resampling inference with complex survey data",
JASA 83, 1988, who rescale weights; here none may be negative). To first order and with errors that are independent and
alike, the refits' covariance is M = Q^T diag(var w) Q in coordinates in which new errors' would be the identity, for Q
the Jacobian's orthonormal columns. So their deviations from the fit are multiplied by M^(-1/2), and keep their
skewness. That residuals are smaller than errors is left alone: refits under drawn weights vary the more, about as much
(a first-order correction for it as well made intervals of 18 points a third too wide).
"""

from __future__ import annotations

import numpy as np

from analysis.fitting.newton import LEAST_E, Problems
from analysis.fitting.parametric import basis_of, jacobian_of, laws_among
from analysis.fitting.values import Floats, ParametricFit

MOST = 2.0
"""Times by which deviations grow at most: a group of one is drawn every time, and nothing can be made of that."""
SINGULAR = 1e10  # a condition number at which the points leave a direction open


def unshrunk(
    params: Floats, tokens: Floats, loss: Floats, weights: Floats, theta: Floats, fit: ParametricFit
) -> Floats:
    """Approach 3's refits, as far from the fit as those to new errors would lie.

    Parameters
    ----------
    params, tokens, loss
        (n,): the rows of ``fit``.
    weights
        (replicates, n): as they were drawn, 1 on average.
    theta
        (m, 5): refits under some of them: log A, log B, log E, alpha, beta.

    Returns
    -------
    (m, 5); a refit stays where it is if farther out there is no law.
    """
    problem, basis = Problems.of(params, tokens, loss), basis_of(fit.form)
    centre, found = problem.centring.inward(fit.array()), problem.centring.inward(theta)
    space, root = np.linalg.qr(jacobian_of(problem, centre) @ basis)
    if not len(theta) or np.linalg.cond(root) > SINGULAR:
        return theta
    variance = np.einsum("rn,rn->n", weights, weights) / len(weights) - 2 * weights.mean(axis=0) + 1
    values, vectors = np.linalg.eigh(space.T * variance @ space)
    grown = vectors / np.sqrt(np.clip(values, 1 / MOST**2, 1.0)) @ vectors.T
    outward = basis @ np.linalg.solve(root, grown @ root) @ np.linalg.pinv(basis)
    moved = centre + (found - centre) @ outward.T
    moved[:, 2] = np.maximum(moved[:, 2], LEAST_E)
    laws = laws_among(problem, moved)
    return np.where(laws[:, None], problem.centring.outward(moved), theta)
