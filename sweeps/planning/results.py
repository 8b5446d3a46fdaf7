"""What sweeps have measured so far, as arrays: straight from the run folders, without a data frame."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.fitting.values import Floats, Ints
from sweeps.paths import SweepFolder
from trainer.config import plain
from trainer.errors import UserError
from trainer.runfolder import DONE, RunConfig
from trainer.shape import ParamCount


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """Done points; arrays of one length."""

    params: Floats
    """N, counted as asked."""
    tokens: Floats
    flops: Floats
    """Training FLOPs, matmul count."""
    loss: Floats
    family: Ints
    """Points of one number differ in N, D and seed alone, so that one law is theirs."""
    spent: Floats
    """Training FLOPs of each point's own updates: what points of one trunk share counts once."""

    def __len__(self) -> int:
        return len(self.loss)

    def largest_family(self) -> Results:
        """The family with the most points; of equals the first."""
        if not len(self):
            return self
        kept = self.family == np.argmax(np.bincount(self.family))
        return Results(**{name: getattr(self, name)[kept] for name in self.__dataclass_fields__})


def read_results(folders: Iterable[SweepFolder], params: ParamCount, runs: Collection[str] | None = None) -> Results:
    """Every done point of some sweeps; damaged folders are passed over.

    Parameters
    ----------
    runs
        Only runs of these ids; None for all.
    """
    rows: list[tuple[float, ...]] = []
    families: dict[str, int] = {}
    for folder in folders:
        for run in folder.runs():
            if runs is not None and run.run_id not in runs:
                continue
            records = [record for record in run.points().values() if record["verdict"] == DONE]
            if not records:
                continue
            try:
                config = run.read_config()
            except UserError:
                continue
            family = families.setdefault(_family(folder.name, config), len(families))
            shape = config.recipe.model
            for record in records:
                tokens, own = record["tokens"], config.recipe.horizon(record["point_id"]).own
                spent = shape.flops(own * config.recipe.optim.batch)
                rows.append((shape.params(params), tokens, shape.flops(tokens), record["loss"], family, spent))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 6).T
    params_, tokens_, flops, loss, families_, spent_ = columns
    return Results(
        params=params_, tokens=tokens_, flops=flops, loss=loss, family=families_.astype(np.int64), spent=spent_
    )


def sweeps_of(folder: SweepFolder) -> list[SweepFolder]:
    """The sweep and every other one under its root that has runs, the sweep itself first."""
    names = {path.parent.parent.name for path in folder.root.glob("*/*/config.yaml")} - {folder.name, "corpora"}
    return [folder, *(SweepFolder(folder.root, name) for name in sorted(names))]


def _family(sweep: str, config: RunConfig) -> str:
    recipe = config.recipe
    known: dict[str, Any] = {
        "sweep": sweep,
        "corpus": plain(recipe.data),
        "decay": recipe.schedule.decay.value,
        "command": recipe.command,
        "axes": plain(dict(config.axes)),
    }
    return json.dumps(known, sort_keys=True, default=str)
