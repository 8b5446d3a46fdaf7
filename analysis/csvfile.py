"""Points, or whole loss curves, from a CSV file whose columns may have any names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.result import Exclusion
from analysis.tables import CURVE_COLUMNS, POINT_COLUMNS, Tables, complete_curves, complete_points, numbers
from trainer.errors import UserError

ALIASES = {"params": "params_total", "flops": "flops_logged"}
"""What a file calls plainly params and flops: all parameters, and C as its source counts it."""
ROW = " row"  # a name that no file's column has, as theirs are stripped
NAMES = (*ALIASES, *POINT_COLUMNS, "step", "progress", "train_loss", "val_loss")


def read_csv(path: Path, columns: Mapping[str, str] | None = None) -> Tables:
    """Read a CSV file of points, or of curves.

    A file that has ``run_id`` and ``step`` (or ``progress``), with several rows to a run, holds curves: the last row of
    each run is its point. Columns of our names are taken as they are; further ones are kept, for ``where=`` and
    ``group_by=``.

    Parameters
    ----------
    columns
        Our column -> the file's, for those of other names: ``{"loss": "val", "params_non_embedding": "n"}``.

    Raises
    ------
    UserError
        If the file cannot be read, or parameters, tokens or loss are not found in it.
    """
    raw = _read(path)
    table = _renamed(raw, path, dict(columns or {}))
    notes = _flops(table, path)
    if "params_total" in table and not {"params_total", "params_non_embedding"} & {*raw.columns, *(columns or {})}:
        notes.append("N is taken for all parameters; map columns.params_non_embedding instead if it leaves some out.")
    table[ROW] = [f"row {i}" for i in range(1, len(table) + 1)]
    if not _is_curves(table):
        return _points(table, str(path), tuple(notes))
    return _curves(table, str(path), notes)


def _read(path: Path) -> pd.DataFrame:
    if path.is_dir():
        raise UserError(f"path={path} is a folder, not a CSV file; name the file, or use source=runs for run folders.")
    try:
        raw = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"path={path} does not exist; name a CSV file with one row per point.") from None
    except (OSError, ValueError) as error:  # ValueError holds pandas' parser errors and undecodable bytes
        reason = " ".join(str(error).split())
        raise UserError(f"path={path} cannot be read as CSV ({reason}); give a text file with a header row.") from None
    for separator in ";\t|":
        if raw.shape[1] == 1 and separator in str(raw.columns[0]):
            raise UserError(f"path={path} separates its columns with {separator!r}; write it with commas.")
    if raw.empty:
        raise UserError(f"path={path} has a header but no rows; give a CSV file with one row per point.")
    raw.columns = [str(name).strip() for name in raw.columns]
    return raw


def _renamed(raw: pd.DataFrame, path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """The file's columns under our names."""
    for ours, theirs in columns.items():
        if ours not in NAMES:
            raise UserError(f"columns.{ours}={theirs}: there is no column {ours} here; choose of {', '.join(NAMES)}.")
        if theirs not in raw:
            raise UserError(f"columns.{ours}={theirs}: {path} has no such column, only {', '.join(raw.columns)}.")
    taken = set(columns.values())  # a column mapped to one name is not taken for another besides
    wanted = {name: name for name in NAMES if name in raw and name not in taken} | columns
    if "loss" not in wanted and "val_loss" in wanted:
        wanted["loss"] = wanted["val_loss"]
    has_params = {"params", "params_total", "params_non_embedding"} & set(wanted)
    missing = [
        name for name in ("params", "tokens", "loss") if not (name in wanted or (name == "params" and has_params))
    ]
    if missing:
        raise UserError(
            f"path={path} has no column {', '.join(missing)}, only {', '.join(raw.columns)}; "
            f"say which one it is with {' '.join(f'columns.{name}=<its column>' for name in missing)}."
        )
    found = {ALIASES.get(ours, ours): raw[theirs] for ours, theirs in wanted.items()}
    if "params" in columns and "params_total" not in columns:
        found["params_total"] = raw[columns["params"]]
    further = {name: raw[name] for name in raw.columns if name not in found and name not in ALIASES}
    table = pd.DataFrame(found | further).copy()
    for name in [str(name) for name in table if POINT_COLUMNS.get(str(name), CURVE_COLUMNS.get(str(name))) == "number"]:
        table[name] = numbers(table[name])
    return table


def _flops(table: pd.DataFrame, path: Path) -> list[str]:
    """Count flops_6nd, which needs no column; what was assumed, in sentences."""
    name = "params_total" if "params_total" in table else "params_non_embedding"
    given = table.get("flops_6nd")
    table["flops_6nd"] = 6 * table[name] * table["tokens"]
    if given is not None:
        off = int((np.abs(given / table["flops_6nd"] - 1) > 0.01).sum())
        return [f"{off} rows of {path} have a flops_6nd that is not 6 N D; it was counted anew."] if off else []
    if any(
        table[column].notna().any()
        for column in ("flops_logged", "flops_matmul", "flops_chinchilla")
        if column in table
    ):
        return []
    return [f"The file gives no FLOPs, so C = 6 N D with N = {name}."]


def _is_curves(table: pd.DataFrame) -> bool:
    clock = "step" in table or "progress" in table
    return "run_id" in table and clock and bool(table["run_id"].duplicated().any())


def _points(table: pd.DataFrame, source: str, notes: tuple[str, ...], curves: pd.DataFrame | None = None) -> Tables:
    points = table.copy()
    row = points.pop(ROW)
    if "point_id" not in points:
        points["point_id"] = row
    if "run_id" not in points:
        points["run_id"] = points["point_id"]
    if "cluster_id" not in points:
        points["cluster_id"] = points["run_id"]
    points = complete_points(points.reset_index(drop=True))
    empty = pd.DataFrame({"run_id": []}) if curves is None else curves
    return Tables(source=source, points=points, curves=complete_curves(empty), notes=notes)


def _curves(table: pd.DataFrame, source: str, notes: list[str]) -> Tables:
    """Curves, and the last row of each run as its point; a run without a usable last row is cleaned out later."""
    good = np.isfinite(table["tokens"]) & table["run_id"].notna()
    lost = tuple(
        Exclusion(row=str(row), reason="run_id or tokens is missing or not a number") for row in table.loc[~good, ROW]
    )
    table = table[good].sort_values(["run_id", "tokens"], kind="stable").reset_index(drop=True)
    last = table.groupby("run_id")["tokens"].transform("max")
    if "progress" not in table:
        table["progress"] = table["tokens"] / last
        notes.append("The file has no progress column, so each run's last row is taken for the end of its schedule.")
    flops = next((name for name in ("flops_logged", "flops_matmul", "flops_6nd") if name in table), "flops_6nd")
    measured = table.assign(flops=table[flops])
    if "val_loss" not in measured and "train_loss" not in measured:
        measured["val_loss"] = measured["loss"]
    points = table.groupby("run_id", sort=False).tail(1).assign(point_id=lambda ends: ends["run_id"].map(str))
    unfinished = points["progress"] < 1 - 1e-6
    points["verdict"] = np.where(unfinished, "unfinished: its last row is before the end of its schedule", "done")
    names = [name for name in CURVE_COLUMNS if name in measured]
    curves = measured[names].assign(run_id=measured["run_id"].map(str))
    found = _points(points, source, tuple(notes), curves)
    return Tables(source=source, points=found.points, curves=found.curves, excluded=lost, notes=found.notes)
