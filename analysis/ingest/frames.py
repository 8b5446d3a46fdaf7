"""Points, or whole loss curves, from data frames whose columns may have any names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import Fill, chosen
from analysis.ingest.fill import FLOPS, SIZES, filled
from analysis.ingest.tables import (
    CURVE_COLUMNS,
    NUMBER,
    POINT_COLUMNS,
    UNREADABLE,
    Exclusion,
    Tables,
    complete_curves,
    complete_points,
    numbers,
)
from trainer.errors import UserError

ALIASES = {"params": "params_total", "flops": "flops_logged"}
"""What a source calls plainly params and flops: all parameters, and C as its source counts it."""
COUNTS = ("params", "tokens", "unique_tokens", "flops", "horizon", "budget", "step", "batch")
"""What the names of counts begin with."""
GROUPED = re.compile(r"\s*\d{1,3}(,\d{3})+(\.\d*)?\s*")
BLANKS = ("", "nan", "na", "n/a", "none", "null", "-")
ROW = " row"  # a name that no column has, as theirs are stripped
NAMES = (*ALIASES, *POINT_COLUMNS, "step", "progress", "train_loss", "val_loss")
UNFINISHED = "unfinished: its last row is before the end of its schedule"
NEARLY = 0.95
"""A run whose last row is at this share of its schedule has finished; loggers often miss the very last update."""
MOST_PROGRESS = 1.01  # a last batch may overshoot
ALIKE = 0.01
"""Relative difference of one run's sizes, or of one loss in two columns, that rounding explains."""
COPIED = 0.5
"""If more of the curves' rows than this repeat a step, they are several evaluations, not a run that was resumed."""
LISTED = 40
"""Columns that an error names, at most."""


def read_frame(
    points: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    fill: Fill | str = Fill.none,
    source: str = "the data frame",
) -> Tables:
    """Bring data frames with columns of any names to the two tables.

    Columns of this package's names are taken as they are; further ones are kept, for ``where=`` and ``group_by=``.
    Units: N in parameters, D in tokens, C in FLOPs, losses in one unit throughout (``loss_unit``, nats per token unless
    that column says otherwise).

    Parameters
    ----------
    points
        One row per point: ``params`` (or ``params_total``, ``params_non_embedding``), ``tokens``, ``loss`` and, if it
        is known, ``flops``. A frame that has ``run_id`` and ``step`` (or ``progress``), with several rows to a run,
        holds curves, and the last row of each run is its point.
    curves
        Loss curves of the points' runs: ``run_id``, ``tokens`` and ``val_loss``, ``train_loss`` or ``loss``; with
        ``progress`` (share of the run's schedule, in (0, 1]), or a ``horizon`` of the run, runs that stopped early are
        told from finished ones.
    columns
        Our column -> the frames', for those of other names: ``{"loss": "val", "params_non_embedding": "n"}``.
    fill
        What is taken from C = 6 N D where it is missing, a :class:`~analysis.config.Fill` or its name; its column may
        then be absent.
    source
        What the rows are called, in the result and in messages.

    Returns
    -------
    Tables
        For :func:`~analysis.fit.fit_tables`. Rows stay as they are, unusable ones too: the fit leaves them out and
        lists them. What was assumed (of C, of schedules) is in its ``notes``.

    Raises
    ------
    UserError
        If a frame has no rows or two columns of one name, parameters, tokens or loss are not found, ``columns`` names
        what is not there, ``fill`` is unknown, the rows of a run are no curve, or its losses are told twice.
    """
    fill = chosen(Fill, fill, "fit.fill")
    columns = dict(columns or {})
    raw = _named(points, source)
    steps = None if curves is None or curves.empty else _named(curves, source)
    _check(columns, [*raw.columns, *(steps.columns if steps is not None else ())], source)
    table = _ours(raw, columns)
    _check_needed(table, raw, fill, source)
    table, notes = filled(table, fill)
    notes += _flops(table, source)
    if "params_total" in table and not {"params_total", "params_non_embedding"} & {*raw.columns, *columns}:
        notes.append("N is taken for all parameters; map columns.params_non_embedding instead if it leaves some out.")
    table[ROW] = [f"row {i}" for i in range(1, len(table) + 1)]
    if steps is not None:
        origin = columns.get("loss", "loss" if "loss" in raw else "val_loss")
        return _with_curves(table, _one_loss(_ours(steps, columns), columns, source, origin), source, notes)
    if _is_curves(table):
        return _from_curves(_one_loss(table, columns, source, "loss"), source, notes)
    return Tables(source=source, points=_points(table), curves=complete_curves(_NO_CURVES), notes=tuple(notes))


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping on one level, its keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in record.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


_NO_CURVES = pd.DataFrame({"run_id": []})


def _named(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The frame with its columns' names as stripped texts."""
    raw = frame.reset_index(drop=True)
    raw.columns = pd.Index([str(name).strip() for name in raw.columns], dtype=object)
    if raw.empty:
        raise UserError(f"{source} has no rows; give one row per point.")
    if not raw.columns.is_unique:
        twice = raw.columns[raw.columns.duplicated()][0]
        raise UserError(f"{source} has two columns named {twice}; rename one.")
    return raw


def _check(columns: Mapping[str, str], there: Iterable[str], source: str) -> None:
    """Refuse a mapping of, or to, what does not exist."""
    known = list(dict.fromkeys(there))
    for ours, theirs in columns.items():
        if ours not in NAMES:
            raise UserError(f"columns.{ours}={theirs}: there is no column {ours} here; choose of {', '.join(NAMES)}.")
        if theirs not in known:
            raise UserError(f"columns.{ours}={theirs}: {source} has no such column, only {_listed(known)}.")


def _check_needed(table: pd.DataFrame, raw: pd.DataFrame, fill: Fill, source: str) -> None:
    """Refuse a table that lacks N, D, C or L, whichever ``fill`` cannot do without."""
    forms = {"params": SIZES, "tokens": ("tokens",), "loss": ("loss",), "flops": FLOPS}
    there = {name for name, columns in forms.items() if any(column in table for column in columns)}
    needed = ["params", "tokens", "loss"]
    missing = [name for name in needed if name not in there]
    if missing == [fill.value]:
        missing = [] if "flops" in there else ["flops"]
    if not missing:
        return
    instead = ""
    if "flops" in there and missing in (["params"], ["tokens"]):
        instead = f", or take it from C = 6 N D with fit.fill={missing[0]}"
    raise UserError(
        f"{source} has no column {', '.join(missing)}, only {_listed(raw.columns)}; "
        f"say which one it is with {' '.join(f'columns.{name}=<its column>' for name in missing)}{instead}."
    )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f", ... ({len(shown) - LISTED} more)" if len(shown) > LISTED else ""
    return ", ".join(shown[:LISTED]) + more


def _ours(raw: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The frame's columns under our names, numbers as numbers, further columns at the right."""
    taken = set(columns.values())  # a column mapped to one name is not taken for another besides
    wanted = {name: name for name in NAMES if name in raw and name not in taken}
    wanted |= {ours: theirs for ours, theirs in columns.items() if theirs in raw}
    if "loss" not in wanted and "val_loss" in wanted:
        wanted["loss"] = wanted["val_loss"]
    found = {ALIASES.get(ours, ours): raw[theirs] for ours, theirs in wanted.items()}
    if "params" in columns and "params_total" not in columns and columns["params"] in raw:
        found["params_total"] = raw[columns["params"]]
    further = {name: raw[name] for name in raw.columns if name not in found and name not in ALIASES}
    table = pd.DataFrame(found | further).copy()
    if "verdict" in found:  # W&B says finished
        folded = table["verdict"].map(lambda value: str(value).strip().casefold())
        table["verdict"] = table["verdict"].mask(folded.isin(["done", "finished"]), "done")
    for name in found:
        if NUMBER in (POINT_COLUMNS.get(name), CURVE_COLUMNS.get(name)):
            given = _ungrouped(table[name]) if name.startswith(COUNTS) else table[name]
            table[name] = numbers(given)
            text = given[table[name].isna() & given.notna()].astype(object).map(str).astype(object)
            text = text[~text.str.strip().str.lower().isin(BLANKS)]
            if len(text) and name in (*SIZES, "tokens", "loss"):
                verdict = table["verdict"] if "verdict" in table else pd.Series("", index=table.index, dtype=object)
                told = text.map(lambda value, name=name: f"{name}={value!r} {UNREADABLE}")
                blank = verdict.fillna("").isin(["", "done"])
                table["verdict"] = verdict.astype(object).mask(blank, told.reindex(table.index).fillna(verdict))
            if name == "progress" and (wrong := text.tolist()):
                raise UserError(
                    f"progress={wrong[0]} is not a number; write it as a share of the schedule (50 % is 0.5)."
                )
        elif name.endswith("_id") and table[name].dtype.kind == "f":  # one blank makes floats of integers
            table[name] = pd.Series(list(map(_whole, table[name])), index=table.index, dtype=object)
    return table


def _ungrouped(column: pd.Series) -> pd.Series:
    """Counts without the commas that some write at thousands: "1,234,567"."""
    if column.dtype.kind in "iufb":
        return column
    return column.astype(object).map(lambda cell: cell.replace(",", "") if GROUPED.fullmatch(str(cell)) else cell)


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _flops(table: pd.DataFrame, source: str) -> list[str]:
    """Count flops_6nd, which needs no column; what was assumed, in sentences."""
    name = "params_total" if "params_total" in table else "params_non_embedding"
    given = table.get("flops_6nd")
    table["flops_6nd"] = 6 * table[name] * table["tokens"]
    if given is not None:
        off = int((np.abs(given / table["flops_6nd"] - 1) > 0.01).sum())
        return [f"{off} rows of {source} have a flops_6nd that is not 6 N D; it was counted anew."] if off else []
    if any(table[column].notna().any() for column in FLOPS if column in table and column != "flops_6nd"):
        return []
    return [f"{source} gives no FLOPs, so C = 6 N D with N = {name}."]


def _points(table: pd.DataFrame) -> pd.DataFrame:
    points = table.copy()
    row = points.pop(ROW)
    if "point_id" not in points:
        points["point_id"] = row
    if "run_id" not in points:
        points["run_id"] = points["point_id"]
    if "cluster_id" not in points:
        points["cluster_id"] = points["run_id"]
    return complete_points(points.reset_index(drop=True))


def _is_curves(table: pd.DataFrame) -> bool:
    clock = "step" in table or "progress" in table
    return "run_id" in table and clock and bool(table["run_id"].duplicated().any())


def _check_curves(table: pd.DataFrame, source: str, most: float = 0.0) -> None:
    """Refuse runs of several sizes, or with several losses at one step in more than the share ``most`` of the rows."""
    by_run = table.groupby("run_id", sort=False, observed=True)
    for size in (name for name in SIZES if name in table):
        low, high = by_run[size].min(), by_run[size].max()
        several = low.index[high > low * (1 + ALIKE)]
        if len(several):
            run = several[0]
            raise UserError(
                f"in {source} the rows of run_id={run}, read as one curve, are of several {size} ({low[run]:.4g} to "
                f"{high[run]:.4g}); give each run a run_id of its own, or rename run_id if each row is a point."
            )
    clock = next(name for name in ("step", "progress", "tokens") if name in table)
    losses = [name for name in ("loss", "val_loss") if name in table] or ["train_loss"]
    known = table[table[losses].notna().any(axis=1) & table[clock].notna()]
    twice = known.duplicated(subset=["run_id", clock], keep=False)
    if len(known) and twice.mean() > most:
        first = known[twice].iloc[0]
        raise UserError(
            f"in {source} several rows of run_id={first['run_id']}, read as one curve, have a loss at "
            f"{clock}={first[clock]:g}; keep one row per run and {clock} (of several evaluations filter the file to "
            "one first, as where= and group_by= choose among points), or rename run_id if each row is a point."
        )


def _one_loss(table: pd.DataFrame, columns: Mapping[str, str], source: str, origin: str) -> pd.DataFrame:
    """The table of curves whose ``val_loss`` is what the points' losses are, from the column ``origin``."""
    if "loss" not in table or "run_id" not in table:
        return table
    if "val_loss" in table and "loss" not in columns and origin != "val_loss":
        loss, val_loss = (table.groupby("run_id", observed=True)[name].last() for name in ("loss", "val_loss"))
        differ = (loss / val_loss - 1).abs() > 1e-6
        if differ.any():
            run: Any = differ.idxmax()
            raise UserError(
                f"{source} has the columns loss and val_loss, which differ (run_id={run} ends at {loss[run]:.4g} and "
                f"{val_loss[run]:.4g}); say which one to fit with columns.loss=val_loss or columns.loss=loss."
            )
    if "val_loss" in table and (origin == "val_loss" and "loss" not in columns):
        return table
    return table.assign(val_loss=table["loss"])


def _from_curves(table: pd.DataFrame, source: str, notes: list[str]) -> Tables:
    """Curves, and the last row of each run as its point; a run without a usable last row is cleaned out later."""
    good = np.isfinite(table["tokens"]) & table["run_id"].notna()
    lost = tuple(
        Exclusion(row=str(row), reason="run_id or tokens is missing or not a number") for row in table.loc[~good, ROW]
    )
    _check_curves(table[good], source)
    told = "progress" in table  # a horizon is held against the tokens when rows are cleaned
    curves, short = _progressed(table[good], notes)
    last = _last_losses(curves)
    notes.append(f"{len(curves)} rows are taken as the curves of {len(last)} runs.")
    ends = _ended(last.assign(point_id=last["run_id"].map(str)), short if told else set())
    return Tables(source=source, points=_points(ends), curves=_curves(curves), excluded=lost, notes=tuple(notes))


def _last_losses(curves: pd.DataFrame) -> pd.DataFrame:
    """Each run's last row; if that has no loss the last that has one, with a verdict if it is far from the end."""
    by_run = curves.groupby("run_id", sort=False, observed=True)
    known = curves["loss"].notna()
    some = known.groupby(curves["run_id"], observed=True).transform("any")
    last = curves[known | ~some].groupby("run_id", sort=False, observed=True).tail(1)
    share = last["tokens"] / by_run["tokens"].transform("max")[last.index]
    early = last["loss"].notna() & (share < NEARLY * (1 - 1e-9))
    if not early.any():
        return last
    verdict = last["verdict"] if "verdict" in last else pd.Series("", index=last.index, dtype=object)
    told = share.map(lambda at: f"unfinished: its last loss is at {at:.0%} of its tokens, and later rows have none")
    blank = verdict.fillna("").isin(["", "done"])
    return last.assign(verdict=verdict.astype(object).mask(early & blank, told))


def _with_curves(table: pd.DataFrame, steps: pd.DataFrame, source: str, notes: list[str]) -> Tables:
    """Points, and curves that came apart from them."""
    missing = [name for name in ("run_id", "tokens") if name not in steps]
    missing += [] if {"val_loss", "train_loss", "loss"} & {*steps} else ["loss"]
    missing += [] if "run_id" in table else ["run_id (of the points)"]
    if missing:
        raise UserError(f"the curves of {source} have no column {', '.join(missing)}; rename theirs, or map columns.")
    steps = steps[np.isfinite(steps["tokens"]) & steps["run_id"].notna()]
    table, steps = (part.assign(run_id=part["run_id"].map(str, na_action="ignore")) for part in (table, steps))
    _check_curves(steps, f"the curves of {source}", COPIED)
    if len(steps) and not steps["run_id"].isin(table["run_id"]).any():
        notes.append(
            f"The curves are of no run of the points (run_id={steps['run_id'].iloc[0]} beside "
            f"{table['run_id'].iloc[0]}), so Approach 1 has none; give both the same run_id."
        )
    for name in ("horizon", "tokens"):  # where nothing tells the end of the schedule, the point itself does
        if name in table and "horizon" not in steps:
            runs = table.drop_duplicates("run_id").set_index("run_id")
            steps = steps.assign(horizon=steps["run_id"].map(runs[name]))
    curves, short = _progressed(steps, notes)
    return Tables(source=source, points=_points(_ended(table, short)), curves=_curves(curves), notes=tuple(notes))


def _progressed(table: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, set[Any]]:
    """Rows by run and tokens with ``progress``, and the runs whose last row is short of the end of their schedule."""
    table = table.sort_values(["run_id", "tokens"], kind="stable").reset_index(drop=True)
    if "progress" not in table:
        last = table.groupby("run_id", observed=True)["tokens"].transform("max")
        horizon = table["horizon"] if "horizon" in table else pd.Series(np.nan, index=table.index)
        if not (horizon > 0).all():
            notes.append("There is no progress column, so each run's last row is taken for the end of its schedule.")
        table = table.assign(progress=table["tokens"] / horizon.where(horizon > 0).fillna(last))
    out = table["progress"][~table["progress"].between(0, MOST_PROGRESS) & table["progress"].notna()]
    if len(out):
        raise UserError(
            f"progress={out.iloc[0]:g} is no share of a schedule; it must lie between 0 and 1 (50 % is 0.5)."
        )
    ends = table.groupby("run_id", observed=True)["progress"].max()
    return table, set(ends.index[ends < NEARLY])


def _ended(points: pd.DataFrame, unfinished: set[Any]) -> pd.DataFrame:
    """Points with the verdict that their curves allow, unless they have another."""
    given = points["verdict"].fillna("").map(str) if "verdict" in points else pd.Series("", index=points.index)
    finished = given.isin(["", "done"])
    short = points["run_id"].isin(unfinished)
    return points.assign(verdict=given.mask(finished, "done").mask(finished & short, UNFINISHED))


def _curves(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a curve."""
    flops = next((name for name in ("flops_logged", "flops_matmul", "flops_6nd") if name in table), None)
    if flops is not None:
        table = table.assign(flops=table[flops])
    return complete_curves(table[[name for name in CURVE_COLUMNS if name in table]])
