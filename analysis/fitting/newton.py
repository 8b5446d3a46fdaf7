"""Newton's method on Approach 3's objective, for many problems at once: starts, bootstrap weightings, held parameters.

Coordinates are theta = (log A, log B, E, alpha, beta), with log N, log D and log L centred: un-centred, the condition
number is 1e11. E stands as it is and not as its logarithm, since the best E may be 0: a bound that a linear coordinate
reaches, and leaves again. A step takes the exact Hessian with the absolute values of its eigenvalues (the modification
of Gill, Murray and Wright, "Practical optimization", 1981, section 4.4.2), damped as Levenberg's; what does not lower
the objective is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting.values import Bools, Floats, Ints

MAX_STEPS = 500
FIRST_DAMPING, SMALLEST_DAMPING, LARGEST_DAMPING = 1e-3, 1e-12, 1e3
LONGEST_STEP = 1.0  # in a logarithm or an exponent; where a term is nearly nothing, Newton's own step knows no bound
STATIONARY = 1e-13  # of the largest gradient there could be
LEAST_E = 1e-12  # of the mean loss, and so nothing: it keeps log E finite
ELEMENTS = 15_000  # rows times problems worked on at once, so that their arrays stay in the cache


@dataclass(frozen=True)
class Centring:
    """What coordinates are relative to: the means of log N, log D and log L."""

    log_n: float
    log_d: float
    log_l: float

    def inward(self, theta: Floats) -> Floats:
        """Coordinates of laws (..., 5): log A, log B, log E, alpha, beta."""
        out = theta.copy()
        out[..., 0] -= theta[..., 3] * self.log_n + self.log_l
        out[..., 1] -= theta[..., 4] * self.log_d + self.log_l
        e = np.exp(theta[..., 2] - self.log_l)
        out[..., 2] = np.where(e < 2 * LEAST_E, LEAST_E, e)  # exactly there, whatever the rounding
        return out

    def outward(self, theta: Floats) -> Floats:
        """Back from :meth:`inward`."""
        out = theta.copy()
        out[..., 0] += theta[..., 3] * self.log_n + self.log_l
        out[..., 1] += theta[..., 4] * self.log_d + self.log_l
        out[..., 2] = np.log(theta[..., 2]) + self.log_l
        return out


@dataclass(frozen=True, eq=False)
class Problems:
    """Rows in centred coordinates: x, y (n,); log_loss and weights (problems, n), or (1, n) where they share them."""

    x: Floats
    y: Floats
    log_loss: Floats
    weights: Floats
    centring: Centring

    @classmethod
    def of(
        cls, params: Floats, tokens: Floats, loss: Floats, weights: Floats | None = None, shift: Floats | None = None
    ) -> Problems:
        """One problem, or as many as ``weights`` (problems, n) has rows; ``shift`` (problems, n) is added to log L."""
        x, y, z = np.log(params), np.log(tokens), np.log(loss)
        at = Centring(float(x.mean()), float(y.mean()), float(z.mean()))
        log_loss = (z - at.log_l)[None] if shift is None else z - at.log_l + shift
        return cls(x - at.log_n, y - at.log_d, log_loss, np.ones((1, len(z))) if weights is None else weights, at)

    def take(self, index: slice | Ints) -> Problems:
        """Some of the problems."""
        log_loss, weights = (part if len(part) == 1 else part[index] for part in (self.log_loss, self.weights))
        return Problems(self.x, self.y, log_loss, weights, self.centring)

    def terms(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """The A and B terms and L, each (batch, n)."""
        first = np.exp(theta[:, 0:1] - theta[:, 3:4] * self.x)
        second = np.exp(theta[:, 1:2] - theta[:, 4:5] * self.y)
        return first, second, first + second + theta[:, 2:3]

    def residuals(self, theta: Floats) -> Floats:
        """(batch, n): fitted log L minus log L."""
        return np.asarray(np.log(self.terms(theta)[2]) - self.log_loss)

    def objective(self, theta: Floats, delta: float) -> Floats:
        """(batch,): the weighted sum of Huber losses."""
        residuals = self.residuals(theta)
        slope = np.clip(residuals, -delta, delta)
        return np.asarray(np.sum(self.weights * slope * (residuals - 0.5 * slope), axis=1))

    def largest_gradient(self, delta: float) -> Floats:
        """(problems or 1, 5): the gradient if every residual pulled one way in full, on a term that is all of L."""
        reach = np.array([1.0, 1.0, 1.0, np.abs(self.x).mean(), np.abs(self.y).mean()])
        return np.asarray(min(delta, float(np.std(self.log_loss))) * self.weights.sum(axis=1)[:, None] * reach)


@dataclass(frozen=True, eq=False)
class Minima:
    """Where a batch of problems ended."""

    theta: Floats
    """(batch, 5)"""
    objective: Floats
    """(batch,): never above that of the start."""
    gradient_norm: Floats
    """(batch,): the largest component of the gradient over the largest it could be; what only lowers E below 0 counts
    nothing."""


def minimise(
    problems: Problems,
    theta: Floats,
    delta: float,
    basis: Floats | None = None,
    *,
    stationary: float = STATIONARY,
    steps: int = MAX_STEPS,
) -> Minima:
    """Damped Newton on a batch of problems.

    Parameters
    ----------
    problems
        As many as ``theta`` has rows, or one, from several starts.
    theta
        (batch, 5): where each starts, in centred coordinates.
    delta
        Where the Huber loss turns from square to linear; infinite for squared residuals.
    basis
        (5, k) or (batch, 5, k): the directions that are free, all five if None; E is one of them by itself, or held.
    stationary
        The gradient norm at which a last step is taken.

    Returns
    -------
    Minima
        Local minima, each downhill of its start.
    """
    theta, count = theta.copy(), len(theta)
    basis = np.eye(5) if basis is None else basis
    basis = np.broadcast_to(basis, (count, 5, basis.shape[-1]))
    largest = np.broadcast_to(problems.largest_gradient(delta), (count, 5))
    largest = np.maximum((np.abs(basis) * largest[:, :, None]).sum(axis=1), 1e-300)
    at = Expansion.unknown(basis)
    damping, taken = np.full(count, FIRST_DAMPING), np.zeros(count, dtype=np.int64)
    room = max(1, ELEMENTS // len(problems.x))
    active, begun = np.arange(0), 0
    while begun < count or len(active):  # as some problems end, others join
        joining = np.arange(begun, min(count, begun + room - len(active)))
        active, begun = np.concatenate([active, joining]), begun + len(joining)
        here, floor = at.take(active), LEAST_E - theta[active, 2]
        step, decrease = here.step(damping[active], floor)
        # Below the rounding of the objective a step cannot be judged by it: take one last step, and stop.
        last = (decrease <= 1e-14 * here.value) | (here.norm(largest[active], floor) < stationary)
        last &= taken[active] > 0
        trial = theta[active] + step
        trial[trial[:, 2] < 2 * LEAST_E, 2] = LEAST_E
        there = Expansion.of(problems.take(active), trial, delta, here.basis)
        better = (there.value < here.value) | (last & (there.value <= here.value * (1 + 1e-13)))
        moved = active[better]
        theta[moved] = trial[better]
        at.put(moved, there.take(better))
        damping[active] = np.where(better, np.maximum(damping[active] / 10, SMALLEST_DAMPING), damping[active] * 6)
        taken[active] += 1
        active = active[~last & (damping[active] < LARGEST_DAMPING) & (taken[active] <= steps)]
    return Minima(theta, at.value, at.norm(largest, LEAST_E - theta[:, 2]))


@dataclass(frozen=True, eq=False)
class Expansion:
    """The objective about theta: value (batch,), gradient (batch, k) and Hessian (batch, k, k) along a basis."""

    value: Floats
    gradient: Floats
    hessian: Floats
    scale: Floats
    """(batch, k): one over the length of the Jacobian's columns. Curvature in these units is at most about k, which a
    damping of that size outdoes, however few rows are within delta."""
    basis: Floats

    @classmethod
    def unknown(cls, basis: Floats) -> Expansion:
        """Where nothing has been evaluated: a step from there stays, and is taken."""
        count, k = len(basis), basis.shape[-1]
        return cls(np.full(count, np.inf), np.zeros((count, k)), np.zeros((count, k, k)), np.ones((count, k)), basis)

    @classmethod
    def of(cls, problems: Problems, theta: Floats, delta: float, basis: Floats) -> Expansion:
        """About ``theta`` (batch, 5), along ``basis`` (batch, 5, k); infinite where a law is out of range."""
        x, y = problems.x, problems.y
        with np.errstate(over="ignore", invalid="ignore"):
            first, second, total = problems.terms(theta)
            residuals = np.log(total) - problems.log_loss
            jacobian = np.empty((len(theta), 5, len(x)))  # of log L
            one = np.divide(1.0, total, out=jacobian[:, 2])
            first = np.multiply(first, one, out=jacobian[:, 0])
            second = np.multiply(second, one, out=jacobian[:, 1])
            np.multiply(first, -x, out=jacobian[:, 3])
            np.multiply(second, -y, out=jacobian[:, 4])
            bounded = np.clip(residuals, -delta, delta)
            slope = problems.weights * bounded
            value = np.einsum("bn,bn->b", slope, residuals - 0.5 * bounded)
            gradient = (jacobian @ slope[..., None])[..., 0]
            # log L curves by (second derivatives of L) / L - J J^T, and Huber's loss where a residual is within delta.
            curvature = problems.weights * (bounded == residuals) - slope
            hessian = (jacobian * curvature[:, None]) @ np.swapaxes(jacobian, 1, 2)
            for level, exponent, share, logs in ((0, 3, first, x), (1, 4, second, y)):
                hessian[:, level, level] += gradient[:, level]
                hessian[:, level, exponent] += gradient[:, exponent]
                hessian[:, exponent, level] += gradient[:, exponent]
                hessian[:, exponent, exponent] += (slope * share) @ logs**2
            squares = np.einsum("bin,bin->bi", jacobian, jacobian) * problems.weights.mean(axis=1)[:, None]
            value = np.where(np.isfinite(value), value, np.inf)
        if basis.shape[-1] < 5:
            across = np.swapaxes(basis, 1, 2)
            gradient, hessian = (across @ gradient[..., None])[..., 0], across @ hessian @ basis
            squares = (across**2 @ squares[..., None])[..., 0]
        return cls(value, gradient, hessian, 1 / np.sqrt(np.maximum(squares, 1e-300)), basis)

    def take(self, index: Ints | Bools) -> Expansion:
        """Of some of the batch."""
        parts = (self.value, self.gradient, self.hessian, self.scale, self.basis)
        return Expansion(*(part[index] for part in parts))

    def put(self, index: Ints, other: Expansion) -> None:
        """Overwrite some of the batch."""
        self.value[index], self.gradient[index] = other.value, other.gradient
        self.hessian[index], self.scale[index] = other.hessian, other.scale

    def step(self, damping: Floats, floor: Floats) -> tuple[Floats, Floats]:
        """(batch, 5) steps by which E falls no further than ``floor``, and the decrease each one promises."""
        scale = self.scale
        values, vectors = np.linalg.eigh(self.hessian * (scale[:, :, None] * scale[:, None, :]))
        values = np.abs(values) + np.maximum(damping, 1e-14)[:, None]
        force = -self.gradient * scale
        step = _solve(values, vectors, force)
        lift = self.basis[:, 2] * scale  # of E by the step
        low = np.flatnonzero(np.einsum("bi,bi->b", lift, step) < floor)
        if len(low):  # then the best step within the bound is on it
            along = _solve(values[low], vectors[low], lift[low])
            lacking = floor[low] - np.einsum("bi,bi->b", lift[low], step[low])
            step[low] += along * (lacking / np.einsum("bi,bi->b", lift[low], along))[:, None]
        decrease = 0.5 * np.einsum("bi,bi->b", force, step)
        moved = (self.basis @ (step * scale)[..., None])[..., 0]
        longest = np.max(np.abs(moved[:, [0, 1, 3, 4]]), axis=1)
        return moved * np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-300))[:, None], decrease

    def norm(self, largest: Floats, floor: Floats) -> Floats:
        """(batch,): :attr:`Minima.gradient_norm`."""
        down = np.where((floor >= 0)[:, None], np.maximum(self.gradient * self.basis[:, 2], 0.0), 0.0)
        return np.asarray(np.max(np.abs(self.gradient - down) / largest, axis=1))


def _solve(values: Floats, vectors: Floats, right: Floats) -> Floats:
    """x (batch, k) of V diag(values) V^T x = right."""
    return np.asarray((vectors @ ((right[:, None] @ vectors)[:, 0] / values)[..., None])[..., 0])
