"""What points tell of a law, linearised: the Jacobian of log L, and the gradients of what is to be known.

With independent errors of standard deviation s in log L, least squares of n points has the covariance
s^2 (J^T J)^-1 of theta = (log A, log B, log E, alpha, beta), and a target g(theta) the variance s^2 g'^T (J^T J)^-1 g'.
Other objectives multiply it (:func:`huber_factor`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from analysis.config import FitConfig, Form, Objective, Quantity
from analysis.fitting.optimum import exponents, optimum
from analysis.fitting.parametric import basis_of
from analysis.fitting.values import Cost, Floats, loss_of_laws
from trainer.errors import UserError

SINGULAR = 1e-10  # of the largest singular value of the scaled Jacobian: a direction that the points say nothing of
ALONG = 1e-8  # of a target's gradient: so little along such a direction is rounding
NUMBERS: dict[Quantity, tuple[str, ...]] = {
    Quantity.n_opt: ("flops",),
    Quantity.exponent: (),
    Quantity.loss: ("params", "tokens"),
    Quantity.loss_opt: ("flops",),
}
"""What a target of each kind is stated with."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that a sweep is to pin; designs minimise the sum of weight times variance over their targets.

    Logarithms make variances relative: a standard deviation of 0.05 is 5 %. That of the exponent is absolute, so in a
    mix it wants a weight, such as the square of the log of the factor over which N* is extrapolated.
    """

    quantity: Quantity
    flops: float = math.nan
    """C, for n_opt and loss_opt."""
    params: float = math.nan
    """N, for loss."""
    tokens: float = math.nan
    """D, for loss."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in (*NUMBERS[self.quantity], "weight"):
            value = getattr(self, name)
            if math.isnan(value):
                raise UserError(f"target {self.quantity.value}: {name} is not stated; give it {name}=<number>.")
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"target {self.quantity.value}: {name}={value:g} must be a positive finite number.")

    def value(self, laws: Floats, cost: Cost) -> Floats:
        """(K,): the target under ``laws`` (K, 5)."""
        match self.quantity:
            case Quantity.n_opt:
                return np.asarray(np.log(optimum(laws, cost, self.flops)[0]))
            case Quantity.exponent:
                return np.asarray(exponents(laws, cost)[0])
            case Quantity.loss:
                return np.asarray(np.log(loss_of_laws(laws, math.log(self.params), math.log(self.tokens))))
            case Quantity.loss_opt:
                return np.asarray(np.log(optimum(laws, cost, self.flops)[2]))

    def gradient(self, laws: Floats, cost: Cost) -> Floats:
        """(K, 5): of :meth:`value` by theta."""
        alpha, beta = laws[:, 3], laws[:, 4]
        total = alpha + cost.exponent * beta
        zero = np.zeros_like(alpha)
        match self.quantity:
            case Quantity.n_opt:
                log_n = self.value(laws, cost)
                log_d = np.log(self.flops / cost.coefficient) - cost.exponent * log_n
                slopes = [np.ones_like(alpha), -np.ones_like(alpha), zero, 1 / alpha - log_n, log_d - 1 / beta]
                return np.stack(slopes, axis=1) / total[:, None]
            case Quantity.exponent:
                return np.stack([zero, zero, zero, -beta / total**2, alpha / total**2], axis=1)
            case Quantity.loss:
                return jacobian(laws, np.array([self.params]), np.array([self.tokens]))[:, 0]
            case Quantity.loss_opt:  # at the optimum L does not change with N along the budget
                n, d, _ = optimum(laws, cost, self.flops)
                return jacobian(laws, n[:, None], d[:, None])[:, 0]


def jacobian(laws: Floats, params: Floats, tokens: Floats) -> Floats:
    """(K, n, 5): of log L by theta, at ``params``, ``tokens``, (n,) or (K, n), under ``laws`` (K, 5)."""
    x, y = np.log(params), np.log(tokens)
    log_a, log_b, log_e, alpha, beta = laws.T[:, :, None]
    first, second, least = np.exp(log_a - alpha * x), np.exp(log_b - beta * y), np.exp(log_e)
    total = first + second + least
    first, second = first / total, second / total
    return np.stack([first, second, least / total, -first * x, -second * y], axis=-1)


def gradients(targets: tuple[Target, ...], laws: Floats, cost: Cost) -> Floats:
    """(K, T, 5): the targets' gradients, each times the root of its weight."""
    return np.stack([math.sqrt(target.weight) * target.gradient(laws, cost) for target in targets], axis=1)


def standard_errors(
    params: Floats,
    tokens: Floats,
    laws: Floats,
    targets: tuple[Target, ...],
    noise: Floats | float,
    cost: Cost,
    *,
    counts: Floats | None = None,
    form: Form = Form.free,
) -> Floats:
    """Linearised standard errors of targets by Approach 3.

    Parameters
    ----------
    params, tokens
        (n,).
    laws
        (K, 5).
    noise
        Standard deviation of log L, of each point (n,) or of all.
    counts
        (n,): how many runs each point has; None for one.
    form
        Which parameters the fit leaves free.

    Returns
    -------
    (T,): the root of the variance's mean over the laws; infinite where the points leave a target open.
    """
    basis = basis_of(form)
    weight = np.sqrt(np.ones(len(params)) if counts is None else counts) / noise
    rows = (jacobian(laws, params, tokens) * weight[:, None]) @ basis
    slopes = np.stack([target.gradient(laws, cost) for target in targets], axis=1) @ basis
    each = [variances(one, aims) for one, aims in zip(rows, slopes, strict=True)]
    return np.asarray(np.sqrt(np.mean(each, axis=0)))


def huber_factor(delta: float, noise: float) -> float:
    """How many times the standard error of least squares the Huber objective's is, for normal errors.

    At delta far below the noise, sqrt(pi / 2), as for least absolute deviations; at delta far above it, 1 (Huber,
    "Robust estimation of a location parameter", Ann. Math. Statist. 35, 1964).
    """
    k = delta / noise
    if k > 30:
        return 1.0
    inside = 2 * float(ndtr(k)) - 1
    if k < 1e-4:
        return math.sqrt(math.pi / 2)
    density = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(inside - 2 * k * density + k * k * (1 - inside)) / inside


def error_factor(config: FitConfig, noise: float) -> float:
    """:func:`huber_factor` of a fit's objective."""
    delta = {Objective.huber: config.delta, Objective.lad: 0.0}.get(config.objective, math.inf)
    return huber_factor(delta, max(noise, 1e-12))


def variances(rows: Floats, aims: Floats) -> Floats:
    """(T,): g^T (F^T F)^-1 g of each row g of ``aims`` (T, k), for F = ``rows`` (n, k)."""
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0
    _, singular, right = np.linalg.svd(rows / scale, full_matrices=True)
    singular = np.concatenate([singular, np.zeros(rows.shape[1] - len(singular))])
    parts = right @ (aims / scale).T  # (k, T)
    open_ = singular <= SINGULAR * singular[0]
    lost = (np.abs(parts[open_]) > ALONG * np.linalg.norm(parts, axis=0)).any(axis=0)
    known = np.sum((parts[~open_] / singular[~open_, None]) ** 2, axis=0)
    return np.asarray(np.where(lost, np.inf, known))
