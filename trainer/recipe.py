"""A recipe: everything that decides what a run measures, as numbers; and the identity made from it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainer.config import Cooldown, Decay, Parametrisation, Precision, plain
from trainer.errors import UserError
from trainer.shape import Activation, FlopCount, Positions, Shape

SCHEMA = 1
"""Version of what a run folder holds; folders of a newer one are refused."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The corpus, by content, and the validation windows."""

    corpus: str
    eval_windows: int


@dataclass(frozen=True, kw_only=True)
class OptimRecipe:
    """AdamW's numbers; ``batch`` in tokens per update, a multiple of the sequence length."""

    lr: float
    batch: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    z_loss: float = 0.0
    guard: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A parametrisation other than the standard one, and the shape it is the same at (see :mod:`trainer.scaling`)."""

    rule: Parametrisation
    width: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """The learning rate's course in steps; ``final`` is relative to the peak."""

    decay: Decay
    warmup_steps: int
    cooldown_steps: int
    cooldown_shape: Cooldown
    final: float


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A horizon shorter than the run's: the trunk is left for a cooldown that ends there."""

    steps: int
    cooldown_steps: int


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """Where one point of a run ends. A run with branches makes its updates in the order of its horizons.

    First what the trunk still lacks up to the cooldown, then the cooldown; the trunk goes on from where it was left.
    """

    point_id: str
    steps: int
    """Updates along its own path: those of the trunk and of its cooldown."""
    cooldown_steps: int
    tokens: int
    trunk: int
    """Updates of the trunk that earlier horizons have made."""
    before: int
    """Updates of the whole run, cooldowns too, before its own."""

    @property
    def own(self) -> int:
        """Updates that are made for it alone, or for it and later ones; over a run they add up to all updates."""
        return self.steps - self.trunk


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. Two runs of one recipe are the same run, on whatever machine, under whatever name."""

    model: Shape
    data: DataRecipe
    optim: OptimRecipe
    schedule: ScheduleRecipe
    steps: int
    """Of the longest horizon, to which ``schedule`` belongs."""
    seed: int
    dtype: Precision
    command: str | None = None
    branches: tuple[Branch, ...] = ()
    """Shorter horizons on the same trunk, rising (wsd)."""
    scaling: Scaling | None = None
    """None: the standard parametrisation."""

    @property
    def tokens(self) -> int:
        """Training tokens of the longest horizon: whole batches."""
        return self.steps * self.optim.batch

    @cached_property
    def horizons(self) -> tuple[Horizon, ...]:
        """The points that the run gives, rising."""
        ends = [*self.branches, Branch(steps=self.steps, cooldown_steps=self.schedule.cooldown_steps)]
        found: list[Horizon] = []
        trunk = before = 0
        for end in ends:
            tokens = end.steps * self.optim.batch
            name = f"{self.run_id}@{tokens}" if self.branches else self.run_id
            found.append(
                Horizon(
                    point_id=name,
                    steps=end.steps,
                    cooldown_steps=end.cooldown_steps,
                    tokens=tokens,
                    trunk=trunk,
                    before=before,
                )
            )
            before += found[-1].own
            trunk = end.steps - end.cooldown_steps
        return tuple(found)

    def horizon(self, point_id: str) -> Horizon:
        """Of one point; the longest for an id that is not the run's."""
        return next((horizon for horizon in self.horizons if horizon.point_id == point_id), self.horizons[-1])

    @property
    def updates(self) -> int:
        """All updates, the trunk's once."""
        return sum(horizon.own for horizon in self.horizons)

    @property
    def sequences(self) -> int:
        """Sequences per update."""
        return self.optim.batch // self.model.sequence

    def flops(self, count: FlopCount = FlopCount.matmul) -> float:
        """Planned training FLOPs of the longest horizon."""
        return self.model.flops(self.tokens, count)

    @property
    def flops_spent(self) -> float:
        """Planned training FLOPs of the whole run, by the matmul count."""
        return self.model.flops(self.updates * self.optim.batch)

    def to_dict(self) -> dict[str, Any]:
        """As JSON and YAML know it, without what is off: see :data:`LATER`."""
        out: dict[str, Any] = plain(self)
        for part, defaults in LATER.items():
            holder = out[part] if part else out
            for name, off in defaults.items():
                if holder[name] == off:
                    del holder[name]
        return out

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Recipe:
        """Back from :meth:`to_dict`."""
        model = dict(raw["model"])
        model["activation"] = Activation(model["activation"])
        model["positions"] = Positions(model["positions"])
        schedule = dict(raw["schedule"])
        schedule["decay"] = Decay(schedule["decay"])
        schedule["cooldown_shape"] = Cooldown(schedule["cooldown_shape"])
        return cls(
            model=Shape(**model),
            data=DataRecipe(**raw["data"]),
            optim=OptimRecipe(**raw["optim"]),
            schedule=ScheduleRecipe(**schedule),
            steps=raw["steps"],
            seed=raw["seed"],
            dtype=Precision(raw["dtype"]),
            command=raw["command"],
            scaling=_scaling(raw.get("scaling")),
            branches=tuple(Branch(**branch) for branch in raw.get("branches", ())),
        )

    @cached_property
    def run_id(self) -> str:
        """Readable prefix plus a hash of every number above, floats in full."""
        canonical = json.dumps({"schema": SCHEMA, **self.to_dict()}, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
        c, n, d = self.flops(), self.model.params_non_embedding, self.tokens
        return f"c{_scientific(c)}-n{_short(n)}-d{_short(d)}-{digest}"

    @property
    def point_ids(self) -> tuple[str, ...]:
        """The points this run gives: one, under the run's own id; of several, each with its tokens behind an @."""
        return tuple(horizon.point_id for horizon in self.horizons)


def check_split(recipe: Recipe, devices: int) -> None:
    """Refuse a batch that cannot be split over devices.

    Raises
    ------
    UserError
        If its sequences are no multiple of ``devices``.
    """
    sequences = recipe.sequences
    if sequences % devices:
        most = next(fewer for fewer in range(devices - 1, 0, -1) if sequences % fewer == 0)
        raise UserError(
            f"optim.batch={recipe.optim.batch} is {sequences} sequences, which cannot be split over {devices} devices "
            f"evenly ({recipe.run_id}); choose device.per_run={most}, or with optim.batch_min and optim.batch_max a "
            f"batch of {devices * recipe.model.sequence} tokens or a multiple."
        )


def _scaling(raw: dict[str, Any] | None) -> Scaling | None:
    return None if raw is None else Scaling(**{**raw, "rule": Parametrisation(raw["rule"])})


LATER: dict[str, dict[str, Any]] = {
    "": {"branches": [], "scaling": None},
    "model": {"qk_norm": False},
    "optim": {"z_loss": 0.0, "guard": 0.0},
}
"""What recipes had no word for at first, by part, and the value that means as before: such a value is not written, so
that the ids of older runs stay what they are."""


def _scientific(value: float) -> str:
    """12345 -> 1.2e4, 3e12 -> 3e12."""
    exponent = math.floor(math.log10(value))
    mantissa = round(value / 10**exponent, 1)
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:g}e{exponent}"


def _short(value: float) -> str:
    """55296 -> 55k, 5400000 -> 5.4M: two digits at least."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.1f}{suffix}" if scaled < 10 else f"{scaled:.0f}{suffix}"
    return f"{value:.0f}"


def check_schema(version: Any, where: str, *, known: int = SCHEMA, remedy: str = "choose another root=") -> None:
    """Refuse what a newer isoflop wrote.

    Parameters
    ----------
    known
        The newest version that this program reads.
    remedy
        What else than an upgrade helps.

    Raises
    ------
    UserError
        If ``version`` is newer than this program's, or no version at all.
    """
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{where}: schema={version!r} is not a version number; the file is damaged or not isoflop's.")
    if version > known:
        raise UserError(
            f"{where}: schema={version} was written by a newer isoflop (this one knows up to {known}); "
            f"upgrade isoflop or {remedy}."
        )
