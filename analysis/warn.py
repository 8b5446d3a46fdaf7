"""What a reader of a fit should know before believing it: one sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.fits import Refused
from analysis.isoflop import fit_isoflop
from analysis.result import Approach, ConventionFit, Isoflop, Parametric, Rows
from analysis.tables import AXIS
from analysis.text import flops_text

FEW_POINTS = 15
EPOCHS = 4  # beyond it repeated tokens no longer count as fresh ones (Muennighoff et al. 2023)
WINDOW = 4.0
MOVED = 0.03  # of an exponent
LOST = 0.05  # of the replicates


def warnings(fits: tuple[ConventionFit, ...], points: pd.DataFrame) -> tuple[str, ...]:
    """Everything worth a warning about the fits (the primary one first) and the rows they rest on."""
    return (*_rows(fits[0].rows, points), *_approaches(fits[0]), *_conventions(fits))


def _rows(rows: Rows, points: pd.DataFrame) -> Iterator[str]:
    if len(rows) < FEW_POINTS:
        yield f"Only {len(rows)} points: intervals from resampling are too narrow with so few."
    decades = float(np.ptp(np.log10(rows.flops)))
    if decades < 1:
        yield f"C spans a factor of {10**decades:.3g} only; exponents need a decade or more."
    epochs = points["tokens"] / points["unique_tokens"]
    if (epochs > EPOCHS).any():
        yield (
            f"{int((epochs > EPOCHS).sum())} rows see their data more than {EPOCHS} times, and repeated tokens do "
            "not count as fresh ones (Muennighoff et al. 2023); choose others with where=."
        )
    values = {str(name): points[name].astype(str).nunique() for name in points if str(name).startswith(AXIS)}
    axes = [name for name, count in values.items() if count > 1]
    if axes:
        varied = ", ".join(f"{name.removeprefix(AXIS)} ({values[name]} values)" for name in axes)
        yield f"One law is fitted to points that differ in {varied}; fit each one with group_by={','.join(axes)}."
    flags = Counter(flag for text in points["flags"] for flag in str(text).split(";") if flag)
    for flag, count in flags.items():
        yield f"{count} of {len(rows)} points carry the flag {flag}."


def _approaches(fit: ConventionFit) -> Iterator[str]:
    if fit.cost.spread > 0.1:
        yield (
            f"FLOPs per token follow a power of N within {fit.cost.spread:.0%} only; the optima of Approach 3, which "
            "rest on that power law, are no better."
        )
    for name, approach in fit.approaches.items():
        if isinstance(approach, Approach) and approach.replicates is not None:
            failed, kept = approach.replicates.failed, len(approach.replicates.values)
            if failed > LOST * (failed + kept):
                rest = "the interval rests on the others" if kept else "there is no interval"
                yield f"{name}: {failed} of {failed + kept} replicates gave no fit; {rest}."
    if isinstance(fit.isoflop, Isoflop):
        yield from _isoflop(fit.isoflop, fit.rows)
    if isinstance(fit.parametric, Parametric):
        yield from _parametric(fit.parametric)
    yield from _disagreement(fit)


def _isoflop(approach: Isoflop, rows: Rows) -> Iterator[str]:
    for parabola in approach.fit.parabolas:
        if parabola.refused and len(parabola.rows) >= 4:
            yield f"isoflop: the budget {parabola.budget:.3g} is not used: {parabola.refused}."
    lost = [f"{flops_text(budget)} ({share:.0%})" for budget, share in approach.lost.items() if share > LOST]
    if lost:
        yield (
            f"isoflop: some budgets have no minimum in more than {LOST:.0%} of the replicates, which then rest on the "
            f"other budgets: {', '.join(lost)}; more sizes or seeds there would help."
        )
    if len(approach.fit.accepted) == 2:
        yield "isoflop: two budgets fix a power law exactly; nothing checks that it is one."
    near = fit_isoflop(rows.params, rows.tokens, rows.flops, rows.loss, rows.budget, window=WINDOW)
    if not isinstance(near, Refused) and len(near.accepted) == len(approach.fit.accepted):
        a, b = approach.fit.laws.params.exponent, near.laws.params.exponent
        if abs(a - b) > MOVED:
            yield (
                f"isoflop: a moves from {a:.3f} to {b:.3f} when only sizes within {WINDOW:g}x of each budget's best "
                "count (fit.window); the valleys are no parabolas."
            )


def _parametric(approach: Parametric) -> Iterator[str]:
    certificate, e = approach.fit.certificate, approach.E
    if not certificate.converged:
        yield f"parametric: Newton's method stopped at a relative gradient of {certificate.gradient_norm:.1g}."
    if certificate.starts_agreeing < certificate.starts / 4:
        yield f"parametric: only {certificate.starts_agreeing} of {certificate.starts} starts agree on the optimum."
    if certificate.unidentified:
        yield f"parametric: the data do not determine {', '.join(certificate.unidentified)}."
    elif e.low is not None and e.high is not None and e.value and e.high - e.low > 0.25 * e.value:
        yield f"parametric: E is weakly determined ({e.low:.3g} to {e.high:.3g}), so far extrapolation is a guess."


def _disagreement(fit: ConventionFit) -> Iterator[str]:
    known = [(name, one.a) for name, one in fit.approaches.items() if isinstance(one, Approach)]
    for i, (name, a) in enumerate(known):
        for other, b in known[i + 1 :]:
            if None in (a.low, a.high, b.low, b.high):
                continue
            if a.low > b.high or b.low > a.high:  # type: ignore[operator]
                yield f"The intervals of a from {name} ({a.value:.3f}) and {other} ({b.value:.3f}) do not overlap."


def _conventions(fits: tuple[ConventionFit, ...]) -> Iterator[str]:
    first = fits[0]
    for fit in fits[1:]:
        for name, approach in first.approaches.items():
            other = fit.approaches[name]
            if not isinstance(approach, Approach) or not isinstance(other, Approach):
                continue
            a, b = approach.a.value, other.a.value
            if a is not None and b is not None and abs(a - b) > MOVED:
                yield (
                    f"{name}: a is {a:.3f} with N = {first.conventions.params} and {b:.3f} with "
                    f"N = {fit.conventions.params}; quote the convention with the exponent."
                )
