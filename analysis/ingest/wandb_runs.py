"""Runs read from W&B, from its files or its server, as the two tables.

Runs that this project mirrored carry their config and final record, and give the numbers of their run folders to the
last digit. Of other people's runs the points are what config, history and summary hold, under the names they chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.config import Fill
from analysis.ingest.frames import flat, read_frame
from analysis.ingest.records import RunRows, missing_points, run_curves, run_points, tables_of
from analysis.ingest.tables import Exclusion, Tables, joined
from trainer.errors import UserError
from trainer.recipe import check_schema
from trainer.runfolder import RunConfig, final_record, flaw, valid_rows
from trainer.tracking import branch_key

FINISHED = "finished"
"""W&B's state of a run that ended well; the others are running, crashed, failed, killed and the like."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run as W&B knows it."""

    run_id: str
    name: str
    group: str
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
    runs = sorted(runs, key=lambda run: run.run_id)
    mirrors = [run for run in runs if _is_mirror(run)]
    others = [run for run in runs if not _is_mirror(run)]
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


def _is_mirror(run: LoggedRun) -> bool:
    return {"schema", "recipe", "points"} <= set(run.config)


def _mirror(run: LoggedRun) -> RunRows:
    """A run that this project trained."""
    try:
        check_schema(run.config["schema"], f"the W&B run {run.run_id}", remedy="leave the run out")
        config = RunConfig.from_dict(run.config)
        if config.run_id != run.run_id:
            raise UserError(f"its recipe has the id {config.run_id}, not the W&B run's, so its config was edited")
    except UserError as error:
        return RunRows(run_id=run.run_id, excluded=[Exclusion(row=run.run_id, reason=str(error))])
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = f"its config lacks or garbles {error}"
        return RunRows(run_id=run.run_id, excluded=[Exclusion(row=run.run_id, reason=reason)])
    records = dict(_final(config, run.summary))
    return RunRows(
        run_id=run.run_id,
        points=run_points(config, records),
        curves=run_curves(config, valid_rows(map(dict, run.rows), {}), records) if records else {},
        excluded=missing_points(config, records),
    )


def _final(config: RunConfig, summary: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The valid final records that the summary tells of: the last point's, and those of branches."""
    for horizon in config.recipe.horizons:
        last = horizon is config.recipe.horizons[-1]
        told = summary if last else summary.get(branch_key(horizon.tokens))
        if not isinstance(told, Mapping):
            continue
        verdict, tokens = told.get("verdict"), told.get("final_tokens")
        if not isinstance(verdict, str) or not isinstance(tokens, int | float):
            continue
        record = final_record(
            config,
            point_id=horizon.point_id,
            tokens=int(tokens),
            loss=told.get("loss"),
            verdict=verdict,
            bits_per_byte=told.get("bits_per_byte"),
            unique_tokens=told.get("unique_tokens"),
            validation_sets=dict(_sets(told)),
            flags=told.get("flags") or (),
        )
        if flaw(record, config.run_id) is None:
            yield horizon.point_id, record


def _sets(summary: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """What the summary tells of each of several validation sets."""
    for key, bits in summary.items():
        name = key.removeprefix("bits_per_byte_")
        if name != key and f"val_loss_{name}" in summary:
            yield name, {"loss": summary[f"val_loss_{name}"], "bits_per_byte": bits}


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
