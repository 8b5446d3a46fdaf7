"""What a run will cost in time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.paths import SweepFolder
from trainer.config import DeviceConfig, DeviceKind, Way
from trainer.errors import UserError
from trainer.memory import native_bytes, peak_bytes
from trainer.native.build import NATIVE, compiler_for, knows
from trainer.recipe import Recipe
from trainer.runfolder import DONE, RunConfig, RunFolder, Runtime
from trainer.shape import BACKWARD_AND_FORWARD

MOST_FOLDERS = 200
"""Run folders of other sweeps that are looked at, newest first: a root may hold many thousands."""
LEAST_RATIO = 0.8
"""Of what a run took to what the model says: less is a worker's second run, for which it still had the first one's."""
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
    native: bool = False
    """Whether the C++ step trained it."""


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
        return self.measured(recipe) or device.flops_per_second * device.utilisation

    def measured(self, recipe: Recipe) -> float | None:
        """FLOPs per second of the run most like this one; None before there is one."""
        near = self._nearest(recipe, [one for one in self.ran if one.flops_per_second is not None])
        return None if near is None else near.flops_per_second

    def memory(self, recipe: Recipe, sequences: int, runtime: Runtime, *, native: bool | None = None) -> float:
        """Peak bytes of a step over ``sequences`` sequences: the model's, corrected by the run most like this one.

        Parameters
        ----------
        native
            Whether it is the C++ step; None for whatever that run took, without one what is to be expected.
        """
        ran = [one for one in self.ran if one.memory_ratio is not None and native in (None, one.native)]
        near = self._nearest(recipe, ran)
        if near is None or near.memory_ratio is None:
            expected = expects_native(recipe, runtime) if native is None else native
            return step_memory(recipe, sequences, runtime, native=expected)
        return step_memory(recipe, sequences, runtime, native=near.native) * near.memory_ratio

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
    native = config.kernels.get("step") == NATIVE
    sequences = config.runtime.micro_batch or sequences_of(recipe, devices)
    modelled = step_memory(recipe, sequences, config.runtime, native=native)
    return Ran(
        recipe=recipe,
        own=own,
        processor=str(config.kernels.get("processor", "")),
        flops_per_second=total_flops(config) / seconds / devices if undisturbed else None,
        memory_ratio=max(max(peaks) / modelled, LEAST_RATIO) if peaks and max(peaks) > 0 else None,
        native=native,
    )


def sequences_of(recipe: Recipe, devices: int) -> int:
    """How many of a batch's one of the devices has that share it."""
    return math.ceil(recipe.sequences / devices)


def memory_of(run: RunConfig, experience: Experience, device: DeviceConfig) -> float:
    """Peak bytes of a run on one of the devices that share its batches; of one of those that share a device."""
    sequences = run.runtime.micro_batch or sequences_of(run.recipe, device.per_run)
    return experience.memory(run.recipe, sequences, run.runtime, native=False if device.together > 1 else None)


def total_flops(run: RunConfig) -> float:
    """Training FLOPs, a trunk's once, plus those of the validations."""
    recipe = run.recipe
    tokens = recipe.data.eval_windows * recipe.model.sequence * len(run.runtime.eval_steps)
    return recipe.flops_spent + recipe.model.flops(tokens) / BACKWARD_AND_FORWARD


def total_seconds(run: RunConfig, flops_per_second: float) -> float:
    """How long a run takes on one device."""
    return total_flops(run) / flops_per_second


def step_memory(recipe: Recipe, sequences: int, runtime: Runtime, *, native: bool) -> float:
    """Peak bytes of a forward and backward pass over ``sequences`` sequences on one device."""
    if native:
        return native_bytes(recipe.model, recipe.dtype, runtime.threads)
    return peak_bytes(recipe.model, sequences, recipe.dtype, runtime.device)


def expects_native(recipe: Recipe, runtime: Runtime) -> bool:
    """Whether the C++ step is what will train a run, if workers are like this machine."""
    wanted = runtime.device is DeviceKind.cpu and runtime.way is Way.auto and recipe.command is None
    return wanted and knows(recipe.model) and compiler_for(recipe.dtype) is not None
