"""Whether the form of a fitted law fails, and where: score tests against the ways in which it is known to.

Each extension adds one term to log L, of which only the first order at zero is needed (a score test, Rao 1948), so
nothing is fitted anew: does what is left of that term, once theta has taken its part, correlate with the residuals?
These are clipped as in Huber's psi first, so that a few wild runs neither make nor hide a failure (M-tests: Sen,
"On M tests in linear models", Biometrika 69, 1982; Markatou and Hettmansperger, JASA 85, 1990); the statistic is that
of the regression of clipped residuals on the Jacobian and the term, Student's t with what freedom is left. Where points
were trained several times, their pure error tests for any failure besides (Draper and Smith, "Applied regression
analysis", ch. 2). All p-values are corrected for their number (Holm, Scand. J. Statist. 6, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc, stdtr

from analysis.fitting.parametric import LEAST_SCATTER, basis_of
from analysis.fitting.values import Floats, ParametricFit, finite
from analysis.planning.extensions import MEANING, NAMES, terms
from analysis.planning.information import jacobian
from analysis.planning.noise import pure_error, robust_scale, same_points

LEVEL = 0.05
CLIP = 2.0  # robust standard deviations
LEAST_FREEDOM = 3
HIDDEN = 1e-3  # of a term, left once theta has taken its part: the points cannot show the rest


@dataclass(frozen=True, kw_only=True)
class Extension:
    """One way in which the form could fail, and the evidence."""

    name: str
    """curvature_n, curvature_d, interaction, drift; or replicates, for any way, by pure error."""
    statistic: float
    """t, whose sign is that of the term; F for replicates; NaN where the points cannot show it."""
    p: float
    """By itself; NaN where the points cannot show it."""
    adjusted: float
    """Among all that were tested (Holm)."""
    meaning: str
    """What a failure in this direction would be, in words."""


@dataclass(frozen=True, kw_only=True)
class LackOfFit:
    """The tests of a fit's form."""

    extensions: tuple[Extension, ...]
    level: float
    """The chance that a form that holds is said to fail."""

    @property
    def fails(self) -> bool:
        """Whether any test says so."""
        return any(each.adjusted < self.level for each in self.extensions)

    @property
    def worst(self) -> Extension | None:
        """The extension with the most evidence; None where none could be tested."""
        tested = [each for each in self.extensions if np.isfinite(each.p)]
        return min(tested, key=lambda each: each.p, default=None)

    @property
    def where(self) -> str:
        """Part of a sentence: how the form fails; empty where it does not."""
        worst = self.worst
        if worst is None or not self.fails:
            return ""
        return f"{worst.meaning} (p = {worst.adjusted:.2g})"

    def to_dict(self) -> dict[str, Any]:
        """As fit.json has it."""
        return {
            "fails": self.fails,
            "where": self.where,
            "level": self.level,
            "tests": [
                {"name": each.name, "meaning": each.meaning}
                | {name: finite(getattr(each, name)) for name in ("statistic", "p", "adjusted")}
                for each in self.extensions
            ],
        }


def lack_of_fit(params: Floats, tokens: Floats, loss: Floats, fit: ParametricFit, *, level: float = LEVEL) -> LackOfFit:
    """Test a fitted law against its named extensions.

    The extensions are those of :mod:`analysis.planning.extensions`. On most designs they resemble each other, so the
    name of the strongest is where to look first, not a proof.

    Parameters
    ----------
    params, tokens, loss
        (n,): the rows of ``fit``.
    level
        Of the tests together.

    Returns
    -------
    LackOfFit
        With fewer than 3 rows to spare nothing is tested.
    """
    x, y = np.log(params), np.log(tokens)
    base = jacobian(fit.array()[None], params, tokens)[0]
    columns = terms(fit.array(), x, y, (float(x.mean()), float(y.mean())))
    space, _ = np.linalg.qr(_scaled(base @ basis_of(fit.form)))
    clipped = _clipped(fit.residuals, space.shape[1])
    found = {name: _score(term, clipped, space) for name, term in zip(NAMES, columns, strict=True)}
    found["replicates"] = _replicates(params, tokens, clipped, space)
    adjusted = _holm(np.array([p for _, p in found.values()]))
    return LackOfFit(
        extensions=tuple(
            Extension(name=name, statistic=statistic, p=p, adjusted=float(each), meaning=_meaning(name, statistic))
            for (name, (statistic, p)), each in zip(found.items(), adjusted, strict=True)
        ),
        level=level,
    )


def _score(term: Floats, residuals: Floats, space: Floats) -> tuple[float, float]:
    """Student's t of ``term`` beside ``space`` (n, k), orthonormal, and its two-sided p."""
    freedom = len(term) - space.shape[1] - 1
    rest = term - space @ (space.T @ term)
    if freedom < LEAST_FREEDOM or np.linalg.norm(rest) < HIDDEN * np.linalg.norm(term):
        return np.nan, np.nan
    rest /= np.linalg.norm(rest)
    outside = residuals - space @ (space.T @ residuals)
    slope = float(rest @ outside)
    variance = max(float(outside @ outside) - slope**2, 0.0) / freedom
    t = slope / np.sqrt(max(variance, LEAST_SCATTER**2))
    return float(t), float(2 * stdtr(freedom, -abs(t)))


def _replicates(params: Floats, tokens: Floats, residuals: Floats, space: Floats) -> tuple[float, float]:
    """F of what the fit misses of the points' means against what replicates scatter about them, and its p."""
    squares, freedom = pure_error(params, tokens, residuals)
    more = int(same_points(params, tokens).max()) + 1 - space.shape[1]
    if freedom < LEAST_FREEDOM or more < 1:
        return np.nan, np.nan
    outside = residuals - space @ (space.T @ residuals)
    missed = max(float(outside @ outside) - squares, 0.0) / more
    statistic = missed / max(squares / freedom, LEAST_SCATTER**2)
    return statistic, float(fdtrc(more, freedom, statistic))


def _clipped(residuals: Floats, fitted: int) -> Floats:
    """Residuals, cut at ``CLIP`` robust standard deviations."""
    reach = CLIP * max(robust_scale(residuals, fitted), LEAST_SCATTER)
    return np.clip(residuals, -reach, reach)


def _holm(p: Floats) -> Floats:
    """P-values corrected for how many there are; NaN are none."""
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    rising = known[np.argsort(p[known], kind="stable")]
    out[rising] = np.minimum(1.0, np.maximum.accumulate(p[rising] * np.arange(len(rising), 0, -1)))
    return out


def _meaning(name: str, statistic: float) -> str:
    if name not in MEANING:
        return "points lie farther from the law than their replicates from each other"
    return MEANING[name][0 if statistic >= 0 else 1]


def _scaled(columns: Floats) -> Floats:
    """Each column over its length."""
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300))
