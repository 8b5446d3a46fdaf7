"""Approach 3's bootstrap: refits per second on one core, and whether any is left above the best optimum to be found.

    python tests/benchmarks/bench_bootstrap.py [csv with params,tokens,loss] [restarts of each of 200, default 100]

Without a file it takes a made-up sweep of 240 points. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from bench_parametric import rows

from analysis.fitting.newton import Problems, minimise
from analysis.fitting.parametric import fit_parametric, refit_parametric
from analysis.fitting.values import Refused

REPLICATES, CHECKED, RUNS = 4000, 200, 5


def main() -> None:
    n, d, loss = rows(sys.argv[1] if len(sys.argv) > 1 else None)
    restarts = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    fit = fit_parametric(n, d, loss)
    if isinstance(fit, Refused):
        raise SystemExit(fit.reason)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(n), np.full(len(n), 1 / len(n)), size=REPLICATES).astype(float)
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        theta, good = refit_parametric(n, d, loss, weights, fit)
        seconds.append(time.perf_counter() - begin)
    print(f"{len(n)} rows: {REPLICATES / np.median(seconds):.0f} replicates/s (median of {RUNS} times {REPLICATES})")
    print(f"{REPLICATES - good.sum()} of them failed")
    problems = Problems.of(n, d, loss, weights[:CHECKED])
    found = problems.objective(problems.centring.inward(theta[:CHECKED]), fit.delta)
    best, reached = found.copy(), 0
    for _ in range(restarts):
        spread = rng.normal(0, [0.5, 0.5, 0.2, 0.2, 0.2], size=(CHECKED, 5))
        start = problems.centring.inward(fit.array()) + spread
        start[:, 2:] = np.maximum(start[:, 2:], 0.02)
        again = minimise(problems, start, fit.delta, stationary=1e-8).objective
        reached += int(np.sum(again <= found * (1 + 1e-9)))
        best = np.minimum(best, again)
    above = found / best - 1
    print(f"{CHECKED} of them, {restarts} restarts each, of which {reached / restarts / CHECKED:.0%} came as low:")
    print(
        f"the worst refit is {above.max():.1e} above the best optimum found; {np.sum(above > 1e-9)} by more than 1e-9"
    )


if __name__ == "__main__":
    main()
