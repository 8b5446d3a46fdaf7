"""Refits of points drawn within small groups scatter too little; by how much, the drawn weights say.

Drawing m points of m with replacement has (m - 1) / m of the variance that new errors would have, and with four or five
points a budget that is a tenth of an interval's width (Rao and Wu, "Resampling inference with complex survey data",
JASA 83, 1988, who rescale weights; here none may be negative). To first order and with errors that are independent and
alike, the refits' variance is, on average over directions, the share tr(Q^T diag(var w) Q) / k of new errors', for Q
the Jacobian's k orthonormal columns. So deviations from the fit are divided by its root, and keep their skewness. That
residuals are smaller than errors is left alone: refits under drawn weights vary the more, about as much (a first-order
correction for it as well made intervals of 18 points a third too wide).
"""

from __future__ import annotations

import numpy as np

from analysis.fitting.newton import LEAST_E, Problems
from analysis.fitting.parametric import basis_of, jacobian_of, laws_among
from analysis.fitting.values import Floats, ParametricFit

MOST = 2.0
"""Times by which deviations grow at most: a group of one is drawn every time, and nothing can be made of that."""
STRAIGHT = 0.1
"""Of the residuals: farther than this from a straight line the fitted losses must not lead, or the refit stays."""
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
    (m, 5); a refit stays where it is if farther out there is no law, or one whose losses do not follow.
    """
    problem, basis = Problems.of(params, tokens, loss), basis_of(fit.form)
    centre, found = problem.centring.inward(fit.array()), problem.centring.inward(theta)
    space, root = np.linalg.qr(jacobian_of(problem, centre) @ basis)
    if not len(theta) or np.linalg.cond(root) > SINGULAR:
        return theta
    variance = np.einsum("rn,rn->n", weights, weights) / len(weights) - 2 * weights.mean(axis=0) + 1
    kept = float(np.mean(np.sum(space * variance[:, None] * space, axis=0)))
    grown = min(MOST, max(1.0, 1 / np.sqrt(max(kept, 1e-9))))
    moved = centre + grown * (found - centre)
    moved[:, 2] = np.maximum(moved[:, 2], LEAST_E)
    laws = laws_among(problem, moved)
    there, first, last = (np.log(problem.terms(each)[2]) for each in (centre[None], found, moved))
    bent = np.sqrt(np.mean((last - there - grown * (first - there)) ** 2, axis=1))
    near = bent <= STRAIGHT * np.sqrt(np.mean(fit.residuals**2))
    return np.where((laws & near)[:, None], problem.centring.outward(moved), theta)
