"""Ways in which the form of the law is known to fail, each one more term in log L, and what they leave of a target.

With first = A / N^alpha / L and second = B / D^beta / L, per unit of a coefficient that the form has at zero:

- ``curvature_n``: - first (log N)^2, of alpha growing with N; ``curvature_d``: - second (log D)^2, of beta with D;
- ``interaction``: first second, of a term A B / (N^alpha D^beta) in L, up to a factor;
- ``drift``: log N + log D, which is log C: large runs that were tuned worse, or better.

Logarithms are about the points' means; what a shift of them adds, theta takes.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from analysis.config import Quantity
from analysis.fitting.optimum import optimum
from analysis.fitting.parametric import basis_of
from analysis.fitting.values import Cost, Floats, ParametricFit
from analysis.planning.information import Target, huber_factor, jacobian, variances

NAMES = ("curvature_n", "curvature_d", "interaction", "drift")
MEANING = {
    "curvature_n": ("the effect of N steepens towards large N", "the effect of N flattens towards large N"),
    "curvature_d": ("the effect of D steepens towards large D", "the effect of D flattens towards large D"),
    "interaction": (
        "small N and small D cost more together than their terms add up to",
        "small N and small D cost less together than their terms add up to",
    ),
    "drift": ("losses lie above the form at large C", "losses lie below the form at large C"),
}
"""What a positive and a negative coefficient say."""
STEP = 1e-4  # of log N, in central differences


def terms(law: Floats, log_n: Floats, log_d: Floats, centre: tuple[float, float]) -> Floats:
    """(4, n): the terms of ``NAMES`` in log L under ``law`` (5,), logarithms about ``centre``."""
    first, second = jacobian(law[None], np.exp(log_n), np.exp(log_d))[0, :, :2].T
    x, y = log_n - centre[0], log_d - centre[1]
    return np.stack([-first * x**2, -second * y**2, first * second, x + y])


def errors_if_bent(
    params: Floats, tokens: Floats, law: Floats, target: Target, noise: float, cost: Cost
) -> dict[str, float]:
    """What could still be said of a target if the form failed, by the way in which it does.

    An extrapolation rests on the form more than on the points: a curvature too small to be seen in them may move N* at
    a far C by more than its interval. These errors are those of a fit that leaves one coefficient free.

    Parameters
    ----------
    params, tokens
        (n,).
    law
        (5,): log A, log B, log E, alpha, beta.
    target
        Any but the exponent, which a bent law has none of.
    noise
        Standard deviation of log L.

    Returns
    -------
    dict
        Linearised standard error of the target by name of the extension; infinite where the points leave it open.
    """
    x, y = np.log(params), np.log(tokens)
    centre = (float(x.mean()), float(y.mean()))
    rows = jacobian(law[None], params, tokens)[0] / noise
    extra = terms(law, x, y, centre) / noise
    aim = target.gradient(law[None], cost)[0]
    shifts = _shifts(law, target, cost, centre)
    return {
        name: float(np.sqrt(variances(np.column_stack([rows, column]), np.append(aim, shift)[None])[0]))
        for name, column, shift in zip(NAMES, extra, shifts, strict=True)
    }


def interval_if_bent(
    params: Floats, tokens: Floats, fit: ParametricFit, target: Target, cost: Cost, level: float
) -> tuple[float, float]:
    """Where a target lies if the form may fail in any one of the named ways.

    The hull of the interval of the fitted law and of those with one coefficient left free, each at its least-squares
    value: so far as one of them is the truth, it covers at least what it says, however little the points show of a
    failure; a mild one is seldom significant, and moves N* at a far C by several of its standard errors.

    Parameters
    ----------
    params, tokens
        (n,): the rows of ``fit``.
    target
        n_opt, loss_opt or loss.
    level
        Of the interval.

    Returns
    -------
    low, high
        Of the target's logarithm, by Student's t with n - 6 degrees of freedom; infinite where the points leave one of
        the ways wholly open, or there are none to spare.
    """
    x, y = np.log(params), np.log(tokens)
    law, centre, spare = fit.array(), (float(x.mean()), float(y.mean())), len(x) - 6
    value = float(target.value(law[None], cost)[0])
    if spare < 1:
        return -math.inf, math.inf
    noise = float(np.sqrt(np.sum(fit.residuals**2) / spare))
    wide = float(stdtrit(spare, (1 + level) / 2)) * noise * huber_factor(fit.delta, max(noise, 1e-12))
    basis = basis_of(fit.form)
    rows = jacobian(law[None], params, tokens)[0] @ basis
    aim = target.gradient(law[None], cost)[0] @ basis
    plain = wide * float(np.sqrt(variances(rows, aim[None])[0]))
    low, high = value - plain, value + plain
    columns = terms(law, x, y, centre)
    for column, shift in zip(columns, _shifts(law, target, cost, centre), strict=True):
        both, further = np.column_stack([rows, column]), np.append(aim, shift)
        scale = np.linalg.norm(both, axis=0)
        moved = float(further @ (np.linalg.lstsq(both / scale, fit.residuals)[0] / scale))
        error = wide * float(np.sqrt(variances(both, further[None])[0]))
        low, high = min(low, value + moved - error), max(high, value + moved + error)
    return low, high


def _shifts(law: Floats, target: Target, cost: Cost, centre: tuple[float, float]) -> Floats:
    """(4,): of the target per unit of each coefficient, theta held."""
    if target.quantity is Quantity.loss:
        return terms(law, np.log([target.params]), np.log([target.tokens]), centre)[:, 0]
    if target.quantity is Quantity.exponent:
        return np.full(len(NAMES), np.nan)
    n, d, _ = optimum(law, cost, target.flops)
    if target.quantity is Quantity.loss_opt:
        return terms(law, np.log([n]), np.log([d]), centre)[:, 0]
    # The minimum of log L + g z along the budget moves by - z' / (log L)'' per unit of g.
    log_n = math.log(n) + STEP * np.array([-1.0, 1.0])
    log_d = math.log(d) - cost.exponent * STEP * np.array([-1.0, 1.0])
    slope = np.diff(terms(law, log_n, log_d, centre), axis=1)[:, 0] / (2 * STEP)
    first, second = jacobian(law[None], np.array([n]), np.array([d]))[0, 0, :2]
    return np.asarray(-slope / (first * law[3] ** 2 + second * (cost.exponent * law[4]) ** 2))
