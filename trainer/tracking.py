"""What W&B is told of a run: its identity, config, rows and final values, all taken from the run folder.

Nothing here is part of training. A :class:`WandbRun` can be opened at any time, by the mirror that follows a run
(:mod:`trainer.mirror`) or long afterwards; it hands over the rows that W&B does not have yet, each at most once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.runfolder import FAILED, RunConfig
from trainer.wandb_log import MAGIC, records

EXACT = "exact"
"""The key under which the config holds itself as JSON text: W&B writes 1.0 as 1, and drops mappings without keys."""
INIT_SECONDS = 120.0
"""How long W&B may take to take a run up,"""
WRITE_SECONDS = 10.0
"""and to have all of an offline run in its file."""
LEAN: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""W&B gathers nothing by itself: the config carries commit and versions, and it would describe the mirror's process."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run as W&B is told of it, wherever it was read."""

    run_id: str
    sweep: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    """Rows that no later attempt will void, in their order: the number of a row is its step in W&B."""
    summary: Mapping[str, Any]
    """Final values; empty while the run has not ended."""


def is_tracked(tracking: TrackingConfig) -> bool:
    """Whether a run asks for a mirror."""
    return tracking.backend is Backend.wandb and tracking.mode is not WandbMode.disabled


def story_config(config: RunConfig, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The full resolved config, with the git commit, the job that trains the run now, and the number of its attempt."""
    last: Mapping[str, Any] = attempts[-1] if attempts else {}
    return config.to_dict() | {
        EXACT: json.dumps(config.to_dict()),
        "git_commit": config.provenance.get("git"),
        "job": str(last.get("slurm") or last.get("job") or ""),
        "attempt": last.get("attempt", 0),
        "host": last.get("host"),
    }


def tags(config: RunConfig) -> list[str]:
    """The run's budget, where it has one, and its size."""
    size = f"params={config.recipe.model.params_non_embedding:.3g}"
    return [size] if config.budget is None else [f"budget={config.budget:.3g}", size]


def told_row(row: Mapping[str, Any], config: RunConfig, devices: int = 1) -> dict[str, Any]:
    """A metrics row as W&B gets it: no empty values, its own time, and the share of the devices' peak (``mfu``)."""
    told = {key: value for key, value in row.items() if value is not None and key != "time"}
    if isinstance(row.get("time"), int | float):
        told["_timestamp"] = row["time"]
    speed, peak = row.get("tokens_per_second"), config.runtime.peak_flops
    if "mfu" not in told and peak and isinstance(speed, int | float):
        told["mfu"] = speed * config.recipe.model.flops(1) / (peak * devices)
    return told


def summary_of(points: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What W&B is told of a run's final records, by point id: the last point's values, and all records as JSON text.

    The last point's tokens are ``final_tokens``, as ``tokens`` is the metrics' axis.
    """
    last = max(points.values(), key=lambda record: record["tokens"])
    told: dict[str, Any] = {
        name: last.get(name) for name in ("verdict", "loss", "bits_per_byte", "unique_tokens", "flags")
    }
    sets = last.get("validation_sets") or {}
    if len(sets) > 1:
        for what, name in (("val_loss", "loss"), ("bits_per_byte", "bits_per_byte")):
            told |= {f"{what}_{one}": measured.get(name) for one, measured in sets.items()}
    whole = {"final_tokens": last["tokens"], "points": json.dumps(list(points.values()))}
    return {name: value for name, value in told.items() if value is not None} | whole


class WandbRun:
    """One run in W&B while it is open: id and name = run id, group = sweep, axes = tokens and FLOPs.

    Online, W&B's server knows how many rows it has, and gets those after them. Offline, the run is written anew and
    whole, and what earlier attempts left on disk is removed once it is.

    Parameters
    ----------
    folder
        Under it lie W&B's own files, in ``wandb/``.
    final
        Whether W&B may take the run to be over when it is closed here; not so of one that goes on elsewhere.

    Raises
    ------
    Exception
        Whatever W&B's client raises; here, and from every method.
    """

    def __init__(self, folder: Path, story: Story, tracking: TrackingConfig, *, final: bool = True) -> None:
        import wandb

        place = folder / "wandb"
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):  # W&B would write into /tmp instead
            raise PermissionError(f"{place} cannot be written to")
        known = wandb.Settings.model_fields
        lean: dict[str, Any] = LEAN | {"init_timeout": INIT_SECONDS, "x_update_finish_state": final}
        self._story, self._offline, self._final = story, tracking.mode is WandbMode.offline, final
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            mode=tracking.mode.value,
            dir=str(folder),
            id=story.run_id,
            name=story.run_id,
            group=story.sweep,
            job_type="train",
            tags=list(story.tags),
            resume="allow",
            config=dict(story.config),
            reinit="create_new",
            settings=wandb.Settings(**{name: value for name, value in lean.items() if name in known}),
        )
        self.handed_over = int(self._run.starting_step)
        """Rows that W&B has."""
        if self.handed_over:  # W&B holds on to what it was told at first
            config: Any = self._run.config
            config.update(dict(story.config), allow_val_change=True)
        for axis in ("tokens", "flops"):
            self._run.define_metric(axis)
        self._run.define_metric("val_loss", step_metric="flops")
        self._run.define_metric("*", step_metric="tokens")

    def hand_over(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Give W&B those of all the run's rows that it does not have."""
        for number in range(self.handed_over, len(rows)):
            self._run.log(dict(rows[number]), step=number, commit=True)
        self.handed_over = max(self.handed_over, len(rows))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the run with its final values; without any, as one that was preempted, or that goes on elsewhere.

        Raises
        ------
        OSError
            If W&B's file is not whole: its disk is full, for example.
        """
        if summary:  # those logged by an earlier attempt do not count for W&B otherwise
            self._run.summary.update(dict(summary))
        elif self._final:
            self._run.mark_preempting()
        directory = Path(self._run.dir).parent
        failed = not summary or str(summary["verdict"]).startswith(FAILED)
        self._run.finish(exit_code=1 if failed else 0)
        if self._offline:
            self._keep_one(directory)

    def _keep_one(self, newest: Path) -> None:
        file = newest / f"run-{self._story.run_id}.wandb"
        deadline = time.monotonic() + WRITE_SECONDS
        while not _is_closed(file):
            if time.monotonic() > deadline:
                raise OSError(f"W&B did not write all of {file}; is its disk full?")
            time.sleep(0.05)
        for earlier in newest.parent.glob(f"offline-run-*-{self._story.run_id}"):
            if earlier != newest:
                shutil.rmtree(earlier, ignore_errors=True)


def _is_closed(file: Path) -> bool:
    """Whether a .wandb file holds all of a run, to the record of its exit, which is among the last."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    raw, faults = file.read_bytes(), list[str]()
    found = list(records(raw, faults)) if raw.startswith(MAGIC) else []
    return not faults and any(Record.FromString(one).WhichOneof("record_type") == "exit" for one in found[-4:])
