"""Points and curves from run folders: only reads, and tolerates runs that are still being written."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from analysis.ingest.records import RunRows, missing_points, run_curves, run_points, tables_of, validation_sets
from analysis.ingest.tables import Exclusion, Tables
from trainer.errors import MachineFault, UserError
from trainer.recipe import check_schema
from trainer.runfolder import RunFolder

SIDE_BY_SIDE = 64
"""From this many folders on, all cores read; and so many folders a core takes at a time."""


def read_runs(root: Path, sweeps: Sequence[str], validation: str | None = None) -> Tables:
    """Read every run folder of the named sweeps.

    A run without final record is listed as unfinished, a damaged folder as damaged; neither stops the others.

    Parameters
    ----------
    validation
        The validation set whose loss counts, where the corpus has several; None for its first.

    Raises
    ------
    UserError
        If a sweep does not exist under ``root``, or holds no run, or none that measured the validation set.
    """
    folders = [folder for sweep in sweeps for folder in _folders(root, sweep)]
    tables = tables_of(_each(folders, validation), ", ".join(str(root / sweep) for sweep in sweeps))
    if validation is not None and tables.points["loss"].isna().all():
        known = {name for folder in folders for record in folder.points().values() for name in validation_sets(record)}
        raise UserError(
            f"validation={validation}: no run measured such a set; choose of {', '.join(sorted(known)) or 'none'}."
        )
    return tables


def read_run(folder: RunFolder, validation: str | None = None) -> RunRows:
    """One run's points, the curves that led to them, and the points it has not reached."""
    try:
        config = folder.read_config()
        records = folder.points()
        for record in records.values():
            check_schema(record.get("schema"), str(folder.path / "points.jsonl"))
    except UserError as error:
        return RunRows(run_id=folder.run_id, excluded=[Exclusion(row=folder.run_id, reason=str(error))])
    return RunRows(
        run_id=folder.run_id,
        points=run_points(config, records, validation),
        curves=run_curves(config, folder.metrics(), records, _key(records, validation)) if records else {},
        excluded=missing_points(config, records),
    )


def _key(records: Mapping[str, Mapping[str, Any]], validation: str | None) -> str:
    """The metrics' key of a validation set's loss; that of the first set is plain."""
    first = next((name for record in records.values() for name in validation_sets(record)), None)
    return "val_loss" if validation in (None, first) else f"val_loss_{validation}"


def _each(folders: Sequence[RunFolder], validation: str | None) -> Iterator[RunRows]:
    """What the folders hold, in their order; many of them are read by forked processes, where those are sound."""
    read = partial(read_run, validation=validation)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if cores == 1 or len(folders) < 2 * SIDE_BY_SIDE or multiprocessing.current_process().daemon:
        yield from map(read, folders)
        return
    fork = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(cores, fork, initializer=gc.disable) as pool:  # a million dicts, none in a cycle
            yield from pool.map(read, folders, chunksize=SIDE_BY_SIDE)
    except BrokenProcessPool:
        where = folders[0].path.parent
        raise MachineFault(f"a process reading {where} was killed; free some memory and start again.") from None


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
