"""Which rows a fit may use, and why each other row may not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from analysis.ingest.comparable import check_comparable
from analysis.ingest.defects import defects
from analysis.ingest.tables import Exclusion, Tables
from trainer.errors import UserError
from trainer.shape import ParamCount

PARAMS = {ParamCount.total: "params_total", ParamCount.non_embedding: "params_non_embedding"}
FLOPS = {"matmul": "flops_matmul", "logged": "flops_logged", "6nd": "flops_6nd", "chinchilla": "flops_chinchilla"}
"""C conventions, in the order that ``auto`` prefers them."""
MOST = 0.8
"""A column that this share of the usable rows fill is the one meant, and its blanks are left out and listed."""
SPELLINGS = {"sixnd": "6nd"}
"""How config groups write a convention, which read closed choices by name."""


def keep_where(tables: Tables, where: str | None) -> Tables:
    """The rows that the pandas query ``where`` keeps; the others are listed.

    Raises
    ------
    UserError
        If the query is wrong.
    """
    if not where:
        return tables
    columns = ", ".join(map(str, tables.points.columns))
    try:
        chosen = tables.points.eval(where, engine="python")
    except Exception as error:  # pandas lets the parser's and the evaluator's errors through, of any type
        reason = " ".join(str(error).split())
        raise UserError(f"where={where!r} is no query of the columns {columns}: {reason}.") from None
    if not (isinstance(chosen, pd.Series) and pd.api.types.is_bool_dtype(chosen) and len(chosen) == len(tables.points)):
        raise UserError(f"where={where!r} is no query of the columns {columns}: it is true or false of no row.")
    kept = tables.points.index[chosen.fillna(False).to_numpy(dtype=bool)]
    dropped = tables.points.index.difference(kept, sort=False)
    reason = f"where={where} leaves it out"
    excluded = tuple(Exclusion(row=str(tables.points.loc[i, "point_id"]), reason=reason) for i in dropped)
    return replace(tables, points=tables.points.loc[kept], excluded=tables.excluded + excluded)


def split(tables: Tables, group_by: Sequence[str] = ()) -> Iterator[tuple[dict[str, str], Tables]]:
    """One (columns and values, tables) per group; a single one, unnamed, without ``group_by``.

    Parameters
    ----------
    group_by
        Columns of ``points``.

    Raises
    ------
    UserError
        If a column does not exist.
    """
    if not group_by:
        yield {}, tables
        return
    names = list(group_by)
    missing = [name for name in names if name not in tables.points]
    if missing:
        raise UserError(
            f"group_by={','.join(names)}: there is no column {', '.join(missing)}; "
            f"the columns are {', '.join(map(str, tables.points.columns))}."
        )
    for values, points in tables.points.groupby(names, sort=True, dropna=False):
        group = {name: f"{value}" for name, value in zip(names, values, strict=True)}
        curves = tables.curves[tables.curves["run_id"].isin(points["run_id"])]
        yield group, replace(tables, points=points, curves=curves, excluded=tables.excluded)


def clean(tables: Tables, params: ParamCount, flops: str) -> Tables:
    """Rows that a fit may use: finished, positive, of a sound run, seen once; every other is listed with its reason.

    Parameters
    ----------
    params, flops
        The conventions whose columns must hold a number: flops is a key of ``FLOPS``.

    Raises
    ------
    UserError
        If the rows that remain are of several corpora, loss units or evaluations, or plainly counted in another unit.
    """
    points = tables.points
    n, c = PARAMS[params], FLOPS[flops]
    reasons = pd.Series("", index=points.index, dtype=object)
    for reason, bad in defects(points, tables.curves, n, c):
        reasons = reasons.mask((reasons == "") & bad, reason)
    good = points[reasons == ""]
    named = good["run_id"].mask(good["run_id"].str.fullmatch(r"row \d+"), "")  # else every row is a run of its own
    twin = good.assign(run_id=named).duplicated(subset=[n, "tokens", c, "loss", "seed", "run_id"], keep="first")
    reasons[twin[twin].index] = "a duplicate: an earlier row has the same N, D, C and loss"
    excluded = tuple(
        Exclusion(row=str(name), reason=reason)
        for name, reason in zip(points["point_id"], reasons, strict=True)
        if reason
    )
    good = good[~twin]
    notes = () if good.empty else (*_unused(usable_rows(points), n, c), *check_comparable(good, n, c))
    return replace(tables, points=good, excluded=tables.excluded + excluded, notes=tables.notes + notes)


def keep_fresh(tables: Tables, epochs: float | None) -> Tables:
    """The rows that see their data at most ``epochs`` times; the others are listed. None keeps all."""
    if epochs is None:
        return tables
    times = tables.points["tokens"] / tables.points["unique_tokens"]
    stale = times > epochs * (1 + 1e-9)
    excluded = tuple(
        Exclusion(row=str(name), reason=f"it sees its data more than {epochs:g} times (fit.epochs=null keeps it)")
        for name in tables.points.loc[stale, "point_id"]
    )
    return replace(tables, points=tables.points[~stale], excluded=tables.excluded + excluded)


def usable_rows(points: pd.DataFrame) -> pd.DataFrame:
    """The finished rows with a loss, by which conventions are chosen; all where there are none."""
    good = points["verdict"].isin(["", "done"]) & (points["loss"] > 0)
    return points[good] if good.any() else points


def _unused(points: pd.DataFrame, params: str, flops: str) -> Iterator[str]:
    """Columns that would be preferred but for their blanks, in sentences."""
    for columns, used in ((list(PARAMS.values()), params), (list(FLOPS.values()), flops)):
        for column in columns[: columns.index(used)]:
            given = int((points[column] > 0).sum())
            if 0 < given < MOST * len(points):
                yield f"{column} is given in {given} of {len(points)} usable rows only, so {used} is used instead."


def params_conventions(points: pd.DataFrame, first: ParamCount) -> list[ParamCount]:
    """The N conventions that nearly every row carries (``first`` foremost), else those that any row carries."""
    order = sorted(PARAMS, key=lambda count: count != first)
    full = [count for count in order if (points[PARAMS[count]] > 0).mean() >= MOST]
    return full or [count for count in order if (points[PARAMS[count]] > 0).any()] or [first]


def flops_convention(points: pd.DataFrame, wanted: str) -> str:
    """A key of ``FLOPS``: ``wanted``, or for ``auto`` the first that nearly all rows have, else that most have.

    Raises
    ------
    UserError
        If ``wanted`` is none of them.
    """
    if wanted == "auto":
        filled = {name: int((points[column] > 0).sum()) for name, column in FLOPS.items()}
        nearly = (name for name, count in filled.items() if len(points) and count >= MOST * len(points))
        return next(nearly, max(filled, key=lambda name: filled[name]))
    wanted = SPELLINGS.get(wanted, wanted)
    if wanted not in FLOPS:
        raise UserError(f"fit.flops={wanted} is not a way to count FLOPs; choose auto, {', '.join(FLOPS)}.")
    return wanted
