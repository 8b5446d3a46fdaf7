"""Mirrors of a run's rows. The run folder is the record; a mirror may fail without costing the run anything."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.runfolder import RunConfig

INIT_SECONDS = 30.0
"""How long training waits for W&B's answer at the start."""


class Tracker(Protocol):
    """Where rows go."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one metrics row."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Take the run's final values."""

    def finish(self, exit_ok: bool) -> None:
        """Hand over what is pending and close; ``exit_ok`` says that the run reached its verdict."""


class NoTracker:
    """Takes everything, keeps nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Drop it."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Drop them."""

    def finish(self, exit_ok: bool) -> None:
        """Nothing is pending."""


class Shielded:
    """Several trackers as one. A tracker that fails is warned about once and left out from then on."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand the row to each."""
        self._each("log", row)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Hand the values to each."""
        self._each("summary", values)

    def finish(self, exit_ok: bool) -> None:
        """Close each."""
        self._each("finish", exit_ok)

    def _each(self, method: str, argument: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(argument)
            except Exception as error:
                self._trackers.remove(tracker)
                _warn(f"{type(tracker).__name__}.{method}", error)


class WandbTracker:
    """A W&B run with the run's own id: id and name = run id, group = sweep, x axis = tokens.

    A resumed run logs some rows twice online; W&B's own step is never used, so readers tell them apart by ``tokens``.
    """

    def __init__(self, folder: Path, config: RunConfig, attempt: int, job: str) -> None:
        import wandb

        tracking = config.runtime.tracking
        self._every = tracking.every_seconds
        self._pending: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            mode=tracking.mode.value,
            dir=str(folder),
            id=config.run_id,
            name=config.run_id,
            group=config.sweep,
            job_type="train",
            tags=_tags(config),
            resume="allow",
            config=config.to_dict() | {"attempt": attempt, "job": job},
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, x_disable_stats=True),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep the row until ``every_seconds`` have passed since rows were last handed over."""
        self._pending.append({key: value for key, value in row.items() if value is not None})
        if time.monotonic() - self._flushed >= self._every:
            self._flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write the run's summary; values logged in an earlier attempt do not count for W&B otherwise."""
        self._flush()
        self._run.summary.update(dict(values))

    def finish(self, exit_ok: bool) -> None:
        """Hand over what is pending and close the run."""
        self._flush()
        self._run.finish(exit_code=0 if exit_ok else 1)

    def _flush(self) -> None:
        for row in self._pending:
            self._run.log(row)
        self._pending.clear()
        self._flushed = time.monotonic()


def summary_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a mirror is told of a final record: with the config, all that it holds.

    Its tokens are ``final_tokens``, as ``tokens`` is the metrics' axis.
    """
    told = {name: record[name] for name in ("verdict", "loss", "bits_per_byte", "unique_tokens", "flags")}
    sets = record["validation_sets"]
    if len(sets) > 1:
        told |= {f"val_loss_{name}": measured["loss"] for name, measured in sets.items()}
        told |= {f"bits_per_byte_{name}": measured["bits_per_byte"] for name, measured in sets.items()}
    return told | {"final_tokens": record["tokens"]}


def branch_key(tokens: int) -> str:
    """Where the summary tells of a point that is not its run's last."""
    return f"branch.{tokens}"


def open_tracker(folder: Path, config: RunConfig, *, attempt: int, job: str) -> Tracker:
    """The mirror a run asks for; where it cannot be opened, a warning and no mirror."""
    tracking: TrackingConfig = config.runtime.tracking
    if tracking.backend is Backend.none or tracking.mode is WandbMode.disabled:
        return NoTracker()
    try:
        os.environ.setdefault("WANDB_SILENT", "true")
        return Shielded([WandbTracker(folder, config, attempt, job)])
    except Exception as error:
        _warn("wandb.init", error)
        return NoTracker()


def _tags(config: RunConfig) -> list[str]:
    size = f"params={config.recipe.model.params_non_embedding:.3g}"
    return [size] if config.budget is None else [f"budget={config.budget:.3g}", size]


def _warn(what: str, error: Exception) -> None:
    first = (str(error).splitlines() or [""])[0]
    warnings.warn(
        f"the run is no longer mirrored, but goes on: {what} failed with {type(error).__name__}: {first}", stacklevel=3
    )
