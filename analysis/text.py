"""Counts and FLOPs for reading, the same in tables, figures, report and terminal."""

from __future__ import annotations

import math


def count_text(value: float | None) -> str:
    """Parameters or tokens: 55k, 1.2M, 70B, 1.4T; three digits at most, a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
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
