"""What has become of each planned point, read from the disk alone. Nothing here writes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sweeps.dispatch.backlog import VERDICTS, Backlog
from sweeps.paths import SweepFolder
from trainer.files import read_lines
from trainer.lock import holder
from trainer.runfolder import DIVERGED, DONE, FAILED, LOST, OOM, TIMEOUT, RunFolder, killed_by_limit, lost_in_a_row

RECENT_ROWS = 20
"""Rows over which a running point's speed is averaged."""
TOUCHED = {"attempts.jsonl", "points.jsonl", "lock", "cancel"}
"""What lies in the folder of a run that somebody has done something with."""


class State(StrEnum):
    """Of a point."""

    planned = "planned"
    queued = "queued"
    running = "running"
    done = "done"
    failed = "failed"
    diverged = "diverged"


CANCELLED = "cancelled"
"""The cause of a planned point that somebody took back."""
ENDED = (State.done, State.failed, State.diverged)


@dataclass(frozen=True, kw_only=True)
class PointState:
    """One planned point and what has become of it."""

    point_id: str
    run_id: str
    budget: float | None
    params_non_embedding: int
    tokens: int
    flops: float
    """Planned training FLOPs, matmul count, of its own updates: where points share a trunk, those that it adds."""
    hours: float
    """Planned, of one device, of its own updates."""
    state: State
    cause: str | None = None
    loss: float | None = None
    """Final validation loss, or the last known one; nats per token."""
    progress: float = 0.0
    """Share of its own updates that are made."""
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    """Until a running point ends."""
    spent_hours: float = 0.0
    """Of a device, over all attempts; of points that share a trunk, each its part."""
    attempts: int = 0

    flops_per_token: float = 0.0

    @property
    def taken_back(self) -> bool:
        """Whether it waits until somebody asks for it again: a planned point with a cause was cancelled."""
        return self.state is State.planned and self.cause is not None

    @property
    def kind(self) -> str:
        """Of a failure: ``oom``, ``timeout`` or ``other``, as ``retry=`` tells them apart."""
        cause = self.cause or ""
        if cause.startswith(TIMEOUT):
            return "timeout"
        return "oom" if cause.startswith(OOM) or "out of memory" in cause.lower() else "other"

    def to_dict(self) -> dict[str, Any]:
        """As ``status format=json`` prints it."""
        return dict(vars(self))


def inspect(folder: SweepFolder, plan: Mapping[str, Any], lost_attempts: int, backlog: Backlog) -> list[PointState]:
    """The state of every point of a plan (as :func:`sweeps.planning.points.read_plan` gives it), in the plan's order.

    Parameters
    ----------
    lost_attempts
        A point whose last attempts vanished this often without progress counts as failed.
    """
    return [_inspect_point(folder.run(row["run_id"]), row, backlog, lost_attempts) for row in plan["points"]]


def orphans(folder: SweepFolder, plan: Mapping[str, Any]) -> list[RunFolder]:
    """Runs on disk whose point has left the config. They are kept."""
    known = {row["run_id"] for row in plan["points"]}
    return folder.runs(without=known)


def _inspect_point(run: RunFolder, row: Mapping[str, Any], backlog: Backlog, lost_attempts: int) -> PointState:
    known: dict[str, Any] = {
        "point_id": row["point_id"],
        "run_id": row["run_id"],
        "budget": row["budget"],
        "params_non_embedding": row["params_non_embedding"],
        "tokens": row["tokens"],
        "flops_per_token": row["flops_matmul"] / row["tokens"],
        "flops": row.get("flops_spent", row["flops_matmul"]),
        "hours": row["hours"],
    }
    try:
        there = {entry.name for entry in os.scandir(run.path)}
    except FileNotFoundError:
        there = set()
    if "config.yaml" not in there or not there & TOUCHED:
        return _absent(known, backlog)
    attempts = run.attempts()
    alive = holder(run.path) is not None
    record = run.points().get(row["point_id"])
    known |= {"attempts": len(attempts), "spent_hours": _spent_seconds(run, attempts, alive) / 3600}
    if record is not None and row["point_id"] == row["run_id"]:  # the run's only point: no row need be read
        return _ended(known, record)
    part = _Part.of(run, row, attempts)
    known["spent_hours"] *= part.spent
    if record is not None:
        return _ended(known, record)
    known |= part.progress(row["tokens"], alive)
    if alive:
        return PointState(**known, state=State.running)
    if run.cancel_path.exists():
        return PointState(**known, state=State.planned, cause=CANCELLED)
    if attempts and lost_in_a_row(attempts) >= lost_attempts:
        step = attempts[-1].get("resume_step") or 0
        cause = f"lost {lost_attempts} times at step {step} without a word (out of memory?)"
        return PointState(**known, state=State.failed, cause=cause)
    if run.run_id not in backlog.waiting:
        end = backlog.ended.get(run.run_id)
        limit = killed_by_limit(attempts)
        if end is not None and end.seen.state in VERDICTS and end.took_down(attempts) is not None:
            limit = end.why
        if limit is not None:
            return PointState(**known, state=State.failed, cause=limit)
    return _absent(known, backlog)


def _absent(known: Mapping[str, Any], backlog: Backlog) -> PointState:
    """A point that nobody trains now."""
    run_id = known["run_id"]
    if run_id in backlog.waiting:
        return PointState(**known, state=State.queued, cause=backlog.waiting[run_id])
    end = backlog.ended.get(run_id)
    return PointState(**known, state=State.planned, cause=end.taken_back if end is not None else None)


def _ended(known: Mapping[str, Any], record: Mapping[str, Any]) -> PointState:
    verdict = record["verdict"]
    if verdict == DONE:
        return PointState(**known, state=State.done, loss=record["loss"], progress=1.0)
    share = min(1.0, record["tokens"] / known["tokens"])
    if verdict == DIVERGED:
        return PointState(**known, state=State.diverged, cause="loss or gradient not finite or far off", progress=share)
    return PointState(**known, state=State.failed, cause=verdict.removeprefix(FAILED), progress=share)


@dataclass(frozen=True)
class _Part:
    """How far a run has come with one of its points: ``made`` of its ``own`` updates, after those ``before``."""

    rows: Sequence[Mapping[str, Any]]
    """The run's, as far as they lead to the point."""
    before: int
    own: int
    updates: int
    """That the whole run has made."""

    @classmethod
    def of(cls, run: RunFolder, row: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> _Part:
        rows = run.last_rows(attempts) if attempts else []
        before, own = row.get("updates_before", 0), row.get("updates_own", row.get("steps", 0))
        at = rows[-1] if rows else {}
        updates = at.get("update", at.get("step", -1)) + 1
        led = [row for row in rows if before <= row.get("update", row["step"]) < before + own]
        return cls(led, before, own, updates)

    @property
    def made(self) -> int:
        return min(max(self.updates - self.before, 0), self.own)

    @property
    def spent(self) -> float:
        """Its share of what the run has taken."""
        if not self.updates:
            return float(self.before == 0)
        return self.made / self.updates

    def progress(self, tokens: int, alive: bool) -> dict[str, Any]:
        if not self.rows:
            return {"cause": "after shorter ones on its trunk"} if alive and self.before else {}
        losses = [r[key] for r in reversed(self.rows) for key in ("val_loss", "train_loss") if r.get(key) is not None]
        share = self.made / self.own if self.own else min(1.0, self.rows[-1].get("tokens", 0) / tokens)
        found = {"progress": share, "loss": losses[0] if losses else None}
        speeds = [row["tokens_per_second"] for row in self.rows[-RECENT_ROWS:] if row.get("tokens_per_second")]
        if not alive or not speeds or self.made == self.own:
            return found
        speed = len(speeds) / sum(1 / value for value in speeds)
        last = self.rows[-1]
        left = (self.own - self.made) * last.get("tokens", 0) / (last["step"] + 1)
        return found | {"tokens_per_second": speed, "eta_seconds": left / speed}


def _spent_seconds(run: RunFolder, attempts: Sequence[Mapping[str, Any]], alive: bool) -> float:
    """Over all attempts. One that vanished lasted to its last row; one that runs, to now."""
    seconds = 0.0
    for attempt in attempts:
        end = attempt.get("end")
        if "why" not in attempt and alive:
            end = time.time()
        elif str(attempt.get("why", LOST)).startswith("lost"):
            rows = read_lines(run.path / "metrics.jsonl")
            end = max((row.get("time") or 0.0 for row in rows if row.get("attempt") == attempt["attempt"]), default=0.0)
        devices = attempt.get("devices", 1) / attempt.get("together", 1)
        seconds += max(0.0, (end or attempt["start"]) - attempt["start"]) * devices
    return seconds
