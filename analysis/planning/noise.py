"""The noise of log L: from points trained several times, else from a fit's residuals; and laws it speaks against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, fdtrc

from analysis.fitting.values import Floats, Ints, ParametricFit, loss_of_laws
from trainer.errors import UserError

NORMAL = 1.4826  # sd of normal errors over their median size
LEAST_FREEDOM = 5  # of replicates, to believe them rather than residuals
SMALL = 0.01  # in log loss: a law so near the results is good enough to plan by
MISSED = 0.01
"""The chance of residuals so large, did the form hold, below which they count rather than the seeds' scatter."""
CONTRADICTED = 1e-3
"""The chance of results so far off, were the law true, below which it is said to contradict them."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviation of log L, and what it rests on."""

    value: float
    freedom: int
    """Degrees of freedom: a standard error of about value / sqrt(2 freedom)."""
    source: str
    """``seeds``, ``residuals``, or what else to say of it."""


def estimate_noise(params: Floats, tokens: Floats, loss: Floats, fit: ParametricFit | None = None) -> Noise:
    """The noise of a sweep's results.

    Parameters
    ----------
    params, tokens, loss
        (n,): points of one recipe; those with the same N and D differ by their seeds.
    fit
        Approach 3 on these rows, for where there are too few replicates; its residuals hold the form's errors as well.

    Raises
    ------
    UserError
        If there are neither replicates nor a fit with points to spare.
    """
    squares, freedom = pure_error(params, tokens, np.log(loss))
    if freedom >= LEAST_FREEDOM or (fit is None and freedom >= 1):
        return Noise(value=float(np.sqrt(squares / freedom)), freedom=freedom, source="seeds")
    spare = len(loss) - 5
    if fit is None or spare < 1:
        raise UserError(f"The noise cannot be told from {len(loss)} result(s) without replicates; state it instead.")
    return Noise(value=robust_scale(fit.residuals, 5), freedom=spare, source="residuals")


def with_misfit(noise: Noise, fit: ParametricFit) -> Noise:
    """The noise that a fit of the same points has to live with: of seeds, unless the fit misses by surely more.

    The precision that a sweep reaches is measured by its residuals, so a plan that trusted its seeds alone would
    promise more than any fit of that form can keep.
    """
    spare = len(fit.residuals) - fit.free
    if spare < 1:
        return noise
    left = float(np.sqrt(np.sum(fit.residuals**2) / spare))
    if noise.freedom < 1 or fdtrc(spare, noise.freedom, (left / noise.value) ** 2) >= MISSED:
        return noise
    source = f"residuals: the law misses the points by more than seeds differ, {noise.value:.2g}"
    return Noise(value=left, freedom=spare, source=source)


def robust_scale(residuals: Floats, fitted: int) -> float:
    """Standard deviation of normal errors by the median size of the residuals that ``fitted`` parameters left.

    Least absolute deviations, and Huber's for small delta, pass through as many points as they have parameters: those
    residuals say nothing, and with them the scale of 18 points would come out a third too low (McKean and Schrader,
    "Coefficients of determination for least absolute deviation analysis", Stat. Probab. Lett. 5, 1987).
    """
    sizes = np.sort(np.abs(residuals))[fitted:]
    return NORMAL * float(np.median(sizes)) if len(sizes) else 0.0


def pure_error(params: Floats, tokens: Floats, values: Floats) -> tuple[float, int]:
    """Sum of squares of ``values`` (n,) within points of the same N and D, and its degrees of freedom."""
    place = same_points(params, tokens)
    counts = np.bincount(place)
    means = np.bincount(place, values) / counts
    return float(np.sum((values - means[place]) ** 2)), int(len(values) - len(counts))


def same_points(params: Floats, tokens: Floats) -> Ints:
    """(n,): a number for each distinct N and D; they are alike within a part in a million."""
    keys = np.round(np.column_stack([np.log(params), np.log(tokens)]), 6)
    return np.asarray(np.unique(keys, axis=0, return_inverse=True)[1], dtype=np.int64).ravel()


def contradiction(laws: Floats, params: Floats, tokens: Floats, loss: Floats, noise: float) -> str | None:
    """Why a prior cannot be true of results, in a sentence; None where it may be.

    A prior is contradicted when under every one of its laws (K, 5) the results are improbable (chi-squared, n degrees
    of freedom, below ``CONTRADICTED``) and the loss is off by more than 1 %.
    """
    off = np.log(loss) - np.log(loss_of_laws(laws[:, None, :], np.log(params), np.log(tokens)))
    squares = np.sum(off**2, axis=1)
    best = int(np.argmin(squares))
    typical = float(np.sqrt(squares[best] / len(loss)))
    if chdtrc(len(loss), squares[best] / noise**2) >= CONTRADICTED or typical <= SMALL:
        return None
    direction = "above" if off[best].mean() > 0 else "below"
    return (
        f"the prior law contradicts the {len(loss)} results so far: they lie {typical:.2g} from it in log loss, mostly "
        f"{direction}, where the noise is {noise:.2g}"
    )
