"""Which runs one device may train as one model (:mod:`trainer.together`)."""

from __future__ import annotations

from typing import Any

from trainer.native.build import NATIVE
from trainer.runfolder import RunConfig


def alike(config: RunConfig) -> tuple[Any, ...] | None:
    """What runs that may be trained together have in common; None for one that has to stay alone.

    Such is one whose earlier attempts took the C++ step, or that another program trains.
    """
    recipe, runtime, kernels = config.recipe, config.runtime, config.kernels
    if recipe.command is not None or kernels.get("step") == NATIVE:
        return None
    batch = recipe.optim.batch, runtime.micro_batch, recipe.optim.z_loss
    place = runtime.device, runtime.threads, runtime.way, kernels.get("attention"), kernels.get("way")
    return recipe.model, recipe.scaling, recipe.dtype, *batch, *place
