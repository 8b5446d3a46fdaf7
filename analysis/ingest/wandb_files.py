"""Runs from W&B's own files (``run-<id>.wandb``), as offline runs leave them: no server, no login."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.config import Fill, chosen
from analysis.ingest.tables import Exclusion, Tables
from analysis.ingest.wandb_runs import FINISHED, LoggedRun, tables_of_logged
from trainer.errors import UserError
from trainer.tracking import EXACT
from trainer.wandb_log import MAGIC, records


def read_offline(
    paths: Sequence[Path], columns: Mapping[str, str] | None = None, *, fill: Fill | str = Fill.none
) -> Tables:
    """Read offline W&B runs: ``.wandb`` files, or folders that hold some at any depth.

    Files of one run id are the attempts of one run: a later one voids what earlier ones logged from its first row on.
    A damaged or cut file is listed, and what is whole in it is read. Runs that isoflop mirrored need no ``columns``.

    Parameters
    ----------
    columns
        Our column -> the name in the run's config (dotted), history or summary: ``{"params": "model.n_params"}``.
    fill
        What is taken from C = 6 N D where it is missing, a :class:`~analysis.config.Fill` or its name.

    Raises
    ------
    UserError
        If there is no such file, or N, D or L are not found in the runs.
    """
    fill = chosen(Fill, fill, "fit.fill")
    runs, excluded = logged_runs(paths, (columns or {}).get("tokens", "tokens"))
    return tables_of_logged(runs, columns, fill=fill, source=", ".join(map(str, paths)), excluded=excluded)


def logged_runs(paths: Sequence[Path], clock: str = "tokens") -> tuple[list[LoggedRun], list[Exclusion]]:
    """The runs of some files or folders, and what could not be read of them.

    Parameters
    ----------
    clock
        The logged value that tells which rows of an earlier attempt a later one voids.

    Raises
    ------
    UserError
        If there is no such file.
    """
    files = [file for path in paths for file in _files(path)]
    attempts: dict[str, list[Attempt]] = {}
    excluded: list[Exclusion] = []
    for file in dict.fromkeys(files):
        attempt = read_attempt(file)
        if attempt.faults:
            excluded.append(Exclusion(row=str(file), reason="; ".join(attempt.faults)))
        if attempt.run_id:
            attempts.setdefault(attempt.run_id, []).append(attempt)
    runs = []
    for run_id, parts in attempts.items():
        newest = max(parts, key=lambda part: part.start).project
        others = {part.project for part in parts} - {newest}
        if others:
            named = " and ".join(sorted(others))
            reason = f"two runs have this id; that of project {newest}, begun last, was read, not that of {named}"
            excluded.append(Exclusion(row=run_id, reason=reason))
        runs.append(_joined([part for part in parts if part.project == newest], clock))
    return runs, excluded


@dataclass(kw_only=True)
class Attempt:
    """What one file holds, and what is wrong with it."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    start: tuple[int, int] = (0, 0)
    """Seconds and nanoseconds."""
    state: str = "running, or was killed"
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"path={path} does not exist; name a .wandb file, or a folder that holds some.")
    found = [path] if path.is_file() else sorted(path.rglob("*.wandb"))
    if not found:
        raise UserError(f"path={path} holds no .wandb file; name a folder of offline W&B runs.")
    return found


def _joined(attempts: Iterable[Attempt], clock: str) -> LoggedRun:
    """The attempts of one run as one, the earliest first."""
    ordered = sorted(attempts, key=lambda attempt: attempt.start)
    if any(EXACT in attempt.config for attempt in ordered):
        clock = "_step"  # a mirrored row's number in its run; tokens go back where a trunk leaves its cooldown
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for attempt in ordered:
        begin = next((row[clock] for row in attempt.rows if isinstance(row.get(clock), int | float)), None)
        if begin is not None:
            rows = [row for row in rows if not isinstance(row.get(clock), int | float) or row[clock] < begin]
        rows += attempt.rows
        summary |= attempt.summary
    last = ordered[-1]
    return LoggedRun(
        run_id=last.run_id,
        name=last.name,
        group=last.group,
        job_type=last.job_type,
        state=last.state,
        config=last.config,
        summary=summary,
        rows=rows,
    )


def read_attempt(path: Path) -> Attempt:
    """What is whole in one file; it never raises, what is wrong stands in ``faults``."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    attempt = Attempt()
    try:
        raw = path.read_bytes()
    except OSError as error:
        return Attempt(faults=[f"cannot be read ({error.strerror})"])
    if not raw.startswith(MAGIC):
        return Attempt(faults=["is no .wandb file: it does not begin with :W&B"])
    spoilt = 0
    for content in records(raw, attempt.faults):
        try:
            _take(attempt, Record.FromString(content))
        except (DecodeError, ValueError):
            spoilt += 1
    if spoilt:
        attempt.faults.append(f"{spoilt} records are damaged; the rest was read")
    if not attempt.run_id:
        attempt.faults.append("names no run")
    return attempt


def _take(attempt: Attempt, record: Any) -> None:
    """One record into the attempt."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run = record.run
        attempt.run_id, attempt.name, attempt.group = run.run_id, run.display_name, run.run_group
        attempt.project, attempt.job_type = "/".join(filter(None, (run.entity, run.project))), run.job_type
        attempt.start = (run.start_time.seconds, run.start_time.nanos)
        _update(attempt.config, run.config)
        _update(attempt.summary, run.summary)
    elif kind == "config":
        _update(attempt.config, record.config)
    elif kind == "summary":
        _update(attempt.summary, record.summary)
    elif kind == "history":
        attempt.rows.append({_name(item): json.loads(item.value_json) for item in record.history.item})
    elif kind == "exit":
        attempt.state = FINISHED if record.exit.exit_code == 0 else f"failed with exit code {record.exit.exit_code}"


def _update(values: dict[str, Any], changes: Any) -> None:
    for item in changes.update:
        values[_name(item)] = json.loads(item.value_json)
    for item in changes.remove:
        values.pop(_name(item), None)


def _name(item: Any) -> str:
    """W&B writes a key, or a path of nested ones."""
    return ".".join(item.nested_key) if item.nested_key else str(item.key)
