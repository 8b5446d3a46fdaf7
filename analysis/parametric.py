"""Approach 3: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 10), to the last digit.

The objective is Hoffmann's: the SUM over rows of Huber(log L - log L(N, D)); averaged instead, general optimisers stop
far from the optimum, which is where the published .454 comes from (Besiroglu et al. 2024). theta = (log A, log B,
log E, alpha, beta), with log N and log D centred: un-centred, the condition number is 1e11.

Starts come from a grid of (alpha, beta): there the law is linear in A, B and E (variable projection). From the best of
them Newton's method with the exact Hessian runs on all starts, or all bootstrap weightings, at once. Where that Hessian
is not positive definite, the majoriser of iteratively reweighted least squares takes its place; damping is Levenberg's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits import Bools, Certificate, Floats, ParametricFit, Refused

NAMES = ("A", "B", "E", "alpha", "beta")
GRID = np.geomspace(0.03, 1.5, 24)
MAX_STEPS = 300
SMALLEST_DAMPING, LARGEST_DAMPING = 1e-12, 1e9
LONGEST_STEP = 1.0  # in a logarithm or an exponent; where a term is nearly nothing, Newton's own step knows no bound
STATIONARY = 1e-13  # of the largest gradient there could be
CONVERGED = 1e-8
RESAMPLED = 1e-3  # resampling itself moves the gradient by 1 / sqrt(n), far more
LEAST_SCATTER = 1e-4  # of log L: no training run repeats more exactly, whatever the residuals say
NOTHING = 1e-9  # a term with no larger share in any loss is not there
LARGEST_LOG = 300.0  # of A, B and E, so that they and their products stay floats
BATCH = 100  # replicates at once: their arrays stay in the cache


def fit_parametric(
    params: Floats, tokens: Floats, loss: Floats, *, delta: float = 1e-3, starts: int = 12
) -> ParametricFit | Refused:
    """Fit Approach 3.

    Parameters
    ----------
    params, tokens, loss
        (n,), positive: N, D and L of each point.
    delta
        Where the Huber loss turns from square to linear, in log loss. As it goes to 0 the fit is that of least
        absolute deviations; below 1e-4 the fit is led there step by step.
    starts
        How many points of the grid Newton's method starts from.

    Returns
    -------
    ParametricFit
        With the evidence that it is the optimum; or why the data support none.
    """
    reason = unsupported(params, tokens, loss)
    if reason:
        return Refused(reason=reason)
    data = _Data.of(params, tokens, loss)
    weights = np.ones((1, len(loss)))
    theta = data.starts(starts, max(delta, 1e-3))
    for step in _continuation(delta):
        theta, objective = minimise(data, weights, theta, step)
    best = int(np.argmin(objective))
    agreeing = objective <= objective[best] * (1 + 1e-9) + 1e-24
    certificate = _certificate(data, theta, best, agreeing, delta)
    log_a, log_b, log_e, alpha, beta = data.uncentred(theta[best])
    _, share_a, share_b, _ = data.terms(theta[best : best + 1])
    for name, exponent, share in (("parameters", alpha, share_a), ("tokens", beta, share_b)):
        if exponent <= 0 or share.max() < NOTHING:
            return Refused(reason=f"alpha={alpha:.3g}, beta={beta:.3g}: the losses do not fall with more {name}.")
    if max(log_a, log_b) > LARGEST_LOG:
        return Refused(reason=f"alpha={alpha:.3g}, beta={beta:.3g}: the losses fall more steeply than a power law can.")
    return ParametricFit(
        log_A=float(log_a),
        log_B=float(log_b),
        log_E=float(log_e),
        alpha=float(alpha),
        beta=float(beta),
        objective=float(objective[best]),
        delta=delta,
        residuals=data.log_loss - data.predict(theta[best : best + 1])[0],
        certificate=certificate,
    )


def refit_parametric(
    params: Floats, tokens: Floats, loss: Floats, weights: Floats, start: ParametricFit
) -> tuple[Floats, Bools]:
    """Fit again under other row weights, from ``start``: the bootstrap.

    Parameters
    ----------
    weights
        (replicates, n), e.g. multinomial counts; the data are never copied.

    Returns
    -------
    theta
        (replicates, 5): log A, log B, log E, alpha, beta.
    good
        (replicates,): converged, at a law whose loss falls with N and D.
    """
    data = _Data.of(params, tokens, loss)
    theta = np.tile(data.centred(start.array()), (len(weights), 1))
    norm = np.empty(len(theta))
    for begin in range(0, len(theta), BATCH):
        part = slice(begin, begin + BATCH)
        for delta in _continuation(start.delta):
            theta[part], _ = minimise(data, weights[part], theta[part], delta, stationary=1e-6, steps=100)
        norm[part] = _Derivatives.of(data, weights[part], theta[part], start.delta).gradient_norm
    theta = data.uncentred(theta)
    sound = (theta[:, 3] > 0) & (theta[:, 4] > 0) & (np.abs(theta[:, :3]) < LARGEST_LOG).all(axis=1)
    return theta, sound & (norm < RESAMPLED)


def objective(fit: Floats, params: Floats, tokens: Floats, loss: Floats, *, delta: float = 1e-3) -> float:
    """Hoffmann's objective of a law ``fit`` = (log A, log B, log E, alpha, beta) on the given rows."""
    data = _Data.of(params, tokens, loss)
    return float(data.objective(np.ones((1, len(loss))), data.centred(fit)[None], delta)[0])


def unsupported(params: Floats, tokens: Floats, loss: Floats) -> str | None:
    """Why five parameters cannot be fitted to these rows; None where they can."""
    distinct = len(np.unique(np.column_stack([params, tokens]), axis=0))
    sizes, lengths = len(np.unique(params)), len(np.unique(tokens))
    if distinct < 6:
        return f"{distinct} distinct (N, D) points are too few for a law with five parameters; it needs at least 6."
    if sizes < 3 or lengths < 3:
        return f"{sizes} model size(s) and {lengths} token count(s) do not separate E, A and B; 3 of each are needed."
    if np.ptp(np.log(params) + np.log(tokens)) < np.log(1.3):
        return "all points lie at one budget, where N fixes D, so their effects cannot be told apart."
    if np.ptp(np.log(loss)) < 1e-12:
        return "all losses are equal, so no law of N and D can be seen in them."
    return None


def minimise(
    data: _Data, weights: Floats, theta: Floats, delta: float, *, stationary: float = STATIONARY, steps: int = MAX_STEPS
) -> tuple[Floats, Floats]:
    """Damped Newton on a batch of problems.

    Parameters
    ----------
    weights
        (batch, n) or (1, n): the weight of each row in each problem.
    theta
        (batch, 5), in centred coordinates: where each problem starts.

    Returns
    -------
    theta, objective
        (batch, 5) and (batch,): never worse than the start.
    """
    theta = theta.copy()
    batch = len(theta)
    weights = np.broadcast_to(weights, (batch, weights.shape[1]))
    value = data.objective(weights, theta, delta)
    damping = np.full(batch, 1e-3)
    active = np.arange(batch)
    for _ in range(steps):
        if not len(active):
            break
        at = _Derivatives.of(data, weights[active], theta[active], delta)
        step, decrease = at.step(damping[active])
        trial = theta[active] + step
        tried = data.objective(weights[active], trial, delta)
        # Below the rounding of the objective a Newton step cannot be judged by it: take one last step, and stop.
        last = (decrease <= 1e-14 * value[active]) | (at.gradient_norm < stationary)
        better = (tried < value[active]) | (last & (tried <= value[active] * (1 + 1e-13)))
        moved = active[better]
        theta[moved], value[moved] = trial[better], tried[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 10, SMALLEST_DAMPING), damping[active] * 6)
        active = active[~last & (damping[active] < LARGEST_DAMPING)]
    return theta, value


@dataclass(frozen=True, eq=False)
class _Data:
    """Rows, with log N and log D centred; x, y and log_loss are (n,)."""

    x: Floats
    y: Floats
    log_loss: Floats
    centre: tuple[float, float]

    @classmethod
    def of(cls, params: Floats, tokens: Floats, loss: Floats) -> _Data:
        x, y = np.log(params), np.log(tokens)
        return cls(x - x.mean(), y - y.mean(), np.log(loss), (float(x.mean()), float(y.mean())))

    def centred(self, theta: Floats) -> Floats:
        """The same laws for centred logs."""
        out = theta.copy()
        out[..., 0] -= theta[..., 3] * self.centre[0]
        out[..., 1] -= theta[..., 4] * self.centre[1]
        return out

    def uncentred(self, theta: Floats) -> Floats:
        """Back from :meth:`centred`."""
        out = theta.copy()
        out[..., 0] += theta[..., 3] * self.centre[0]
        out[..., 1] += theta[..., 4] * self.centre[1]
        return out

    def terms(self, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Log L (batch, n), and the shares of the A, B and E terms in L."""
        za = theta[:, 0:1] - theta[:, 3:4] * self.x
        zb = theta[:, 1:2] - theta[:, 4:5] * self.y
        ze = theta[:, 2:3]
        top = np.maximum(np.maximum(za, zb), ze)
        pa, pb, pe = np.exp(za - top), np.exp(zb - top), np.exp(ze - top)
        total = pa + pb + pe
        return top + np.log(total), pa / total, pb / total, pe / total

    def predict(self, theta: Floats) -> Floats:
        """Log L, (batch, n)."""
        return self.terms(theta)[0]

    def objective(self, weights: Floats, theta: Floats, delta: float) -> Floats:
        """(batch,): the weighted sum of Huber losses; infinite where theta is out of all bounds."""
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.abs(self.predict(theta) - self.log_loss)
            huber = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
            total = np.einsum("bn,bn->b", np.broadcast_to(weights, huber.shape), huber)
        return np.where(np.isfinite(total), total, np.inf)

    def starts(self, count: int, delta: float) -> Floats:
        """(count, 5): the best points of the grid, with A, B and E by weighted least squares on L."""
        alpha, beta = (axis.ravel() for axis in np.meshgrid(GRID, GRID, indexing="ij"))
        features = np.stack(
            [np.exp(-alpha[:, None] * self.x), np.exp(-beta[:, None] * self.y), np.ones((len(alpha), len(self.x)))],
            axis=-1,
        )
        scaled = features / np.exp(self.log_loss)[:, None]  # weights 1/L: relative errors
        norm = np.linalg.norm(scaled, axis=1, keepdims=True)
        scaled = scaled / norm
        gram = np.swapaxes(scaled, 1, 2) @ scaled + 1e-12 * np.eye(3)
        solution = np.linalg.solve(gram, scaled.sum(axis=1)[..., None])[..., 0] / norm[:, 0]
        # A negative term has no logarithm; one of a thousandth of the loss is near enough to zero to start from.
        floor = 1e-3 * np.exp(self.log_loss.min()) / np.max(features, axis=1)
        theta = np.column_stack([np.log(np.maximum(solution, floor)), alpha, beta])
        cost = self.objective(np.ones((1, len(self.x))), theta, delta)
        return theta[np.argsort(cost, kind="stable")[:count]]


@dataclass(frozen=True, eq=False)
class _Derivatives:
    """Gradient (batch, 5), exact Hessian and majoriser (batch, 5, 5) of the objective."""

    gradient: Floats
    hessian: Floats
    majoriser: Floats
    largest: Floats
    """(batch, 5): the gradient if every residual pulled the same way with full force on a term that is all of L."""

    @classmethod
    def of(cls, data: _Data, weights: Floats, theta: Floats, delta: float) -> _Derivatives:
        predicted, pa, pb, pe = data.terms(theta)
        r = predicted - data.log_loss
        slope = weights * np.clip(r, -delta, delta)
        inside = weights * (np.abs(r) <= delta)
        jacobian = np.stack([pa, pb, pe, -pa * data.x, -pb * data.y], axis=1)  # (batch, 5, n)
        transposed = np.swapaxes(jacobian, 1, 2)
        gradient = (jacobian @ slope[..., None])[..., 0]
        hessian = (jacobian * (inside - slope)[:, None]) @ transposed + _softmax_curvature(data, slope, pa, pb, pe)
        force = weights * np.minimum(1.0, delta / np.maximum(np.abs(r), delta))
        majoriser = (jacobian * force[:, None]) @ transposed
        reach = np.array([1.0, 1.0, 1.0, np.abs(data.x).mean(), np.abs(data.y).mean()])
        largest = delta * np.sum(weights, axis=1)[:, None] * reach
        return cls(gradient, hessian, majoriser, largest)

    @property
    def gradient_norm(self) -> Floats:
        """(batch,): the largest component of the gradient, relative to what it could be."""
        return np.asarray(np.max(np.abs(self.gradient) / np.maximum(self.largest, 1e-300), axis=1))

    def step(self, damping: Floats) -> tuple[Floats, Floats]:
        """(batch, 5) damped Newton steps, and the decrease each one promises."""
        diagonal = np.einsum("bii->bi", self.majoriser)
        scale = 1 / np.sqrt(np.maximum(diagonal, 1e-300))
        scaling = scale[:, :, None] * scale[:, None, :]
        exact = self.hessian * scaling
        safe = np.where(np.isfinite(exact), exact, 0.0)
        definite = np.linalg.eigvalsh(safe)[:, 0] > 1e-12
        matrix = np.where(definite[:, None, None], exact, self.majoriser * scaling)
        matrix = matrix + (damping + 1e-14)[:, None, None] * np.eye(5)
        force = self.gradient * scale
        step = -np.linalg.solve(matrix, force[..., None])[..., 0]
        decrease = -0.5 * np.einsum("bi,bi->b", force, step)
        step = step * scale
        short = np.minimum(1.0, LONGEST_STEP / np.maximum(np.max(np.abs(step), axis=1), 1e-300))
        return step * short[:, None], decrease


def _softmax_curvature(data: _Data, slope: Floats, pa: Floats, pb: Floats, pe: Floats) -> Floats:
    """sum_n slope X^T diag(p) X, (batch, 5, 5): X holds the derivatives of the three exponents, which are linear."""
    out = np.zeros((len(slope), 5, 5))
    for share, logs, i, j in ((pa, data.x, 0, 3), (pb, data.y, 1, 4)):
        pull = slope * share
        out[:, i, i] = pull.sum(axis=1)
        out[:, i, j] = out[:, j, i] = -(pull @ logs)
        out[:, j, j] = pull @ logs**2
    out[:, 2, 2] = (slope * pe).sum(axis=1)
    return out


def _continuation(delta: float) -> list[float]:
    """From a delta where Newton's method finds its way down to the one asked for."""
    steps = [1e-3]
    while steps[-1] > delta * 3:
        steps.append(steps[-1] / 3)
    return [delta] if delta >= 1e-4 else [*steps, delta]


def _certificate(data: _Data, theta: Floats, best: int, agreeing: Bools, delta: float) -> Certificate:
    """What the optimum and the other starts say about it."""
    weights = np.ones((1, len(data.x)))
    at = _Derivatives.of(data, weights, theta[best : best + 1], delta)
    predicted, pa, pb, pe = (part[0] for part in data.terms(theta[best : best + 1]))
    jacobian = np.column_stack([pa, pb, pe, -pa * data.x, -pb * data.y])
    norm = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    eigenvalues, vectors = np.linalg.eigh((jacobian / norm).T @ (jacobian / norm))
    variance = max(np.sum((predicted - data.log_loss) ** 2) / max(1, len(data.x) - 5), LEAST_SCATTER**2)
    error = np.sqrt(variance * np.sum(vectors**2 / np.maximum(eigenvalues, 1e-15), axis=1)) / norm
    loose = np.abs(theta[agreeing] - theta[best]).max(axis=0) > 1e-3  # as good an objective elsewhere
    _, _, free_e, free_alpha, free_beta = loose | (error > [np.inf, np.inf, 1.0, *np.abs(theta[best, 3:])])
    free_e |= bool(pe.max() < 1e-6)
    free_alpha |= bool(pa.max() < 1e-6)
    free_beta |= bool(pb.max() < 1e-6)
    free = dict(zip(NAMES, (free_alpha, free_beta, free_e, free_alpha, free_beta), strict=True))
    return Certificate(
        gradient_norm=float(at.gradient_norm[0]),
        starts=len(theta),
        starts_agreeing=int(agreeing.sum()),
        converged=bool(at.gradient_norm[0] < CONVERGED),
        unidentified=tuple(name for name in NAMES if free[name]),
        condition=float(eigenvalues[-1] / max(eigenvalues[0], 1e-300)),
    )
