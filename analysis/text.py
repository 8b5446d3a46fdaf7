"""Counts, FLOPs and estimates for reading, the same in tables, figures, report and terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.fitting.values import (
        Estimate,  # for its type alone: plans and status show counts and do without pandas
    )

THREE = "{:z.3f}".format
"""Three decimals, without a minus before what they round to zero."""
BEYOND = 1e18
"""A count that nobody has: an end of an interval that says nothing."""
SHORT_TITLES = {"envelope": "1 envelope", "isoflop": "2 isoFLOP", "parametric": "3 parametric"}
"""Hoffmann's numbers of the approaches."""


def count_text(value: float | None) -> str:
    """Parameters or tokens: 55k, 1.2M, 70B, 1.4T, 3e21; three digits at most, a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= BEYOND:
        return flops_text(value)
    value = float(f"{value:.3g}")
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            scaled = value / factor
            return f"{scaled:,.0f}{unit}" if scaled >= 1000 else f"{scaled:.3g}{unit}"
    return f"{value:.3g}"


def flops_text(value: float | None) -> str:
    """FLOPs: 3e12, 5.76e23; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def estimate_text(estimate: Estimate, text: Callable[[float], str] = THREE) -> str:
    """A number, with its interval where it has one: 0.514 (0.492 to 0.543), or 56 (over 20) if that has no upper end.

    A dash stands for what is not known.
    """
    if estimate.value is None:
        return "–"
    value, low, high = estimate.value, estimate.low, estimate.high
    if low is not None and high is not None:
        return f"{text(value)} ({text(low)} to {text(high)})"
    if low is not None:
        return f"{text(value)} (over {text(low)})"
    return text(value) if high is None else f"{text(value)} (below {text(high)})"


def prediction_text(estimate: Estimate, text: Callable[[float], str] = THREE) -> str:
    """Where one more measurement would fall: 2.981 to 3.012; a dash where that is not known."""
    if estimate.prediction is None:
        return "–"
    low, high = estimate.prediction
    return f"{text(low)} to {text(high)}"


def error_text(error: float) -> str:
    """A standard error of a logarithm: 5.8%; a factor where it is large, "open" where nothing is known."""
    if not math.isfinite(error):
        return "open"
    return f"{error:.1%}" if error < 0.5 else f"factor {math.exp(min(error, 700.0)):.3g}"


def within_text(error: float) -> str:
    """The same after "known to": ±5.8%, within a factor 1.9, nothing."""
    if not math.isfinite(error):
        return "nothing"
    return f"±{error_text(error)}" if error < 0.5 else f"within a {error_text(error)}"


def bias_text(off: float) -> str:
    """By how much something is off, of whose logarithm that is ``off``: -3.1%; a dash for what is not known."""
    return f"{math.expm1(off):+z.1%}" if math.isfinite(off) else "–"
