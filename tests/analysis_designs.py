"""Epoch's law and the designs on it that the tests of planning share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.config import Quantity
from analysis.fitting.optimum import optimum
from analysis.fitting.values import Cost, loss_of_laws
from analysis.planning.candidates import Candidates, wsd
from analysis.planning.information import Target

Losses = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Log L at N and D."""

LAW = np.array([np.log(477.8), np.log(2143.4), np.log(1.8172), 0.3473, 0.3672])
NOISE = 0.005
FAR = 5.76e23
COST = Cost()
N_OPT = (Target(quantity=Quantity.n_opt, flops=FAR),)
BUDGETS = np.array([6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21])


def laws_about(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A prior of some spread."""
    return LAW + np.random.default_rng(seed).standard_normal((count, 5)) * [0.1, 0.1, 0.01, 0.005, 0.005]


def valleys(budgets: np.ndarray, sizes: int, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D, C of ``sizes`` sizes within ``reach`` times the best of each budget, either way."""
    best = optimum(LAW, COST, budgets)[0]
    params = (best[:, None] * np.geomspace(1 / reach, reach, sizes)).ravel()
    flops = np.repeat(budgets, sizes)
    return params, flops / 6 / params, flops


def classic() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A Chinchilla-like sweep of 5.1e22 FLOPs."""
    return valleys(BUDGETS, 10, 8.0)


def grid(reach: float = 10.0, budgets: int = 19, sizes: int = 25) -> Candidates:
    """Candidates in the classic sweep's range, each a run of its own."""
    params, tokens, flops = valleys(np.geomspace(6e18, 3e21, budgets), sizes, reach)
    return Candidates(params=params, tokens=tokens, flops=flops, price=flops)


def trunks(sizes: int = 40, budgets: int = 19, reach: float = 10.0) -> Candidates:
    """A ladder of sizes, each one WSD trunk with a horizon at every budget."""
    at = np.geomspace(6e18, 3e21, budgets)
    best = optimum(LAW, COST, at)[0]
    ladder = np.geomspace(best[0] / reach, best[-1] * reach, sizes)
    params, flops = (each.ravel() for each in np.meshgrid(ladder, at, indexing="ij"))
    return wsd(params, flops / 6 / params, flops, flops)


def formed(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(loss_of_laws(LAW, np.log(n), np.log(d))))


def bent(steeper_n: float, steeper_d: float) -> Losses:
    """Exponents that grow with log N or log D."""

    def losses(n: np.ndarray, d: np.ndarray) -> np.ndarray:
        x, y = np.log(n), np.log(d)
        first = np.exp(LAW[0] - LAW[3] * x - steeper_n * (x - np.log(1e9)) ** 2)
        second = np.exp(LAW[1] - LAW[4] * y - steeper_d * (y - np.log(2e10)) ** 2)
        return np.asarray(np.log(np.exp(LAW[2]) + first + second))

    return losses


def joined(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """An interaction: the terms add up as a 0.8-norm, in the manner of Kaplan et al. 2020, equation 1.5."""
    first, second = np.exp(LAW[0] - LAW[3] * np.log(n)), np.exp(LAW[1] - LAW[4] * np.log(d))
    return np.asarray(np.log(np.exp(LAW[2]) + (first**0.8 + second**0.8) ** 1.25))


def repeated(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """10 billion tokens to read, again and again (Muennighoff et al. 2023, equation 5)."""
    unique, worth = 1e10, 15.4
    again = np.maximum(d / unique - 1, 0)
    return formed(n, np.where(d > unique, unique * (1 + worth * (1 - np.exp(-again / worth))), d))


def undertuned(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """3 % more loss for every factor of 10 above 3e20 FLOPs."""
    return formed(n, d) + 0.03 * np.maximum(np.log10(6 * n * d / 3e20), 0)
