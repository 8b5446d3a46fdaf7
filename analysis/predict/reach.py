"""How far what is asked lies beyond what a law was fitted to, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.fitting.values import Cost
from analysis.text import count_text, flops_text

BEYOND, FAR = 3.0, 30.0
"""Factors past the fitted C, from which a prediction is called an extrapolation, and a far one."""


ROUNDING = 1 + 1e-6


def reach_text(flops: float | None, fitted: tuple[float, float] | None, measured: str = "") -> str:
    """What to beware of at ``flops``; empty within ``BEYOND`` times the range, and where that is not known.

    Parameters
    ----------
    measured
        How well the law has foretold larger budgets, as a clause.
    """
    if flops is None or fitted is None:
        return ""
    low, high = fitted
    factor, end = (flops / high, "the largest") if flops > high else (low / flops, "below the smallest")
    if factor <= BEYOND:
        return ""
    times = f"{factor:.2g}" if factor < 10 else f"{factor:,.0f}" if factor < 1e5 else f"{factor:.0e}"
    text = f"C = {flops_text(flops)} is {times} times {end} C fitted ({flops_text(high if flops > high else low)})"
    text += ": far extrapolation" if factor > FAR else ": extrapolation"
    return f"{text}; {measured}." if measured else f"{text}."


def cost_text(params: Sequence[float], cost: Cost, fitted: tuple[float, float] | None) -> str:
    """What to beware of where a measured cost is taken beyond the N it was measured on; "" where it is 6 N D there.

    Parameters
    ----------
    params
        The N that are asked for.
    fitted
        The smallest and the largest N measured; None where the cost is stated.
    """
    if fitted is None or (math.isclose(cost.coefficient, 6, rel_tol=1e-6) and abs(cost.exponent - 1) < 1e-6):
        return ""
    beyond = [n for n in params if not fitted[0] / ROUNDING <= n <= fitted[1] * ROUNDING]
    if not beyond:
        return ""
    furthest = max(beyond, key=lambda n: abs(math.log(n) - math.log(fitted[0] * fitted[1]) / 2))
    off = float(cost.flops_per_token(furthest)) / (6 * furthest)
    return (
        f"C = {cost.coefficient:.4g} N^{cost.exponent:.4g} D was measured on N from {count_text(fitted[0])} to "
        f"{count_text(fitted[1])} and is extrapolated to N = {count_text(furthest)}, where it is {off:.2g} times 6 N D."
    )


def measured_text(backtest: Mapping[str, Any] | None, approach: str) -> str:
    """The coverage that a fit's backtest measured, from fit.json; empty where that has none for the approach.

    Folders of older versions tell the origins apart alone, which count what lies beyond several more than once.
    """
    if not backtest or "refused" in backtest:
        return ""
    counted = backtest.get("counted_once") or {}
    what, each = "minima of held-out budgets", (counted.get("n_opt") or {}).get(approach) or {}
    if not each.get("measured") and approach == "parametric":
        what, each = "losses of held-out budgets", counted.get("loss") or {}
    if not each.get("measured"):
        return ""
    level = f"{100 * backtest['level']:g}%"
    return (
        f"its backtest reached {each['reach']:.2g} times beyond what it fitted, where {each['inside']} of "
        f"{each['measured']} {what} lay in their {level} prediction intervals"
    )
