"""What a run will cost in time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.paths import SweepFolder
from trainer.config import DeviceConfig, DeviceKind
from trainer.errors import UserError
from trainer.memory import peak_bytes
from trainer.recipe import Recipe
from trainer.runfolder import DONE, RunConfig
from trainer.shape import BACKWARD_AND_FORWARD, Shape


@dataclass(frozen=True)
class Throughput:
    """FLOPs per second that the sweep's finished runs reached, by size; empty before the first one."""

    seen: Sequence[tuple[float, float]] = ()
    """(non-embedding parameters, FLOPs per second of training and evaluation)."""

    @classmethod
    def measured(cls, folder: SweepFolder, device: DeviceKind) -> Throughput:
        """From the ledgers of undisturbed finished runs on the same kind of device."""
        seen = []
        for run in folder.runs():
            attempts = run.attempts()
            records = run.points().values()
            if len(attempts) != 1 or not any(record["verdict"] == DONE for record in records) or not run.ended():
                continue
            seconds = attempts[0].get("end", math.nan) - attempts[0].get("start", math.nan)
            try:
                config = run.read_config()
            except UserError:  # a folder that is wrong is submit's to refuse; an estimate does without it
                continue
            if config.runtime.device is device and config.recipe.command is None and seconds > 0:
                seen.append((float(config.recipe.model.params_non_embedding), total_flops(config) / seconds))
        return cls(tuple(seen))

    def at(self, shape: Shape, device: DeviceConfig) -> float:
        """FLOPs per second to expect: what the run nearest in size reached, else the device's stated speed."""
        if not self.seen:
            return device.flops_per_second * device.utilisation
        size = math.log(shape.params_non_embedding)
        return min(self.seen, key=lambda known: abs(math.log(known[0]) - size))[1]


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
