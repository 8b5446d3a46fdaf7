"""Made-up runs on a known surface, for the tests of the fits."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.fitting.curves import Curves
from analysis.fitting.values import Rows
from analysis.ingest.tables import Tables, complete_curves, complete_points

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
A_TRUE = BETA / (ALPHA + BETA)


def surface(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return E + A * params**-ALPHA + B * tokens**-BETA


def n_star(flops: np.ndarray) -> np.ndarray:
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (flops / 6) ** A_TRUE


def isoflop_design(
    budgets: np.ndarray, sizes: int = 7, spacing: float = 1.6, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """N, D, C, L, with C = 6 N D and sizes centred on the optimum."""
    factors = spacing ** (np.arange(sizes) - (sizes - 1) / 2)
    params = np.concatenate([n_star(budget) * factors for budget in budgets])
    flops = np.repeat(budgets, sizes)
    tokens = flops / 6 / params
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(params)))
    return params, tokens, flops, surface(params, tokens) * scatter


def cosine_curves(params: np.ndarray, tokens: np.ndarray, rows: int = 40) -> Curves:
    """Each run's curve: the surface at the tokens so far, plus a bump that the learning rate's decay takes away."""
    share = np.linspace(1 / rows, 1, rows)
    n, d = np.repeat(params, rows), np.outer(tokens, share).ravel()
    progress = np.tile(share, len(params))
    return Curves.of_rows(
        run_id=tuple(f"run{i:03d}" for i in np.repeat(np.arange(len(params)), rows)),
        params=n,
        tokens=d,
        flops=6 * n * d,
        loss=surface(n, d) + 0.3 * (1 - progress),
        progress=progress,
    )


def tables(params: np.ndarray, tokens: np.ndarray, flops: np.ndarray, loss: np.ndarray, **columns: object) -> Tables:
    """Points as a sweep leaves them, with curves."""
    names = [f"run{i:03d}" for i in range(len(loss))]
    points = pd.DataFrame(
        {
            "run_id": names,
            "point_id": names,
            "cluster_id": names,
            "params_total": params,
            "tokens": tokens,
            "flops_matmul": flops,
            "loss": loss,
            "loss_unit": "nats/token",
            "verdict": "done",
            **columns,
        }
    )
    curves = cosine_curves(params, tokens)
    steps = pd.DataFrame(
        {
            "run_id": np.array(curves.names)[curves.run],
            "tokens": curves.tokens,
            "progress": curves.progress,
            "val_loss": curves.loss,
        }
    )
    return Tables(source="made up", points=complete_points(points), curves=complete_curves(steps))


def rows_of(
    params: np.ndarray,
    tokens: np.ndarray,
    flops: np.ndarray,
    loss: np.ndarray,
    *,
    budget: np.ndarray,
    **columns: object,
) -> Rows:
    """Points as the fits take them, each its own run."""
    names = tuple(f"run{i:03d}" for i in range(len(loss)))
    known: dict[str, object] = {"seed": np.full(len(loss), np.nan), "cluster_id": names} | columns
    return Rows(
        params=params, tokens=tokens, flops=flops, loss=loss, budget=budget, point_id=names, run_id=names, **known
    )
