"""What a run will cost in time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.paths import SweepFolder
from trainer.config import DeviceConfig, DeviceKind
from trainer.errors import UserError
from trainer.memory import peak_bytes
from trainer.recipe import Recipe
from trainer.runfolder import DONE, RunConfig, RunFolder
from trainer.shape import BACKWARD_AND_FORWARD

MOST_FOLDERS = 200
"""Run folders of other sweeps that are looked at, newest first: a root may hold many thousands."""
WEIGHTS = {"params": 1.0, "sequence": 1.0, "batch": 0.5}
"""How much a factor of e in each makes two runs unlike in speed."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What one run reached on one device."""

    recipe: Recipe
    own: bool
    """Whether it is of the sweep that is planned."""
    processor: str = ""
    flops_per_second: float | None = None
    """Of training and evaluation; None where the run was disturbed."""
    memory_ratio: float | None = None
    """Peak bytes over what :func:`step_memory` says; None where they were not measured."""


@dataclass(frozen=True)
class Experience:
    """What the root's finished runs on a kind of device tell about the next ones; empty before the first one."""

    ran: Sequence[Ran] = ()

    @classmethod
    def of(cls, folder: SweepFolder, device: DeviceConfig) -> Experience:
        """From the ledgers of the sweep, and of the root's other sweeps where their device may be the same."""
        others = [run for sweep in _sweeps(folder.root) if sweep.name != folder.name for run in sweep.runs()]
        others.sort(key=lambda run: -run.path.stat().st_mtime)
        looked = [(run, True) for run in folder.runs()] + [(run, False) for run in others[:MOST_FOLDERS]]
        ran = [found for run, own in looked if (found := _ran(run, device.kind, own=own)) is not None]
        if device.kind is DeviceKind.cuda:  # "NVIDIA H100 80GB HBM3" is an h100
            ran = [one for one in ran if one.own or device.name.lower() in one.processor.lower()]
        return cls(ran)

    def flops_per_second(self, recipe: Recipe, device: DeviceConfig) -> float:
        """What to expect: what the run most like this one reached, else the device's stated speed."""
        near = self._nearest(recipe, [one for one in self.ran if one.flops_per_second is not None])
        if near is None or near.flops_per_second is None:
            return device.flops_per_second * device.utilisation
        return near.flops_per_second

    def memory(self, recipe: Recipe, sequences: int, device: DeviceKind) -> float:
        """Peak bytes of a pass over ``sequences`` sequences: the model's, corrected by the run most like this one."""
        near = self._nearest(recipe, [one for one in self.ran if one.memory_ratio is not None])
        ratio = 1.0 if near is None or near.memory_ratio is None else near.memory_ratio
        return step_memory(recipe, sequences, device) * ratio

    def _nearest(self, recipe: Recipe, ran: Sequence[Ran]) -> Ran | None:
        """The most alike; of the sweep's own runs, if there are any."""
        own = [one for one in ran if one.own]
        here = _traits(recipe)
        return min(own or ran, key=lambda one: _distance(here, _traits(one.recipe)), default=None)


NONE_YET = Experience()
"""Of a root without finished runs."""


def _traits(recipe: Recipe) -> dict[str, float]:
    shape = recipe.model
    return {"params": shape.params_non_embedding, "sequence": shape.sequence, "batch": recipe.optim.batch}


def _distance(one: Mapping[str, float], two: Mapping[str, float]) -> float:
    return sum(weight * abs(math.log(one[name] / two[name])) for name, weight in WEIGHTS.items())


def _sweeps(root: Path) -> list[SweepFolder]:
    return [SweepFolder(root, path.parent.name) for path in sorted(root.glob("*/plan.json"))]


def _ran(run: RunFolder, device: DeviceKind, *, own: bool) -> Ran | None:
    """What a done run of our own trainer reached; None for any other."""
    attempts = run.attempts()
    if not attempts or not any(record["verdict"] == DONE for record in run.points().values()):
        return None
    try:
        config = run.read_config()
    except UserError:  # a folder that is wrong is submit's to refuse; an estimate does without it
        return None
    recipe = config.recipe
    if config.runtime.device is not device or recipe.command is not None:
        return None
    seconds = attempts[0].get("end", math.nan) - attempts[0].get("start", math.nan)
    alone = [attempt for attempt in attempts if attempt.get("together", 1) == 1]
    undisturbed = len(attempts) == len(alone) == 1 and seconds > 0 and run.ended()
    peaks = [attempt["peak_bytes"] for attempt in alone if isinstance(attempt.get("peak_bytes"), int | float)]
    devices = int(attempts[0].get("devices", 1))
    modelled = step_memory(recipe, config.runtime.micro_batch or sequences_of(recipe, devices), device)
    return Ran(
        recipe=recipe,
        own=own,
        processor=str(config.kernels.get("processor", "")),
        flops_per_second=total_flops(config) / seconds / devices if undisturbed else None,
        memory_ratio=max(peaks) / modelled if peaks and max(peaks) > 0 else None,
    )


def sequences_of(recipe: Recipe, devices: int) -> int:
    """How many of a batch's one of the devices has that share it."""
    return math.ceil(recipe.sequences / devices)


def memory_of(run: RunConfig, experience: Experience, devices: int) -> float:
    """Peak bytes of a run on one of the devices that share its batches."""
    sequences = run.runtime.micro_batch or sequences_of(run.recipe, devices)
    return experience.memory(run.recipe, sequences, run.runtime.device)


def total_flops(run: RunConfig) -> float:
    """Training FLOPs, a trunk's once, plus those of the validations."""
    recipe = run.recipe
    tokens = recipe.data.eval_windows * recipe.model.sequence * len(run.runtime.eval_steps)
    return recipe.flops_spent + recipe.model.flops(tokens) / BACKWARD_AND_FORWARD


def total_seconds(run: RunConfig, flops_per_second: float) -> float:
    """How long a run takes on one device."""
    return total_flops(run) / flops_per_second


def step_memory(recipe: Recipe, sequences: int, device: DeviceKind) -> float:
    """Peak bytes of a forward and backward pass over ``sequences`` sequences on one device; CPUs keep the scores."""
    return peak_bytes(recipe.model, sequences, scores_kept=device is DeviceKind.cpu)
