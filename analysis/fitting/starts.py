"""Where Newton's method starts on Approach 3: the best points of a grid of (alpha, beta).

At each of them the law is linear in A, B and E, which linear least squares finds at once (variable projection: Golub
and Pereyra 1973). The sums over rows come from products of two thin matrices, one for N and one for D.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.config import Form
from analysis.fitting.newton import LEAST_E, Problems
from analysis.fitting.values import Floats

GRID = np.geomspace(0.03, 1.5, 24)
"""Of alpha, and of beta."""
BLOCK = 4  # cells of the grid, along each of them


def grid_starts(problem: Problems, count: int, delta: float, form: Form, E: float | None) -> Floats:
    """(count, 5): the best of the grid, spread over it; A, B and a free E by least squares on L, weighted 1/L."""
    terms = [np.exp(-GRID[:, None] * problem.x), np.exp(-GRID[:, None] * problem.y), np.ones((1, len(problem.x)))]
    features = np.concatenate(terms)
    weight = np.exp(-problem.log_loss[0])
    held = None if E is None else max(E / math.exp(problem.centring.log_l), LEAST_E)
    target = 1.0 if held is None else 1 - held * weight
    i, j = (axis.ravel() for axis in np.indices((len(GRID), len(GRID))))
    if form is Form.tied:
        i = j = np.arange(len(GRID))
    chosen = np.column_stack([i, len(GRID) + j, np.full(len(i), 2 * len(GRID))])[:, : 3 if held is None else 2]
    relative = features * weight
    relative /= (norm := np.linalg.norm(relative, axis=1))[:, None]
    gram = (relative @ relative.T)[chosen[:, :, None], chosen[:, None, :]] + 1e-12 * np.eye(chosen.shape[1])
    right = (relative * target).sum(axis=1)[chosen]
    solution = np.linalg.solve(gram, right[..., None])[..., 0] / norm[chosen]
    # A negative term is not of this law; one of a thousandth of the loss is near enough to zero to start from.
    level = np.maximum(solution, 1e-3 * np.exp(problem.log_loss.min()) / features.max(axis=1)[chosen])
    e = level[:, 2] if held is None else np.full(len(i), held)
    theta = np.column_stack([np.log(level[:, :2]), e, GRID[i], GRID[j]])
    # Neighbours would only repeat each other: the best of every block first, so that starts which agree say something.
    best = np.argsort(problem.objective(theta, delta), kind="stable")
    block = (i // BLOCK * len(GRID) + j // BLOCK)[best]
    leads = np.zeros(len(best), dtype=np.bool_)
    leads[np.unique(block, return_index=True)[1]] = True
    return np.asarray(theta[np.concatenate([best[leads], best[~leads]])[:count]])
