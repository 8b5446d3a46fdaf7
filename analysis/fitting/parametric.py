"""Approach 3: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 10), to the last digit.

The objective is Hoffmann's: the SUM over rows of Huber(log L - log L(N, D)); averaged instead, general optimisers stop
far from the optimum, which is where the published .454 comes from (Besiroglu et al. 2024). Least absolute deviations
are its limit for small delta, least squares its limit for large.

Starts come from a grid of (alpha, beta): there the law is linear in A, B and E (variable projection). From the best of
them Newton's method (:mod:`analysis.fitting.newton`) runs on all starts, or all bootstrap weightings, at once.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from analysis.config import Form, Objective, chosen
from analysis.fitting.columns import columns
from analysis.fitting.newton import STATIONARY, Minima, Problems, minimise
from analysis.fitting.starts import grid_starts
from analysis.fitting.values import Bools, Certificate, Floats, ParametricFit, Refused
from trainer.errors import UserError

NAMES = ("A", "B", "E", "alpha", "beta")
LAD_DELTA = 1e-8
"""Small enough for least absolute deviations: on Hoffmann's data a tenth of it moves no parameter by 1e-5 of itself."""
CONVERGED = 1e-8
WARM = 1e-6  # the gradient norm at which a refit takes its last step, which squares it
RESAMPLED = 1e-4  # where a refit must end: resampling itself moves the gradient by 1 / sqrt(n), far more
LEAST_SCATTER = 1e-4  # of log L: no training run repeats more exactly, whatever the residuals say
ONE_LINE = 1 - 1e-9  # the correlation of log N and log D at which D is a power of N, as with one ratio of D to N
HAIR = 1.1
NOTHING = 1e-9  # a term with no larger share in any loss is not there
LARGEST_LOG = 300.0  # of A and B, so that they and their products stay floats


def fit_parametric(
    params: npt.ArrayLike,
    tokens: npt.ArrayLike,
    loss: npt.ArrayLike,
    *,
    objective: Objective | str = Objective.huber,
    delta: float = 1e-3,
    form: Form | str = Form.free,
    E: float | None = None,
    starts: int = 12,
) -> ParametricFit | Refused:
    """Fit Approach 3.

    Parameters
    ----------
    params, tokens, loss
        (n,), positive: N, D and L of each point. Any columns, of a pandas Series the values by position.
    objective
        What is summed over rows, of the residual in log loss: an :class:`~analysis.config.Objective` or its name.
    delta
        With ``objective=huber``: where the Huber loss turns from square to linear, in log loss.
    form
        Which of the five parameters are free: a :class:`~analysis.config.Form` or its name.
    E
        With ``form=fixed_E``: the irreducible loss, in the unit of ``loss``; 0 for none.
    starts
        How many points of the grid Newton's method starts from.

    Returns
    -------
    ParametricFit
        With the evidence that it is the optimum; or why the data support none. An E of a 1e-12th of the loss stands
        for 0: the data would have it negative.

    Raises
    ------
    UserError
        If a number is not finite and positive, the columns differ in length, ``objective`` or ``form`` is unknown, or
        ``E`` and ``form`` do not fit together.

    References
    ----------
    Hoffmann et al., "Training compute-optimal large language models" (2022), equation 10 and appendix D.3. Besiroglu
    et al., "Chinchilla scaling: a replication attempt" (2024).
    """
    params, tokens, loss = columns(params=params, tokens=tokens, loss=loss)
    objective, form = chosen(Objective, objective, "fit.objective"), chosen(Form, form, "fit.form")
    _check(objective, delta, form, E, starts)
    reason = unsupported(params, tokens, loss, form, E)
    if reason:
        return Refused(reason=reason)
    problem = Problems.of(params, tokens, loss)
    delta = {Objective.lad: LAD_DELTA, Objective.squared: math.inf}.get(objective, delta)
    found = follow(problem, grid_starts(problem, starts, max(delta, 1e-3), form, E), delta, basis_of(form))
    lost = _without(problem, found.theta)
    best = int(np.argmin(found.objective))
    # Along a flat direction the lowest may be no law, a hair below one that is.
    laws = np.flatnonzero((found.objective <= found.objective[best] * HAIR) & ~lost.any(axis=1))
    if len(laws):
        best = int(laws[np.argmin(found.objective[laws])])
    agreeing = np.abs(found.objective - found.objective[best]) <= found.objective[best] * 1e-9 + 1e-24
    theta, lost = found.theta[best], lost[best]
    log_a, log_b, log_e, alpha, beta = problem.centring.outward(theta)
    if lost.any():
        names = " and ".join(name for name, gone in zip(("parameters", "tokens"), lost, strict=True) if gone)
        return Refused(reason=f"alpha={alpha:.3g}, beta={beta:.3g}: the losses do not fall with more {names}.")
    if max(log_a, log_b) > LARGEST_LOG:
        return Refused(reason=f"alpha={alpha:.3g}, beta={beta:.3g}: the losses fall more steeply than a power law can.")
    return ParametricFit(
        log_A=float(log_a),
        log_B=float(log_b),
        log_E=float(log_e),
        alpha=float(alpha),
        beta=float(beta),
        objective=float(found.objective[best]),
        delta=delta,
        how=objective,
        form=form,
        residuals=-problem.residuals(theta[None])[0],
        certificate=_certificate(problem, found, best, agreeing, form),
    )


def refit_parametric(
    params: Floats,
    tokens: Floats,
    loss: Floats,
    weights: Floats,
    start: ParametricFit,
    shift: Floats | None = None,
) -> tuple[Floats, Bools]:
    """Fit again under other row weights, from ``start`` and as it was fitted: the bootstrap.

    Parameters
    ----------
    weights
        (replicates, n), e.g. multinomial counts; the data are never copied.
    shift
        (replicates, n): added to log L in each replicate, for the residual bootstrap; None for nothing.

    Returns
    -------
    theta
        (replicates, 5): log A, log B, log E, alpha, beta.
    good
        (replicates,): converged, at a law whose loss falls with N and D. A replicate that is not good knows no law:
        an interval that left it out unseen would be too narrow.
    """
    problems = Problems.of(params, tokens, loss, weights, shift)
    theta = np.tile(problems.centring.inward(start.array()), (len(weights), 1))
    found = follow(problems, theta, start.delta, basis_of(start.form), stationary=WARM)
    laws = problems.centring.outward(found.theta)
    return laws, laws_among(problems, found.theta) & (found.gradient_norm < RESAMPLED)


def laws_among(problem: Problems, theta: Floats) -> Bools:
    """(batch,): which of ``theta`` (batch, 5), centred, are laws: L falls with N and D, A and B stay finite."""
    bounded = (problem.centring.outward(theta)[:, :2] < LARGEST_LOG).all(axis=1)
    return np.asarray(bounded & ~_without(problem, theta).any(axis=1))


def objective(law: npt.ArrayLike, params: Floats, tokens: Floats, loss: Floats, *, delta: float = 1e-3) -> float:
    """Hoffmann's objective of a ``law``, (5,) log A, log B, log E, alpha, beta, on the given rows."""
    problem = Problems.of(params, tokens, loss)
    theta = problem.centring.inward(np.asarray(law, dtype=np.float64))
    return float(problem.objective(theta[None], delta)[0])


def unsupported(
    params: Floats,
    tokens: Floats,
    loss: Floats,
    form: Form = Form.free,
    E: float | None = None,
) -> str | None:
    """Why the law's free parameters cannot be fitted to these rows; None where they can."""
    distinct = len(np.unique(np.column_stack([params, tokens]), axis=0))
    sizes, lengths = len(np.unique(params)), len(np.unique(tokens))
    free, least = (5, 3) if form is Form.free else (4, 2)
    if distinct <= free:
        return f"{distinct} distinct (N, D) points are too few for a law with {free} parameters; it needs {free + 1}."
    if sizes < least or lengths < least:
        return (
            f"{sizes} model size(s) and {lengths} token count(s) do not separate E, A and B; it needs {least} of each."
        )
    if np.ptp(np.log(params) + np.log(tokens)) < np.log(1.3):
        return "all points lie at one budget, where N fixes D, so their effects cannot be told apart."
    if np.ptp(np.log(loss)) < 1e-12:
        return "all losses are equal, so no law of N and D can be seen in them."
    if E is not None and loss.min() <= E:
        return (
            f"fit.E={E:g} is not below every loss, the smallest of which is {loss.min():.6g}; choose a smaller fit.E."
        )
    return None


def basis_of(form: Form) -> Floats:
    """(5, k): the directions in theta that a form leaves free."""
    every = np.eye(5)
    match form:
        case Form.free:
            return every
        case Form.tied:
            return np.column_stack([every[:, :3], every[:, 3] + every[:, 4]])
        case Form.fixed_E:
            return every[:, [0, 1, 3, 4]]


def follow(problems: Problems, theta: Floats, delta: float, basis: Floats, stationary: float = STATIONARY) -> Minima:
    """The minima; for a small delta by way of larger ones, where Newton's method finds its way."""
    if delta < 1e-4:
        theta = follow(problems, theta, 10 * delta, basis, stationary).theta
    return minimise(problems, theta, delta, basis, stationary=stationary)


def _without(problem: Problems, theta: Floats) -> Bools:
    """(batch, 2): whether the loss of a law does not fall with N, with D."""
    x, y = problem.x, problem.y
    exponents = theta[:, 3:]
    # A falling term is largest at the smallest N or D; the loss there is about 1, in centred coordinates.
    share = theta[:, :2] - exponents * np.array([x.min(), y.min()])
    return np.asarray((exponents <= 0) | (share < math.log(NOTHING)))


def jacobian_of(problem: Problems, theta: Floats) -> Floats:
    """(n, 5): of the fitted log L by ``theta`` (5,), in centred coordinates."""
    first, second, total = (term[0] for term in problem.terms(theta[None]))
    first, second = first / total, second / total
    return np.column_stack([first, second, 1 / total, -first * problem.x, -second * problem.y])


def spread(problem: Problems, theta: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """How residuals of variance 1 scatter theta (5,).

    Returns
    -------
    eigenvalues
        (k,), rising: of the Gauss-Newton matrix along ``basis`` (5, k), scaled to a diagonal of ones.
    root
        (5, k): R with R R^T the covariance.
    """
    jacobian = jacobian_of(problem, theta) @ basis
    norm = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    eigenvalues, vectors = np.linalg.eigh((jacobian / norm).T @ (jacobian / norm))
    return eigenvalues, basis @ (vectors / norm[:, None] / np.sqrt(np.maximum(eigenvalues, 1e-15)))


def _certificate(problem: Problems, found: Minima, best: int, agreeing: Bools, form: Form) -> Certificate:
    """What the optimum and the other starts say about it."""
    theta, gradient_norm, basis = found.theta[best], float(found.gradient_norm[best]), basis_of(form)
    eigenvalues, root = spread(problem, theta, basis)
    freedom = max(1, len(problem.x) - basis.shape[1])
    variance = max(float(np.sum(problem.residuals(theta[None]) ** 2)) / freedom, LEAST_SCATTER**2)
    error = np.sqrt(variance * np.sum(root**2, axis=1))
    wide = error > [np.inf, np.inf, *np.abs(theta[2:])]
    loose = np.abs(found.theta[agreeing] - theta).max(axis=0) > 1e-3  # as good an objective elsewhere
    first, second, total = problem.terms(theta[None])
    a, b, e = (float((term / total).max()) for term in (first, second, theta[2]))
    absent = np.array([a, b, e, a, b]) < 1e-6
    _, _, free_e, free_alpha, free_beta = (wide | loose | absent) & basis.any(axis=1)
    free = dict(zip(NAMES, (free_alpha, free_beta, free_e, free_alpha, free_beta), strict=True))
    if abs(np.corrcoef(problem.x, problem.y)[0, 1]) > ONE_LINE:  # then the two terms may trade places
        free |= {"A": True, "B": True} if form is Form.tied else dict.fromkeys(("A", "B", "alpha", "beta"), True)
    return Certificate(
        gradient_norm=gradient_norm,
        starts=len(found.theta),
        starts_agreeing=int(agreeing.sum()),
        converged=gradient_norm < CONVERGED,
        unidentified=tuple(name for name in NAMES if free[name]),
        condition=float(eigenvalues[-1] / max(eigenvalues[0], 1e-300)),
        lowest=float(np.min(found.objective)),
    )


def _check(objective: Objective, delta: float, form: Form, E: float | None, starts: int) -> None:
    if starts < 1:
        raise UserError(f"fit.starts={starts} must be 1 or more; 12 do.")
    if objective is Objective.huber and not delta > 0:
        raise UserError(f"fit.delta={delta:g} must be positive; Hoffmann et al. have 1e-3.")
    if (form is Form.fixed_E) != (E is not None):
        raise UserError(f"fit.form={form.value} with fit.E={E}: fit.E is given with fit.form=fixed_E, and only there.")
    if E is not None and not (math.isfinite(E) and E >= 0):
        raise UserError(f"fit.E={E:g} must be a loss of 0 or more, in the unit of the losses.")
