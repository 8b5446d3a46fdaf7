"""How many runs of one shape a GPU trains as one model, where the plan is to say (``device.together=0``). Pure.

As many as make up for what one of them leaves idle, but no more than there are, and than fit into the device's memory.
What one leaves idle is what the device's stated speed exceeds its own by: that of a finished run like it, else that of
a model so small that launching its kernels takes all of its time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from sweeps.planning.cost import Experience, memory_of
from trainer.alike import alike
from trainer.config import DeviceConfig, DeviceKind
from trainer.recipe import Recipe
from trainer.runfolder import RunConfig

LAYER_KERNELS = 60
"""That a layer of torch's eager step launches, forward and backward, about."""
KERNEL_SECONDS = 3e-6
"""What a small one takes at least, however fast the device."""
MOST = 32
"""Each run has a thread of Python of its own, and these take turns."""
ROOM = 0.9
"""Of the device's memory."""


def runs_together(runs: Iterable[RunConfig], device: DeviceConfig, experience: Experience) -> dict[str, int]:
    """By run id, how many runs like it share a device at most: as stated, or chosen."""
    every = {run.run_id: run for run in runs}
    if device.together:
        return dict.fromkeys(every, device.together)
    if device.kind is not DeviceKind.cuda or device.per_run > 1:
        return dict.fromkeys(every, 1)
    kinds = Counter(map(alike, every.values()))
    return {run_id: _chosen(run, kinds[alike(run)], device, experience) for run_id, run in every.items()}


def _chosen(run: RunConfig, like_it: int, device: DeviceConfig, experience: Experience) -> int:
    if alike(run) is None:
        return 1
    fit = ROOM * device.memory_gb * 1e9 / memory_of(run, experience, device)
    return max(1, math.floor(min(like_it, MOST, fit, filling(run.recipe, device, experience))))


def filling(recipe: Recipe, device: DeviceConfig, experience: Experience) -> float:
    """How many runs like this one the device's stated speed is enough for."""
    stated = device.flops_per_second * device.utilisation
    flops = recipe.model.flops(recipe.optim.batch)
    launching = recipe.model.layers * LAYER_KERNELS * KERNEL_SECONDS
    reached = experience.measured(recipe) or flops / max(launching, flops / stated)
    return stated / reached


def packing_text(together: Mapping[str, int]) -> str | None:
    """Of each run's number a line; None where every run has a device to itself."""
    counts = sorted(Counter(together.values()).items(), reverse=True)
    if not counts or counts[0][0] == 1:
        return None
    said = ", ".join(f"up to {most} for {runs}" if most > 1 else f"{runs} alone" for most, runs in counts)
    return f"runs of one shape as one model on a device: {said} (device.together)"
