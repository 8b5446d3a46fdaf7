"""How everything a fit shows is named and coloured: titles, axis labels with their conventions, round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analysis.fitting.values import Floats
from analysis.laws.law import Law
from analysis.result import Conventions
from analysis.text import flops_text

TITLES = {
    "envelope": "Approach 1, envelope",
    "isoflop": "Approach 2, isoFLOP",
    "parametric": "Approach 3, parametric",
}
COLOURS = {"envelope": "#0072B2", "isoflop": "#D55E00", "parametric": "#009E73"}
"""Okabe and Ito's, which colour-blind readers tell apart."""
DASHES = {"envelope": "solid", "isoflop": "dashed", "parametric": "dashdot"}
"""So that a print without colours still tells the approaches apart."""
LAW_COLOURS = ("#CC79A7", "#56B4E9", "#E69F00", "#000000")
COLOUR_MAP = "viridis"
BRIGHTEST = 0.92
"""Of the colour map: its last yellow cannot be seen on white."""
COUNTS = {"total": "total", "non_embedding": "non-embedding"}


def number_of(count: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def interval_text(level: float) -> str:
    """How a level is called: 95 %."""
    return f"{100 * level:g} %"


def budgets_text(budgets: Sequence[float], most: int = 6) -> str:
    """Budgets in one line, the middle ones left out where they are many."""
    texts = [flops_text(budget) for budget in budgets]
    if len(texts) > most:
        texts = [*texts[: most - 1], f"… ({len(texts)} budgets)", texts[-1]]
    return ", ".join(texts)


def params_label(conventions: Conventions, symbol: str = "N") -> str:
    """Axis label of N with its convention."""
    return f"{symbol}, {COUNTS.get(conventions.params, conventions.params)} parameters"


def flops_label(conventions: Conventions) -> str:
    """Axis label of C with its convention."""
    return f"C, training FLOPs ({conventions.flops})"


def loss_label(conventions: Conventions, symbol: str = "L") -> str:
    """Axis label of the loss with its unit."""
    return f"{symbol}, {conventions.loss}"


def tokens_label(symbol: str = "D") -> str:
    """Axis label of D."""
    return f"{symbol}, training tokens"


def law_label(law: Law, conventions: Conventions) -> str:
    """A published law's name, with how it counts N and C where that differs from the fit."""
    pairs = ((law.params.value, conventions.params), (law.flops.value, conventions.flops))
    other = [COUNTS.get(own, own) for own, here in pairs if own != here]
    return f"{law.name} ({', '.join(other)})" if other else law.name


def padded(values: npt.ArrayLike | Sequence[Floats], factor: float) -> tuple[float, float]:
    """Ends of a logarithmic axis around ``values``, ``factor`` beyond the smallest and the largest."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    flat = flat[np.isfinite(flat) & (flat > 0)]
    return float(flat.min() / factor), float(flat.max() * factor)


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high] for a logarithmic axis: as many as ``most`` labels leave room for."""
    if high < 4 * low:
        return _even_ticks(low, high, most)
    found: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [tick for e in decades for d in digits if low <= (tick := d * 10.0**e) <= high]
        gap = np.diff(np.log(found)).min(initial=np.inf) / np.log(high / low)
        if len(found) <= most and gap >= 0.8 / most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    scale = 10.0 ** math.floor(math.log10(max(high - low, 1e-12 * high)) - 1)
    for step in (1, 2, 2.5, 5, 10, 20, 25, 50, 100):
        first, last = math.ceil(low / (step * scale)), math.floor(high / (step * scale))
        if last - first < most:
            return [float(f"{i * step * scale:.12g}") for i in range(first, last + 1)]
    return [low]
