"""The minimum of a budget's losses over log N, by the line that is laid through them.

Hoffmann et al. 2022 lay a parabola (3.2); a cubic follows a valley whose sides differ; Akima's interpolation (1970, "A
new method of interpolation and smooth curve fitting based on local procedures") supposes no form at all. All of them
rest on the mean loss of each size, so that the scatter between seeds is never taken for a slope between sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from analysis.config import Valley
from analysis.fitting.polynomials import polynomials
from analysis.fitting.values import Bools, Floats

LEAST_SIZES = {Valley.parabola: 4, Valley.cubic: 5, Valley.akima: 4, Valley.surface: 4}
"""One more than the line could pass through exactly; a resample, which rarely keeps all sizes, may have one fewer."""
SAME_SIZE = 1e-6  # of log N: sizes that differ by rounding only are one
FLAT = 1e-12  # of the loss: curvature that rounding alone makes


@dataclass(frozen=True, eq=False)
class Sizes:
    """A budget's rows by model size, under each replicate's weights."""

    log_n: Floats
    """(k,): rising."""
    loss: Floats
    """(replicates, k): the weighted mean; NaN where the size has no weight."""
    weight: Floats
    """(replicates, k)."""

    @classmethod
    def of(cls, log_n: Floats, loss: Floats, weights: Floats) -> Sizes:
        """Of rows: ``log_n`` (m,), ``loss`` (m,) or (replicates, m), ``weights`` (replicates, m)."""
        order = np.argsort(log_n, kind="stable")
        starts = np.flatnonzero(np.diff(log_n[order], prepend=-np.inf) > SAME_SIZE)
        weight = np.add.reduceat(weights[:, order], starts, axis=1)
        with np.errstate(invalid="ignore"):
            mean = np.add.reduceat((weights * loss)[:, order], starts, axis=1) / weight
        return cls(log_n[order][starts], mean, weight)

    def minima(self, shape: Valley, least: int) -> tuple[Floats, Floats]:
        """(replicates,) log N and loss at the bottom of each replicate's line.

        NaN where it has none, or fewer than ``least`` sizes have weight. The bottom of a parabola or a cubic may lie
        outside the sizes; Akima's interpolation ends at them, and may be lowest there.
        """
        here = self.weight > 0
        enough = here.sum(axis=1) >= least
        log_n, loss = np.full((2, len(here)), np.nan)
        if enough.any():
            some = Sizes(self.log_n, self.loss[enough], self.weight[enough])
            log_n[enough], loss[enough] = some._akima(here[enough]) if shape is Valley.akima else some._bottoms(shape)
        return log_n, loss

    def line(self, shape: Valley) -> Callable[[Floats], Floats]:
        """Loss as a function of log N under the first replicate's weights, for drawing."""
        if shape is Valley.akima:
            return Akima1DInterpolator(self.log_n, self.loss[0])
        domain = [self._centre - self._scale, self._centre + self._scale]
        return np.polynomial.Polynomial(self._coefficients(shape)[0], domain=domain)

    @property
    def _centre(self) -> float:
        return float(self.log_n[0] + self.log_n[-1]) / 2

    @property
    def _scale(self) -> float:
        return float(self.log_n[-1] - self.log_n[0]) / 2 or 1.0

    def _coefficients(self, shape: Valley) -> Floats:
        """(replicates, 4) in (log N - centre) / scale, that of the lowest power first."""
        u = (self.log_n - self._centre) / self._scale
        out = np.zeros((len(self.weight), 4))
        degree = 3 if shape is Valley.cubic else 2
        out[:, : degree + 1] = polynomials(u, self.loss, self.weight, degree)
        return out

    def _bottoms(self, shape: Valley) -> tuple[Floats, Floats]:
        c0, c1, c2, c3 = self._coefficients(shape).T
        u = _bottom(c3, c2, c1, FLAT * np.nanmax(self.loss))
        return self._centre + self._scale * u, c0 + u * (c1 + u * (c2 + u * c3))

    def _akima(self, here: Bools) -> tuple[Floats, Floats]:
        """Interpolation passes through sizes, so replicates that have the same ones go together."""
        log_n, loss = np.empty((2, len(here)))
        patterns, which = np.unique(here, axis=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            batch = np.flatnonzero(which.ravel() == i)
            pieces = Akima1DInterpolator(self.log_n[pattern], self.loss[np.ix_(batch, pattern)].T)
            log_n[batch], loss[batch] = _lowest(pieces.x, pieces.c, self.loss[np.ix_(batch, pattern)].T)
        return log_n, loss


def _bottom(c3: Floats, c2: Floats, c1: Floats, flat: float) -> Floats:
    """Where c3 u^3 + c2 u^2 + c1 u has its local minimum; NaN where it has none, or its curvature is ``flat`` there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(c2**2 - 3 * c3 * c1)  # half the curvature at the minimum
        u = np.where(c2 > 0, -c1 / (c2 + root), (root - c2) / (3 * c3))  # neither loses digits
        return np.where((root > flat) & np.isfinite(u), u, np.nan)


def _lowest(knots: Floats, pieces: Floats, at_knots: Floats) -> tuple[Floats, Floats]:
    """Where piecewise cubics are lowest, and how low: at a knot, or at the bottom of a piece.

    Parameters
    ----------
    knots, pieces, at_knots
        (k,), (4, k - 1, batch) with the highest power first, and (k, batch): the values at the knots.
    """
    c3, c2, c1, c0 = pieces
    u = _bottom(c3, c2, c1, 0.0)
    with np.errstate(invalid="ignore"):
        inside = (u > 0) & (u < np.diff(knots)[:, None])
    u = np.where(inside, u, 0.0)
    places = np.concatenate([np.broadcast_to(knots[:, None], at_knots.shape), knots[:-1, None] + u])
    values = np.concatenate([at_knots, np.where(inside, c0 + u * (c1 + u * (c2 + u * c3)), np.inf)])
    best = values.argmin(axis=0)[None]
    return np.take_along_axis(places, best, axis=0)[0], np.take_along_axis(values, best, axis=0)[0]
