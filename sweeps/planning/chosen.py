"""``<root>/<sweep>/design.json``: the points an optimal design has chosen so far, batch by batch.

Once chosen, a point stays: results and better priors change what is chosen next, never what was. Written whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.planning.design import Target
from trainer.config import plain
from trainer.errors import UserError
from trainer.files import write_json
from trainer.recipe import SCHEMA, check_schema
from trainer.shape import Shape

DECIDING = ("model", "data", "optim", "schedule", "trainer")
"""Nodes of the config that decide what a point is; of ``trainer`` only the command."""


@dataclass(frozen=True, kw_only=True)
class ChosenPoint:
    """A point as a design wants it."""

    layers: int
    d_model: int
    tokens: float
    """Not yet whole batches."""
    budget: float | None
    seeds: tuple[int, ...]
    role: str
    """``optimal``, ``reserved`` to test the form, or ``pinned`` by hand."""

    @property
    def place(self) -> tuple[int, int, float]:
        """What it is but for its seeds."""
        return (self.layers, self.d_model, self.tokens)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Points that were chosen together."""

    points: Sequence[ChosenPoint]
    facts: Mapping[str, Any]
    """What the design said of them: limit, spent, error, efficiency, prior, noise."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """All batches of a sweep."""

    key: str
    """Of the settings that they were chosen by."""
    batches: Sequence[Batch] = field(default_factory=tuple)

    @property
    def points(self) -> list[ChosenPoint]:
        """Of all batches."""
        return [point for batch in self.batches for point in batch.points]

    def targets(self, shapes: Sequence[Shape]) -> list[list[Target]]:
        """As the planner takes them: batch by batch, each by rising size and tokens.

        Raises
        ------
        UserError
            If a shape has left the ladder.
        """
        known = {(shape.layers, shape.d_model): shape for shape in shapes}
        out: list[list[Target]] = []
        for batch in self.batches:
            out.append([])
            for point in sorted(batch.points, key=lambda each: each.place):
                shape = known.get((point.layers, point.d_model))
                if shape is None:
                    raise UserError(
                        f"design.json: layers={point.layers}, d_model={point.d_model} is off the shape ladder; give "
                        "model= back what it was, or choose another sweep.name."
                    )
                out[-1].append(Target(shape, point.tokens, point.budget, point.seeds))
        return out

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        batches = [{**plain(dict(batch.facts)), "points": [plain(at) for at in batch.points]} for batch in self.batches]
        return {"schema": SCHEMA, "key": self.key, "batches": batches}


def settings_key(config: Config) -> str:
    """A hash of what a design is chosen by: other settings want another one."""
    sweep = config.sweep
    target = {name: value for name, value in plain(sweep.target).items() if name != "half_width"}
    known = {
        "target": target | {"batches": sweep.target.half_width is not None},
        "limit": plain(sweep.limit),
        "allowed": plain(sweep.allowed),
        **({"axes": plain(sweep.axes)} if sweep.axes else {}),
        "among": plain([sweep.budgets, sweep.horizons, sweep.sizes, sweep.pinned, sweep.excluded, sweep.seeds]),
        "forecast": [config.forecast.noise, config.forecast.prior],
        "law": plain(config.law),
        "centre": plain(sweep.centre),
        **{name: plain(getattr(config, name)) for name in DECIDING if name != "trainer"},
        "command": config.trainer.command,
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_chosen(folder: SweepFolder) -> Chosen | None:
    """What has been chosen; None before the first plan.

    Raises
    ------
    UserError
        If the file is damaged, or a newer isoflop wrote it.
    """
    path = folder.path / "design.json"
    try:
        raw = json.loads(path.read_text())
        check_schema(raw.get("schema"), str(path))
        batches = []
        for entry in raw["batches"]:
            points = [ChosenPoint(**{**point, "seeds": tuple(point["seeds"])}) for point in entry["points"]]
            batches.append(Batch(points=points, facts={key: entry[key] for key in entry if key != "points"}))
        return Chosen(key=raw["key"], batches=batches)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; restore it, or move it away to choose again.") from None


def write_chosen(folder: SweepFolder, chosen: Chosen, found: Chosen | None) -> Chosen:
    """Write the file, whole, unless another process has written since ``found`` was read; returns what it now holds.

    Choosing takes seconds, in which another command may have chosen as well, and begun to train what it chose.
    """
    there = read_chosen(folder)
    if there is not None and (found is None or there.to_dict() != found.to_dict()):
        return there
    write_json(folder.path / "design.json", chosen.to_dict())
    return chosen
