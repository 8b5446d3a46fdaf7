"""Approach 3 against scipy's L-BFGS-B on the same objective, gradient and starting grid.

    python tests/benchmarks/bench_parametric.py [csv with params,tokens,loss] [starts of Hoffmann's grid, default 4500]

Without a file it takes a made-up sweep of 240 points. Prints seconds, objectives and ratios. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).parents[2]))

from analysis.fitting.parametric import fit_parametric
from analysis.fitting.values import Refused

DELTA = 1e-3
RUNS = 21


def made_up() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7.5, 10, 240), 10 ** rng.uniform(9, 11.5, 240)
    return n, d, (1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28) * np.exp(0.005 * rng.standard_normal(240))


def huber(theta: np.ndarray, n: np.ndarray, d: np.ndarray, log_loss: np.ndarray) -> tuple[float, np.ndarray]:
    a, b, e, alpha, beta = theta
    z = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
    top = z.max(axis=0)
    p = np.exp(z - top)
    total = p.sum(axis=0)
    r, p = top + np.log(total) - log_loss, p / total
    slope = np.clip(r, -DELTA, DELTA)
    value = np.sum(np.where(np.abs(r) <= DELTA, r**2 / 2, DELTA * (np.abs(r) - DELTA / 2)))
    return float(value), np.array([p[0] @ slope, p[1] @ slope, p[2] @ slope, -(p[0] * n) @ slope, -(p[1] * d) @ slope])


def lbfgs(n: np.ndarray, d: np.ndarray, loss: np.ndarray, starts: int) -> float:
    """Hoffmann et al. 2022, D.3: a in {0, 5, ..., 25}, b the same, e in {-1, ..., 1}, alpha and beta in {0, ..., 2}."""
    grid = list(
        itertools.product(range(0, 30, 5), range(0, 30, 5), np.arange(-1, 1.5, 0.5), *[np.arange(0, 2.5, 0.5)] * 2)
    )
    chosen = [grid[i] for i in np.random.default_rng(0).permutation(len(grid))[:starts]]
    data = (np.log(n), np.log(d), np.log(loss))
    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10_000, "maxfun": 20_000}
    return min(minimize(huber, x, data, "L-BFGS-B", jac=True, options=options).fun for x in chosen)


def rows(path: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and L of a file (of Besiroglu's file those rows that they fit), or of a made-up sweep."""
    if path is None:
        return made_up()
    table = pd.read_csv(path)
    if "epoch_fit_sample" in table:
        table = table[table["epoch_fit_sample"] == 1]
    n, d, loss = (table[name].to_numpy(dtype=float, copy=True) for name in ("params", "tokens", "loss"))
    return n, d, loss


def main() -> None:
    n, d, loss = rows(sys.argv[1] if len(sys.argv) > 1 else None)
    starts = int(sys.argv[2]) if len(sys.argv) > 2 else 4500
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        fit = fit_parametric(n, d, loss, delta=DELTA)
        seconds.append(time.perf_counter() - begin)
    ours = float(np.median(seconds))
    if isinstance(fit, Refused):
        raise SystemExit(fit.reason)
    begin = time.perf_counter()
    best = lbfgs(n, d, loss, starts)
    theirs = time.perf_counter() - begin
    print(f"{len(n)} rows; ours: {ours:.4f} s (median of {RUNS}), objective {fit.objective:.13e}")
    print(fit.certificate)
    above = best / fit.objective - 1
    print(f"L-BFGS-B, {starts} starts: {theirs:.2f} s, objective {best:.13e}, above ours by {above:.2e}")
    print(f"ours is {theirs / ours:.0f} times faster")


if __name__ == "__main__":
    main()
