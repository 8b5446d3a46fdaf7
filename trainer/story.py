"""A run folder, told to W&B: which of its rows are settled, and whether W&B has the run whole."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.files import write_json
from trainer.runfolder import RunConfig, RunFolder
from trainer.tracking import Story, story_config, summary_of, tags, told_row

PATIENCE = 60.0
"""Seconds after which a row is told even if no checkpoint covers it yet.

A row that a checkpoint covers is never trained again. One that is trained again after a kill has the same number, so
that W&B keeps the first of the two; they differ only where a machine does not repeat its results.
"""
MARK = "mirror.json"


def story_of(folder: RunFolder, config: RunConfig | None = None) -> Story:
    """A run's folder as it stands.

    Raises
    ------
    UserError
        If its config is damaged.
    """
    config = config or folder.read_config()
    attempts, points = folder.attempts(), folder.points()
    ended = has_ended(config, points)
    rows = folder.metrics()
    devices = int(attempts[-1].get("devices", 1)) if attempts else 1
    told = rows if ended or config.recipe.command is not None else _settled(folder, rows)
    return Story(
        run_id=config.run_id,
        sweep=config.sweep,
        tags=tags(config),
        config=story_config(config, attempts),
        rows=[told_row(row, config, devices) for row in told],
        summary=summary_of(points) if ended else {},
    )


def has_ended(config: RunConfig, points: Mapping[str, Any]) -> bool:
    """Whether every point of a run has its final record."""
    return all(point_id in points for point_id in config.recipe.point_ids)


def is_whole(folder: RunFolder) -> bool:
    """Whether a mirror has brought the run, as its final records have it now, to its end."""
    points = folder.points()
    return bool(points) and read_mark(folder).get("ended") == _fingerprint(points)


def mark_whole(folder: RunFolder, mode: str) -> None:
    """Note that W&B has the run whole."""
    write_json(_mark(folder), {"mode": mode, "ended": _fingerprint(folder.points())})


def mark_failed(folder: RunFolder, why: str) -> None:
    """Note why W&B does not have the run."""
    write_json(_mark(folder), {"failed": why})


def read_mark(folder: RunFolder) -> dict[str, Any]:
    """What was noted last; nothing where nothing was."""
    try:
        found = json.loads(_mark(folder).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mark(folder: RunFolder) -> Path:
    return folder.path / "wandb" / MARK


def _fingerprint(points: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: [record["verdict"], record.get("loss"), record.get("time")] for name, record in points.items()}


def _settled(folder: RunFolder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows up to the last one that a checkpoint covers, or that is old enough."""
    saved, old = _checkpoint_step(folder), time.time() - PATIENCE
    count = 0
    for number, row in enumerate(rows, 1):
        if row.get("update", row["step"]) < saved or (row.get("time") or 0.0) < old:
            count = number
    return rows[:count]


def _checkpoint_step(folder: RunFolder) -> int:
    """The step of the newest checkpoint; what its file's first line says is enough here."""
    steps = [0]
    for slot in folder.checkpoints.glob("*.ckpt"):
        try:
            with slot.open("rb") as file:
                steps.append(int(json.loads(file.readline(1000))["step"]))
        except (OSError, ValueError, KeyError, TypeError):  # being replaced, or damaged
            continue
    return max(steps)
