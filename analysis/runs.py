"""Points and curves from run folders: only reads, and tolerates runs that are still being written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.result import Exclusion
from analysis.tables import AXIS, CURVE_COLUMNS, POINT_COLUMNS, Tables, complete_curves, complete_points
from trainer.errors import UserError
from trainer.recipe import check_schema
from trainer.runfolder import RunConfig, RunFolder, final_record


def read_runs(root: Path, sweeps: Sequence[str]) -> Tables:
    """Read every run folder of the named sweeps.

    A run without final record is listed as unfinished, a damaged folder as damaged; neither stops the others.

    Raises
    ------
    UserError
        If a sweep does not exist under ``root``, or holds no run.
    """
    points: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    excluded: list[Exclusion] = []
    for sweep in sweeps:
        folders = _folders(root, sweep)
        for folder in folders:
            found, curve, left_out = read_run(folder)
            points += found
            excluded += left_out
            if found and not curve.empty:
                curves.append(curve)
    table = pd.DataFrame(points) if points else pd.DataFrame({"run_id": []})
    steps = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame({"run_id": []})
    return Tables(
        source=", ".join(str(root / sweep) for sweep in sweeps),
        points=complete_points(table),
        curves=complete_curves(steps),
        excluded=tuple(excluded),
    )


def read_run(folder: RunFolder) -> tuple[list[dict[str, Any]], pd.DataFrame, list[Exclusion]]:
    """One run's points (rows of the points schema), its curve, and the points it has not reached."""
    try:
        config = folder.read_config()
        records = folder.points()
        for record in records.values():
            check_schema(record.get("schema"), str(folder.path / "points.jsonl"))
    except UserError as error:
        return [], pd.DataFrame({"run_id": []}), [Exclusion(row=folder.run_id, reason=str(error))]
    missing = [
        Exclusion(row=point, reason="unfinished: no final record")
        for point in config.recipe.point_ids
        if point not in records
    ]
    points = [_point(_completed(config, record)) for record in records.values()]
    return points, _curve(folder, config) if points else pd.DataFrame({"run_id": []}), missing


def _folders(root: Path, sweep: str) -> list[RunFolder]:
    path = root / sweep
    if not sweep or not path.is_dir():
        there = sorted(each.parent.parent.name for each in root.glob("*/*/config.yaml"))
        known = ", ".join(dict.fromkeys(there)) or "no sweep at all"
        raise UserError(f"sweep.name={sweep!r}: there is no folder {path}; root={root} holds {known}.")
    folders = sorted(each.parent for each in path.glob("*/config.yaml"))
    if not folders:
        raise UserError(f"{path} holds no run yet; submit the sweep first, or name another with sweep=.")
    return [RunFolder(each) for each in folders]


def _completed(config: RunConfig, record: dict[str, Any]) -> dict[str, Any]:
    """A final record with what follows from the config, which other people's trainers need not write."""
    point, tokens, verdict = record["point_id"], record["tokens"], record["verdict"]
    return final_record(config, point_id=point, tokens=tokens, loss=record.get("loss"), verdict=verdict) | record


def _point(record: dict[str, Any]) -> dict[str, Any]:
    """A final record as a row: the axes become columns of their own, flags one text."""
    row = {name: record[name] for name in POINT_COLUMNS if name in record}
    row["flags"] = ";".join(map(str, record.get("flags") or ()))
    axes = record.get("axes")
    return row | {f"{AXIS}{key}": _scalar(value) for key, value in (axes if isinstance(axes, dict) else {}).items()}


def _scalar(value: Any) -> Any:
    """A list or a mapping as text, by which rows can be grouped."""
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def _curve(folder: RunFolder, config: RunConfig) -> pd.DataFrame:
    rows = pd.DataFrame(folder.metrics())
    if rows.empty:
        return pd.DataFrame({"run_id": []})
    losses = [name for name in ("train_loss", "val_loss") if name in rows]
    curve = rows[[name for name in CURVE_COLUMNS if name in rows]].copy()
    curve["run_id"] = folder.run_id
    curve["progress"] = pd.to_numeric(rows["tokens"], errors="coerce") / config.recipe.tokens
    return curve.dropna(subset=losses, how="all") if losses else curve.iloc[:0]
