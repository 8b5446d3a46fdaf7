"""What a reader of a fit should know before believing it: one sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.config import Resample, Valley
from analysis.fitting.values import Refused, Rows
from analysis.ingest.tables import AXIS
from analysis.result import Approach, Backtest, ConventionFit, Envelope, Isoflop, Parametric
from analysis.text import flops_text

FEW_POINTS = 15
EPOCHS = 4  # beyond it repeated tokens no longer count as fresh ones (Muennighoff et al. 2023)
BENT = 1e-6  # of log N* by the square of log C: beyond rounding
BIASED = 0.02  # of N*
SHORT = 0.1  # of the nominal coverage
MOVED = 0.03  # of an exponent
LOST = 0.05  # of the replicates


def warnings(
    fits: tuple[ConventionFit, ...], points: pd.DataFrame, backtest: Backtest | Refused, resample: Resample
) -> tuple[str, ...]:
    """Everything worth a warning about the fits (the primary one first) and the rows they rest on."""
    return (
        *_rows(fits[0].rows, points),
        *_trunks(fits[0].rows, resample),
        *_approaches(fits[0]),
        *_conventions(fits),
        *_backtest(backtest),
    )


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
            "not count as fresh ones (Muennighoff et al. 2023); fit.epochs=4 leaves them out."
        )
    values = {str(name): points[name].astype(str).nunique() for name in points if str(name).startswith(AXIS)}
    axes = [name for name, count in values.items() if count > 1]
    if axes:
        varied = ", ".join(f"{name.removeprefix(AXIS)} ({values[name]} values)" for name in axes)
        yield f"One law is fitted to points that differ in {varied}; fit each one with group_by={','.join(axes)}."
    flags = Counter(flag for text in points["flags"] for flag in str(text).split(";") if flag)
    for flag, count in flags.items():
        yield f"{count} of {len(rows)} points carry the flag {flag}."


def _trunks(rows: Rows, resample: Resample) -> Iterator[str]:
    clusters = len(set(rows.cluster_id))
    if clusters < len(rows) and resample is not Resample.clusters:
        yield (
            f"The {len(rows)} points come from {clusters} trunks, and points of one trunk scatter together; "
            "fit.resample=clusters draws whole trunks."
        )


def _approaches(fit: ConventionFit) -> Iterator[str]:
    if fit.cost.spread > 0.1:
        yield (
            f"FLOPs per token follow a power of N within {fit.cost.spread:.0%} only; the optima of Approach 3, which "
            "rest on that power law, are no better."
        )
    for name, approach in fit.approaches.items():
        if isinstance(approach, Approach) and approach.replicates is not None:
            failed, kept = approach.replicates.failed, len(approach.replicates.values)
            if approach.a.low is None and failed:
                yield f"{name}: {failed} of {failed + kept} replicates gave no fit, too many for an interval."
    if isinstance(fit.envelope, Envelope):
        yield from _envelope(fit.envelope)
    if isinstance(fit.isoflop, Isoflop):
        yield from _isoflop(fit.isoflop)
    if isinstance(fit.parametric, Parametric):
        yield from _parametric(fit.parametric)
    yield from _disagreement(fit)


def _isoflop(approach: Isoflop) -> Iterator[str]:
    unused: dict[str, list[str]] = {}
    for valley in approach.fit.valleys:
        if valley.refused and len(valley.rows) >= 4:
            unused.setdefault(valley.refused, []).append(flops_text(valley.budget))
    for reason, budgets in unused.items():
        yield f"isoflop: not used: {', '.join(budgets)}: {reason}."
    lost = [f"{flops_text(budget)} ({share:.0%})" for budget, share in approach.lost.items() if share > LOST]
    if lost:
        yield (
            f"isoflop: some budgets have no minimum in more than {LOST:.0%} of the replicates, which then rest on the "
            f"other budgets: {', '.join(lost)}; more sizes or seeds there would help."
        )
    if len(approach.fit.accepted) == 2:
        yield "isoflop: two budgets fix a power law exactly; nothing checks that it is one."
    a = approach.fit.laws.params.exponent
    usable = len(approach.fit.accepted)
    moved = [at for at in approach.windows if at.a is not None and at.budgets == usable and abs(at.a - a) > MOVED]
    if moved:
        shown = ", ".join(f"{at.a:.3f} within {at.factor:g}x" if at.factor else f"{at.a:.3f} over all" for at in moved)
        yield (
            f"isoflop: a is {a:.3f}, but {shown} of each budget's best size (fit.window); the valleys are no "
            f"{'parabolas' if approach.fit.valley is Valley.parabola else approach.fit.valley.value}."
        )
    bias = approach.fit.bias
    if bias is not None and not approach.fit.unbiased and np.nanmax(np.abs(bias), initial=0) > BIASED:
        worst = np.expm1(bias[np.nanargmax(np.abs(bias))])
        yield (
            f"isoflop: by Approach 3's surface the valleys' minima are off by up to {worst:+.0%} in N*, however little "
            "the losses scatter; fit.unbias=true removes that."
        )


def _envelope(approach: Envelope) -> Iterator[str]:
    low, high = approach.curvature.low, approach.curvature.high
    if low is not None and high is not None and (low > BENT or high < -BENT):
        bend = f"{'up' if low > 0 else 'down'}wards in log C ({low:.3g} to {high:.3g})"
        yield f"envelope: log N* bends {bend}; no one power law holds over all of C."


def _backtest(test: Backtest | Refused) -> Iterator[str]:
    if isinstance(test, Refused):
        return
    inside, measured = test.coverage_of_losses()
    share = inside / measured
    if share < test.level - SHORT:
        yield (
            f"parametric: of the losses beyond the budgets fitted, {share:.0%} lay inside {test.level:.0%} prediction "
            "intervals; extrapolation is worse than its intervals say."
        )


def _parametric(approach: Parametric) -> Iterator[str]:
    certificate, e = approach.fit.certificate, approach.E
    if approach.form.fails:
        yield (
            f"parametric: the form of the law fails: {approach.form.where}; its intervals do not know that, those of a "
            "law that may bend do."
        )
    if not certificate.converged:
        yield f"parametric: Newton's method stopped at a relative gradient of {certificate.gradient_norm:.1g}."
    if approach.fit.above_lowest:
        yield (
            f"parametric: the law's objective lies {approach.fit.above_lowest:.2%} above the lowest of any start, "
            "where the losses do not fall with N or D."
        )
    if certificate.starts_agreeing < certificate.starts / 4:
        yield f"parametric: only {certificate.starts_agreeing} of {certificate.starts} starts agree on the optimum."
    if certificate.unidentified:
        yield f"parametric: the data do not determine {', '.join(certificate.unidentified)}."
    elif (
        certificate.converged
        and e.low is not None
        and e.high is not None
        and e.value
        and e.high - e.low > 0.25 * e.value
    ):
        yield f"parametric: E is weakly determined ({e.low:.3g} to {e.high:.3g}), so far extrapolation is a guess."


def _disagreement(fit: ConventionFit) -> Iterator[str]:
    known = [(name, one.a) for name, one in fit.approaches.items() if isinstance(one, Approach) and one.quotable]
    for i, (name, a) in enumerate(known):
        for other, b in known[i + 1 :]:
            if None in (a.low, a.high, b.low, b.high):
                continue
            if a.low > b.high or b.low > a.high:  # type: ignore[operator]
                yield f"The intervals of a from {name} ({a.value:.3f}) and {other} ({b.value:.3f}) do not overlap."


def _conventions(fits: tuple[ConventionFit, ...]) -> Iterator[str]:
    """Per approach, the counts of N and C under which a is elsewhere."""
    for name, approach in fits[0].approaches.items():
        if not isinstance(approach, Approach) or not approach.quotable or approach.a.value is None:
            continue
        moved = []
        for fit in fits[1:]:
            other = fit.approaches[name]
            a = other.a.value if isinstance(other, Approach) and other.quotable else None
            if a is not None and abs(a - approach.a.value) > MOVED:
                moved.append(f"{a:.3f} with {_counts(fit)}")
        if moved:
            here = f"{approach.a.value:.3f} with {_counts(fits[0])}"
            yield f"{name}: a is {here}, but {', '.join(moved)}; quote the convention with the exponent."


def _counts(fit: ConventionFit) -> str:
    return f"N = {fit.conventions.params} and C = {fit.conventions.flops}"
