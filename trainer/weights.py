"""The parameters of a point, from its run's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import checkpoint
from trainer.errors import UserError
from trainer.model import Slot, slots
from trainer.runfolder import RunConfig, RunFolder


@dataclass(frozen=True, kw_only=True)
class PointWeights:
    """What a checkpoint holds of a point."""

    config: RunConfig
    point_id: str
    tokens: int
    """Trained so far."""
    flat: Tensor
    """(params_total,), fp32."""

    def tensors(self) -> dict[str, tuple[Slot, Tensor]]:
        """Every parameter tensor by name, with what is known of it; views of ``flat``."""
        recipe = self.config.recipe
        layout = slots(recipe.model, recipe.scaling)
        parts = torch.split(self.flat, [slot.params for slot in layout])
        return {slot.name: (slot, part.view(slot.size)) for slot, part in zip(layout, parts, strict=True)}


def read_weights(run: RunFolder, point_id: str) -> PointWeights | None:
    """The newest valid state of a point; None where there is none.

    A point that another of its run's points follows has one only once it is done.

    Raises
    ------
    UserError
        If the folder is damaged, or an external trainer's, whose checkpoints only that knows.
    """
    config = run.read_config()
    recipe = config.recipe
    if recipe.command is not None:
        raise UserError(
            f"point={point_id}: trainer.command={recipe.command} trained it, and only that program can read its "
            "checkpoints; choose a point that isoflop trained."
        )
    horizon = next(horizon for horizon in recipe.horizons if horizon.point_id == point_id)
    own = () if horizon is recipe.horizons[-1] else (checkpoint.branch_end(horizon.tokens),)
    found = next(checkpoint.valid(run.checkpoints, run.run_id, own or checkpoint.SLOTS), None)
    if found is None:
        return None
    tokens = int(found.state.get("tokens", found.step * recipe.optim.batch))
    return PointWeights(config=config, point_id=point_id, tokens=tokens, flat=found.state["optimizer"]["master"])
