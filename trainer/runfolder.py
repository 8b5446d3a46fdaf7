"""The run folder: the contract between whoever trains a run and whoever reads it.

::

    <root>/<sweep>/<run id>/
        config.yaml       recipe, runtime, parameters, planned FLOPs, provenance; written before the first attempt
        metrics.jsonl     one row per logged step (append only)
        attempts.jsonl    one line when an attempt starts, one when it ends
        checkpoints/      the trainer's own
        points.jsonl      one final record per point, written last
        lock, heartbeat   one writer at a time (trainer.lock)
        wandb/            W&B's own files, and what the mirror noted (trainer.story)
        cancel            present while somebody wants the run stopped

A metrics row: ``step`` (0-based index of the update), ``tokens`` and ``flops`` after it, ``train_loss`` (mean since the
last row), ``val_loss`` (where measured; of a corpus's further validation sets ``val_loss_<name>``), ``lr``,
``grad_norm``, ``tokens_per_second``, ``mfu`` (share of the device's peak), ``attempt``, ``time``.

A run with several points (``points`` in config.yaml, each id ending in @ and its tokens) trains one trunk and leaves it
for a cooldown to each point but the last. Steps, tokens and FLOPs count along the row's own path; a row of a cooldown
says in ``branch`` the tokens that it ends at, and every row in ``update`` the 0-based index of its update among all
that the run makes, which is what ``resume_step`` of an attempt means there.

A final record must have ``schema`` (1), ``run_id``, ``point_id`` (of ``points`` in config.yaml), ``verdict`` (``done``,
``diverged`` or ``failed: <cause>``); a done one also ``tokens`` (trained), ``horizon`` (the tokens asked for, reached)
and ``loss`` (nats per token). ``bits_per_byte``, ``flags`` and ``validation_sets`` (name -> loss and bits_per_byte) are
welcome. What follows from the config (parameters, FLOPs, batch, ...) is added by readers; :func:`final_record` writes
it all.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config import Backend, DeviceKind, Keep, TrackingConfig, WandbMode, Way, plain
from trainer.errors import UserError
from trainer.files import append_line, read_lines, read_yaml, write_whole, write_yaml
from trainer.recipe import SCHEMA, Recipe, check_schema
from trainer.shape import FlopCount

DONE, DIVERGED = "done", "diverged"
FAILED = "failed: "
"""A failed verdict is this plus its cause."""
OOM, TIMEOUT = "OOM", "timeout"
"""How the cause of a failure for want of memory, or of time, begins."""
TAIL_BYTES = 8_000
"""Of metrics.jsonl, what tells how a run stands."""
LOST = "lost: killed, or the machine went down"
"""Why an attempt without a last line ended."""
STOPPED = "stopped: "
"""Why an attempt that was asked to stop ended is this plus the reason,"""
EXCEPTION = "exception: "
"""and one that failed in the middle, this plus the error."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a run is executed: nothing here changes its losses beyond the last bits, and nothing here is hashed."""

    device: DeviceKind
    threads: int
    micro_batch: int
    eval_steps: tuple[int, ...]
    """Validation is measured after this many updates of the run, cooldowns counted; rising, the last one is all."""
    log_every: int
    checkpoint_seconds: float
    keep: Keep
    tracking: TrackingConfig
    peak_flops: float | None = None
    """FLOPs per second that the device can do at most; the rows' ``mfu`` is the share of it that training reaches."""
    way: Way = Way.auto
    together: int = 1
    """How many runs like it may be trained with it as one model, itself counted."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Runtime:
        """Back from :func:`trainer.config.plain`."""
        tracking = dict(raw["tracking"])
        tracking["backend"] = Backend(tracking["backend"])
        tracking["mode"] = WandbMode(tracking["mode"])
        return cls(
            device=DeviceKind(raw["device"]),
            threads=raw["threads"],
            micro_batch=raw["micro_batch"],
            eval_steps=tuple(raw["eval_steps"]),
            log_every=raw["log_every"],
            checkpoint_seconds=raw["checkpoint_seconds"],
            keep=Keep(raw["keep"]),
            tracking=TrackingConfig(**tracking),
            peak_flops=raw.get("peak_flops"),
            way=Way(raw.get("way", Way.auto)),
            together=raw.get("together", 1),
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What ``config.yaml`` says."""

    sweep: str
    recipe: Recipe
    runtime: Runtime
    budget: float | None = None
    """The FLOPs (matmul count) the design asked for; None where it asked for tokens. Of several points, the last's."""
    budgets: tuple[float | None, ...] = ()
    """The same for each point, of runs with several."""
    axes: Mapping[str, Any] = field(default_factory=dict)
    """The sweep's further axes and this run's values on them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Git commit and versions at submission."""
    kernels: Mapping[str, Any] = field(default_factory=dict)
    """What the trainer chose for this shape at its first attempt; kept by every later one."""

    @property
    def run_id(self) -> str:
        """The recipe's."""
        return self.recipe.run_id

    def budget_of(self, point_id: str) -> float | None:
        """The FLOPs that the design asked for at a point."""
        return dict(zip(self.recipe.point_ids, self.budgets, strict=True))[point_id] if self.budgets else self.budget

    def to_dict(self) -> dict[str, Any]:
        """As the file has it: counts that follow from the recipe stand there for readers, and are not read back."""
        shape = self.recipe.model
        return {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "points": list(self.recipe.point_ids),
            "sweep": self.sweep,
            "budget": self.budget,
            **({"budgets": list(self.budgets)} if self.budgets else {}),
            "axes": plain(dict(self.axes)),
            "tokens": self.recipe.tokens,
            "params": {"total": shape.params_total, "non_embedding": shape.params_non_embedding}
            | {"groups": shape.params_by_group()},
            "flops": {count.value: self.recipe.flops(count) for count in FlopCount},
            "recipe": self.recipe.to_dict(),
            "runtime": plain(self.runtime),
            "provenance": plain(dict(self.provenance)),
            "kernels": plain(dict(self.kernels)),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RunConfig:
        """Back from :meth:`to_dict`; keys that are not its own are left alone."""
        return cls(
            sweep=raw["sweep"],
            recipe=Recipe.from_dict(raw["recipe"]),
            runtime=Runtime.from_dict(raw["runtime"]),
            budget=raw["budget"],
            budgets=tuple(raw.get("budgets", ())),
            axes=raw["axes"],
            provenance=raw["provenance"],
            kernels=raw["kernels"],
        )


class RunFolder:
    """Reads and writes one run folder."""

    def __init__(self, path: Path, facts: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.facts = dict(facts or {})
        """What every attempt that is started here says besides."""
        self.check_owner: Callable[[], None] = _sole_writer
        """Called before the config or the beginning of an attempt is written: raises where the folder is no longer the
        writer's, who may have stood still until others took it over."""

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def cancel_path(self) -> Path:
        """Present while somebody wants the run stopped."""
        return self.path / "cancel"

    def write_config(self, config: RunConfig) -> None:
        """Write ``config.yaml``, whole."""
        self.check_owner()
        write_yaml(self.config_path, config.to_dict())

    def read_config(self) -> RunConfig:
        """Read ``config.yaml`` and check that it is the one this folder was made for.

        Raises
        ------
        UserError
            If it is missing, damaged, of a newer schema, or if its recipe's id is not the folder's name.
        """
        where = str(self.config_path)
        try:
            raw = read_yaml(self.config_path)
        except FileNotFoundError:
            raise UserError(f"{where} is missing, so {self.path} is no run folder; run `isoflop submit`.") from None
        except Exception as error:
            raise UserError(f"{where} is damaged; move the folder away and submit again.") from error
        if not isinstance(raw, dict):
            raise UserError(f"{where} is damaged; move the folder away and submit again.")
        check_schema(raw.get("schema"), where)
        try:
            config = RunConfig.from_dict(raw)
            found = config.run_id
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"{where} lacks or garbles {error}; move the folder away and submit again.") from error
        if found != self.run_id:
            raise UserError(
                f"{where}: its recipe has the id {found}, not the folder's name, so it was edited or moved; "
                "restore it, or move the folder away and submit again."
            )
        return config

    def metrics(self) -> list[dict[str, Any]]:
        """Valid metrics rows, in the order of their updates: an attempt that resumed at s voids those at or above s."""
        resumed = {line["attempt"]: line.get("resume_step") for line in self.attempts()}
        return valid_rows(read_lines(self.path / "metrics.jsonl"), resumed)

    def last_rows(self, attempts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The last of :meth:`metrics`, some dozens, without reading the others; ``attempts`` as read already."""
        resumed = {line["attempt"]: line.get("resume_step") for line in attempts}
        return valid_rows(read_lines(self.path / "metrics.jsonl", last_bytes=TAIL_BYTES), resumed)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row; NaN and infinities become null, which JSON can hold."""
        append_line(self.path / "metrics.jsonl", {key: finite_or_none(value) for key, value in row.items()})

    def attempts(self) -> list[dict[str, Any]]:
        """One record per attempt, its start and end lines merged; an attempt killed outright has no ``why``."""
        merged: dict[int, dict[str, Any]] = {}
        for line in read_lines(self.path / "attempts.jsonl"):
            if isinstance(line.get("attempt"), int):
                merged.setdefault(line["attempt"], {}).update(line)
        return [merged[key] for key in sorted(merged) if isinstance(merged[key].get("start"), int | float)]

    def start_attempt(self, job: str, resume_step: int | None) -> int:
        """Write an attempt's first line and return its number, from 0."""
        self.check_owner()
        attempts = self.attempts()
        number = attempts[-1]["attempt"] + 1 if attempts else 0
        self._attempt_line(
            attempt=number,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=job,
            start=time.time(),
            resume_step=resume_step,
            **slurm_facts(os.environ),
            **self.facts,
        )
        return number

    def end_attempt(self, attempt: int, why: str, **facts: Any) -> None:
        """Write an attempt's last line: why it ended, and what else is known of it."""
        self._attempt_line(attempt=attempt, end=time.time(), why=why, **facts)

    def _attempt_line(self, **record: Any) -> None:
        append_line(self.path / "attempts.jsonl", record)

    def points(self) -> dict[str, dict[str, Any]]:
        """The valid final record of each point that has one, by point id; the last one written counts."""
        records = {}
        for record in read_lines(self.path / "points.jsonl"):
            if flaw(record, self.run_id) is None:
                tokens = record.get("tokens")
                record["tokens"] = int(tokens) if isinstance(tokens, int | float) else 0
                records[record["point_id"]] = record
        return records

    def ended(self) -> bool:
        """Whether every point of the run has its final record."""
        points = self.points()
        if not points or self.run_id in points:
            return bool(points)
        with suppress(UserError):
            return points.keys() >= set(self.read_config().recipe.point_ids)
        return False

    def flaws(self) -> list[str]:
        """What is wrong with the lines of ``points.jsonl`` that are no final records."""
        found = (flaw(record, self.run_id) for record in read_lines(self.path / "points.jsonl"))
        return [reason for reason in found if reason is not None]

    def write_point(self, record: Mapping[str, Any]) -> None:
        """Append a point's final record."""
        append_line(self.path / "points.jsonl", {key: finite_or_none(value) for key, value in record.items()})

    def forget_failure(self) -> None:
        """Drop failed final records, so that the run is tried again; measured points stay."""
        kept = [record for record in self.points().values() if not record["verdict"].startswith(FAILED)]
        path = self.path / "points.jsonl"
        if kept:
            write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
        else:
            path.unlink(missing_ok=True)


def valid_rows(rows: Iterable[dict[str, Any]], resumed: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Rows of all attempts, in the order written, without those that a later attempt voids; by rising update.

    A process that lost its lock while it was frozen may write once more when it wakes: rows of an earlier attempt after
    those of a later one do not count.

    Parameters
    ----------
    resumed
        Attempt -> the step it resumed at. One that is not there voids rows from its own first step on.
    """
    kept: list[dict[str, Any]] = []
    last = -math.inf
    attempt: Any = None
    for row in rows:
        step = row.get("update", row.get("step"))
        if not isinstance(step, int) or not isinstance(row.get("tokens", 0), int | float):
            continue
        start: int = step
        if row.get("attempt") != attempt:
            if isinstance(attempt, int) and isinstance(row.get("attempt"), int) and row["attempt"] < attempt:
                continue
            attempt = row.get("attempt")
            known = resumed.get(attempt)
            start = min(step, known) if isinstance(known, int) else step
        while last >= start:
            kept.pop()
            last = kept[-1].get("update", kept[-1]["step"]) if kept else -math.inf
        kept.append(row)
        last = step
    return kept


def final_record(
    config: RunConfig,
    *,
    point_id: str,
    tokens: int,
    loss: float | None,
    verdict: str,
    bits_per_byte: float | None = None,
    unique_tokens: int | None = None,
    validation_sets: Mapping[str, Mapping[str, float]] | None = None,
    flags: Sequence[str] = (),
    attempt: int = 0,
) -> dict[str, Any]:
    """The final record of a point, with every count the fits need.

    Parameters
    ----------
    tokens
        Training tokens really consumed; the FLOPs follow from them.
    loss
        Final validation loss in nats per token; None where the run did not reach one.
    verdict
        ``done``, ``diverged`` or ``failed: <cause>``.
    unique_tokens
        Distinct training tokens seen; None where none was repeated.
    validation_sets
        By name, ``loss`` and ``bits_per_byte``; ``loss`` above is the first one's.
    """
    recipe, shape, horizon = config.recipe, config.recipe.model, config.recipe.horizon(point_id)
    return {
        "schema": SCHEMA,
        "point_id": point_id,
        "run_id": config.run_id,
        "cluster_id": config.run_id,
        "sweep": config.sweep,
        "seed": recipe.seed,
        "corpus": recipe.data.corpus,
        "budget": config.budget_of(horizon.point_id),
        "axes": plain(dict(config.axes)),
        "shape": plain(shape),
        "params_total": shape.params_total,
        "params_non_embedding": shape.params_non_embedding,
        "params_embedding": shape.params_embedding,
        "params_head": shape.params_head,
        "tokens": tokens,
        "unique_tokens": tokens if unique_tokens is None else unique_tokens,
        **{f"flops_{count.value}": shape.flops(tokens, count) for count in FlopCount},
        "steps": horizon.steps,
        "batch": recipe.optim.batch,
        "lr": recipe.optim.lr,
        "schedule": recipe.schedule.decay.value,
        "horizon": horizon.tokens,
        "loss": loss,
        "loss_unit": "nats/token",
        "bits_per_byte": bits_per_byte,
        "validation_sets": plain(dict(validation_sets or {})),
        "verdict": verdict,
        "flags": list(flags),
        "attempt": attempt,
        "time": time.time(),
    }


def _sole_writer() -> None:
    """The check of those who need none; a function with a name, so that a folder can be sent to another process."""


def slurm_facts(environ: Mapping[str, str]) -> dict[str, str]:
    """The SLURM task, as its commands name it, and the node that a process runs in."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    number = f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")
    return {"slurm": number, "node": environ.get("SLURMD_NODENAME", "")} if number else {}


def lost_in_a_row(attempts: Sequence[Mapping[str, Any]]) -> int:
    """How many of the last attempts vanished at one and the same step."""
    count = 0
    for attempt in reversed(attempts):
        vanished = str(attempt.get("why", LOST)).startswith("lost:")
        if not vanished or attempt.get("resume_step") != attempts[-1].get("resume_step"):
            break
        count += 1
    return count


def killed_by_limit(attempts: Sequence[Mapping[str, Any]]) -> str | None:
    """What the scheduler killed the last attempt for, where more of the same will not help: memory, or time."""
    why = str(attempts[-1].get("why", "")) if attempts else ""
    return why if why.startswith((f"{OOM}:", f"{TIMEOUT}:")) else None


def finite_or_none(value: Any) -> Any:
    """NaN and infinities as None, which JSON can hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flaw(record: Mapping[str, Any], run_id: str) -> str | None:
    """What keeps a line of points.jsonl from being a final record; None if nothing does."""
    verdict, number = record.get("verdict"), int | float
    if record.get("run_id") != run_id:
        return f"run_id={record.get('run_id')!r} is not {run_id!r}"
    if not isinstance(record.get("point_id"), str):
        return "point_id is missing"
    if not isinstance(record.get("schema"), int):
        return "schema is missing"
    if verdict != DONE:
        known = isinstance(verdict, str) and (verdict == DIVERGED or verdict.startswith(FAILED))
        return None if known else f"verdict={verdict!r} is none of done, diverged and failed: <cause>"
    loss, tokens, horizon = record.get("loss"), record.get("tokens"), record.get("horizon")
    if not isinstance(loss, number) or not math.isfinite(loss):
        return f"loss={loss!r} is no finite number"
    if not isinstance(tokens, number) or not isinstance(horizon, number) or tokens < horizon:
        return f"tokens={tokens!r} do not reach horizon={horizon!r}"
    return None
