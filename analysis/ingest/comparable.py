"""Whether rows compare at all: one corpus, one loss, one evaluation, and numbers in the units that are meant."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from analysis.ingest.tables import AXIS, POINT_COLUMNS
from trainer.errors import UserError

FEWEST_PARAMS, FEWEST_TOKENS = 1e3, 1e4
"""If no row has more, and C does not vouch for it, the column counts thousands, millions or billions."""
LOSSES = (0.05, 15.0)
"""Nats per token: the median of any sweep lies between."""
FAR, NEAR = 30.0, 2.0
"""Factors of C over 6 N D: beyond the first it is another unit, beyond the second worth a note."""
UNITS = {
    "PF-days": 8.64e19,
    "EFLOPs (1e18)": 1e18,
    "ZFLOPs (1e21)": 1e21,
    "PFLOPs (1e15)": 1e15,
    "TFLOPs (1e12)": 1e12,
    "GFLOPs (1e9)": 1e9,
}
VALUES = 20
"""A text column with more values names rows; with fewer it may name evaluations or experiments."""
A_SWEEP = 20
"""If each value of a text column has this many different N and C, each may well be an experiment of its own."""


def check_comparable(points: pd.DataFrame, params: str, flops: str) -> Iterator[str]:
    """Sentences on what is odd about usable rows.

    Parameters
    ----------
    params, flops
        The columns of N and C in use.

    Raises
    ------
    UserError
        If rows are of several corpora, loss units or evaluations, or if N, D or C are plainly in another unit.
    """
    _one_of(points, "corpus", "corpora")
    _one_of(points, "loss_unit", "loss units")
    yield from _units(points, params, flops)
    median = points["loss"].median()
    if not LOSSES[0] <= median <= LOSSES[1]:
        kind = "a perplexity or a sum over tokens" if median > 1 else "a loss of another kind"
        yield (
            f"The median loss is {median:.4g}, which is no cross-entropy in nats per token; if it is {kind}, "
            "the laws fitted here do not hold for it."
        )
    yield from _evaluations(points, params, flops)


def _units(points: pd.DataFrame, params: str, flops: str) -> Iterator[str]:
    """C against 6 N D, which tells all three units; N and D by their size where nothing else does."""
    ratio = points[flops] / (6 * points[params] * points["tokens"])
    if not 0 < float(ratio.median()) < math.inf:
        raise UserError(f"6 N D of {params} and tokens is beyond what floating-point numbers hold; check their units.")
    median, span = float(ratio.median()), f"{ratio.min():.3g} to {ratio.max():.3g}"
    far = not 1 / FAR <= median <= FAR
    if far or flops == "flops_6nd":
        for column, least in ((params, FEWEST_PARAMS), ("tokens", FEWEST_TOKENS)):
            most = points[column].max()
            if most < least:
                raise UserError(
                    f"{column} is at most {most:.4g}, so it seems to count millions or billions; "
                    "multiply it out in the source, as plain counts are needed."
                )
    if far:
        unit, size = min(UNITS.items(), key=lambda item: abs(math.log(median * item[1])))
        guess = f"{unit}: multiply it by {size:.4g} in the source" if 1 / FAR < median * size < FAR else "another unit"
        raise UserError(
            f"{flops} is {median:.3g} times 6 N D ({span}), so it seems to be in {guess}, or leave C to "
            "fit.flops=sixnd."
        )
    if flops == "flops_logged" and not 1 / NEAR <= median <= NEAR:
        yield f"C as the source gives it is {median:.3g} times 6 N D (median; {span})."


def _evaluations(points: pd.DataFrame, params: str, flops: str) -> Iterator[str]:
    """Text columns that tell several evaluations, or several experiments, in one table.

    In those of evaluations rows of one N and C differ; of experiments each value has points enough for a fit.
    """
    differ: dict[str, str] = {}
    for name in points.columns.difference(list(POINT_COLUMNS), sort=False):
        if str(name).startswith(AXIS):  # a sweep's own axes have a warning of their own
            continue
        if points[name].dtype != object and not isinstance(points[name].dtype, pd.StringDtype | pd.CategoricalDtype):
            continue
        values = points[name].dropna().astype(object).map(str)
        count = values.nunique()
        if not 2 <= count <= VALUES:
            continue
        each = values.groupby([points[params], points[flops]]).nunique()
        shown = ", ".join(sorted(values.unique())[:4]) + (", ..." if count > 4 else "")
        if (each == count).all() and len(each) > 1:
            raise UserError(
                f"every N and C has rows of all {count} values of {name} ({shown}), whose losses do not compare; "
                f"choose one with where=\"{name} == '{values.iloc[0]}'\" or fit each one with group_by={name}."
            )
        places = points.loc[values.index, [params, flops]].assign(kind=values).drop_duplicates()["kind"].value_counts()
        if (each > 1).mean() > 0.5 or places.min() >= A_SWEEP:
            differ[name] = shown
    if differ:
        told = ", ".join(f"{name} ({shown})" for name, shown in differ.items())
        yield (
            f"One law is fitted to rows that differ in {told}; if their losses do not compare, "
            f"fit each kind with group_by={','.join(differ)}."
        )


def _one_of(points: pd.DataFrame, column: str, plural: str) -> None:
    values = sorted(points[column].unique(), key=lambda value: value == "")  # the blank is none of the others
    if len(values) > 1:
        shown = ", ".join(value or "blank" for value in values[:4]) + (", ..." if len(values) > 4 else "")
        raise UserError(
            f"the rows come from {len(values)} {plural} ({shown}), whose losses do not compare; "
            f"choose one with where=\"{column} == '{values[0]}'\" or fit each one with group_by={column}."
        )
