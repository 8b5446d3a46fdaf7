"""Runs read from W&B, from its files or its server, as the two tables.

Runs that this project mirrored carry their config and final record, and give the numbers of their run folders to the
last digit. Of other people's runs the points are what config, history and summary hold, under the names they chose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.config import Fill
from analysis.ingest.frames import flat, read_frame
from analysis.ingest.records import RunRows, missing_points, run_curves, run_points, tables_of
from analysis.ingest.tables import Exclusion, Tables, joined
from trainer.errors import UserError
from trainer.recipe import check_schema
from trainer.runfolder import RunConfig, flaw, valid_rows
from trainer.tracking import EXACT

FIT = "fit"
"""The job type of a fit that was logged; it is no run."""
FINISHED = "finished"
"""W&B's state of a run that ended well; the others are running, crashed, failed, killed and the like."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run as W&B knows it."""

    run_id: str
    name: str
    group: str
    job_type: str
    state: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    """Its history, in the order logged."""


def tables_of_logged(
    runs: Sequence[LoggedRun],
    columns: Mapping[str, str] | None,
    *,
    fill: Fill,
    source: str,
    excluded: Sequence[Exclusion] = (),
) -> Tables:
    """All runs as one source, by rising id.

    Raises
    ------
    UserError
        If there is none, or if none is this project's and ``columns`` does not find N, D and L in the others.
    """
    runs = sorted((run for run in runs if run.job_type != FIT), key=lambda run: run.run_id)
    mirrors = [run for run in runs if is_mirror(run)]
    others = [run for run in runs if not is_mirror(run)]
    if not runs:
        why = f" ({excluded[0].row}: {excluded[0].reason})" if excluded else ""
        raise UserError(f"{source} holds no W&B run that can be read{why}; name another.")
    left = list(excluded)
    parts = [tables_of(map(_mirror, mirrors), source)] if mirrors else []
    if others:
        try:
            parts.append(_foreign(others, columns, fill, source))
        except UserError as error:
            if not mirrors:
                raise
            left += [Exclusion(row=run.run_id, reason=str(error)) for run in others]
    tables = parts[0] if len(parts) == 1 else joined(parts, source)
    return replace(tables, excluded=(*left, *tables.excluded))


def is_mirror(run: LoggedRun) -> bool:
    """Whether this project mirrored it."""
    return EXACT in run.config


def mirrored_config(run: LoggedRun) -> RunConfig:
    """The config of a run that this project mirrored.

    Raises
    ------
    UserError
        If it is not the one that the run was made by.
    """
    try:
        raw = json.loads(run.config[EXACT])
        check_schema(raw["schema"], f"the W&B run {run.run_id}", remedy="leave the run out")
        config = RunConfig.from_dict(raw)
        found = config.run_id
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"its config lacks or garbles {error}") from None
    if found != run.run_id:
        raise UserError(f"its recipe has the id {found}, not the W&B run's, so its config was edited")
    return config


def _mirror(run: LoggedRun) -> RunRows:
    try:
        config = mirrored_config(run)
    except UserError as error:
        return RunRows(run_id=run.run_id, excluded=[Exclusion(row=run.run_id, reason=str(error))])
    records = final_records(run.summary, config.run_id)
    return RunRows(
        run_id=run.run_id,
        points=run_points(config, records),
        curves=run_curves(config, valid_rows(map(dict, run.rows), {}), records) if records else {},
        excluded=missing_points(config, records),
    )


def final_records(summary: Mapping[str, Any], run_id: str) -> dict[str, dict[str, Any]]:
    """The valid final records that the summary tells of, by point id."""
    try:
        told = json.loads(summary.get("points") or "[]")
        return {record["point_id"]: record for record in told if flaw(record, run_id) is None}
    except (TypeError, ValueError, KeyError, AttributeError):  # edited by somebody
        return {}


def _foreign(runs: Sequence[LoggedRun], columns: Mapping[str, str] | None, fill: Fill, source: str) -> Tables:
    """Other people's runs: one point each, what was logged last over the summary over the config."""
    histories = [[flat(row) for row in run.rows] for run in runs]
    points = pd.DataFrame([_point(run, history) for run, history in zip(runs, histories, strict=True)])
    curves = pd.DataFrame(
        [row | {"run_id": run.run_id} for run, history in zip(runs, histories, strict=True) for row in history]
    )
    logged = all(any(name in curves for name in names) for names in _clock_and_losses(columns or {}))
    return read_frame(points, curves if logged else None, columns, fill=fill, source=source)


def _clock_and_losses(columns: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What a history must have to be a curve: tokens, and any loss."""
    losses = ("loss", "val_loss", "train_loss")
    return [columns.get("tokens", "tokens")], [columns.get(name, name) for name in losses]


def _point(run: LoggedRun, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = {key: value for row in history for key, value in row.items() if value is not None}
    verdict = "done" if run.state == FINISHED else f"unfinished: its W&B run is {run.state}"
    own = {"run_id": run.run_id, "point_id": run.run_id, "cluster_id": run.run_id, "name": run.name}
    return flat(run.config) | flat(run.summary) | last | own | {"sweep": run.group, "verdict": verdict}
