"""Fits that were logged offline, handed in to W&B by its own client, which sends tables, figures and artifacts.

A fit is a finished run with an id of its own, so what W&B has of it is whole or can be sent again: nothing is doubled.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.ingest.wandb_api import list_runs
from analysis.ingest.wandb_files import read_attempt
from analysis.ingest.wandb_runs import FINISHED
from sweeps.fit_wandb import SECONDS
from trainer.config import Backend, TrackingConfig
from trainer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OfflineFit:
    """W&B's files of one fit."""

    file: Path
    run_id: str
    group: str
    entity: str | None
    project: str


def offline_fits(place: Path, tracking: TrackingConfig) -> list[OfflineFit]:
    """The fits under a folder, or in a file, that were logged to their end, and where each is to go.

    That is where ``tracking`` says, if it is W&B; else where the fit itself said.
    """
    files = [place] if place.is_file() else sorted(place.rglob("*.wandb"))
    found = []
    for file in files:
        read = read_attempt(file)
        if read.job_type != "fit" or read.state != FINISHED or read.faults:
            continue
        entity, _, project = read.project.rpartition("/")
        if tracking.backend is Backend.wandb:
            entity, project = tracking.entity or "", tracking.project
        found.append(
            OfflineFit(file=file, run_id=read.run_id, group=read.group, entity=entity or None, project=project)
        )
    return found


def lacking(fits: Sequence[OfflineFit]) -> Iterator[OfflineFit]:
    """Those that W&B does not have to their end: asked of the server.

    Raises
    ------
    UserError
        If the server cannot be reached, or refuses.
    """
    known: dict[tuple[str | None, str, str], set[str]] = {}
    for fit in fits:
        where = (fit.entity, fit.project, fit.group)
        if where not in known:
            known[where] = {run.id for run in runs_there(*where) if run.state == FINISHED}
        if fit.run_id not in known[where]:
            yield fit


def runs_there(entity: str | None, project: str, group: str) -> list[Any]:
    """What W&B has of a group; nothing where there is no such project, which is made with its first run.

    Raises
    ------
    UserError
        If the server cannot be reached, or refuses.
    """
    try:
        return list_runs(f"{entity}/{project}" if entity else project, group)
    except UserError as error:
        if "Could not find project" not in str(error):
            raise
        return []


def hand_in_fits(fits: Iterable[OfflineFit], tell: Callable[[str], None]) -> tuple[int, list[str]]:
    """Hand fits in; how many W&B took, and a sentence about each of the others."""
    taken, left = 0, []
    for fit in fits:
        tell(f"handing in the fit {fit.run_id}")
        command = [sys.executable, "-m", "wandb", "sync", "--include-synced", "--project", fit.project]
        command += ["--entity", fit.entity] if fit.entity else []
        try:
            done = subprocess.run(
                [*command, str(fit.file.parent)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=SECONDS, check=False,
            )  # fmt: skip
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            why = lines[-1] if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"it has not answered for {SECONDS:g} s"
        if why:
            left.append(f"the fit {fit.run_id}: W&B does not take it ({why})")
        else:
            taken += 1
    return taken, left
