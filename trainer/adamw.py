"""AdamW on flat parameters: fp32 master, fp32 gradient and moments, and the copy the model computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainer.model import Group
from trainer.recipe import OptimRecipe


class FlatAdamW:
    """AdamW (Loshchilov and Hutter 2019), one fused update for each group: contiguous parts of the flat parameters.

    The groups' rates, decays and epsilons are factors on the recipe's. ``params`` is the flat tensor in the dtype of
    the forward pass: the master itself in fp32, else a copy that each update refreshes. ``rows`` are where gradient and
    ``params`` lie, of one who has made room for them.
    """

    def __init__(
        self,
        initial: Tensor,
        recipe: OptimRecipe,
        *,
        groups: Sequence[Group],
        dtype: torch.dtype,
        rows: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.master = initial
        if rows is None:
            self.gradient = torch.zeros_like(initial)
            self.params = initial if dtype is initial.dtype else initial.to(dtype)
        else:
            self.gradient, self.params = rows
            self.params.copy_(initial)
        self._recipe, self._groups = recipe, groups
        sizes = [group.params for group in groups]
        self._parts = list(zip(torch.split(self.master, sizes), torch.split(self.gradient, sizes), strict=True))
        self._state = {
            number: {
                "step": torch.zeros((), dtype=torch.float32, device=initial.device),
                "exp_avg": torch.zeros_like(param),
                "exp_avg_sq": torch.zeros_like(param),
            }
            for number, (param, _) in enumerate(self._parts)
        }

    def accumulate(self, gradients: Sequence[Tensor], *, first: bool) -> None:
        """Add a gradient, in parts that follow each other; the first one of an update replaces the last update's."""
        offset = 0
        for part in gradients:
            total = self.gradient[offset : offset + part.numel()].view_as(part)
            if first:
                total.copy_(part)
            else:
                total.add_(part)
            offset += part.numel()

    def norm(self, *, tokens: int) -> Tensor:
        """The norm of the mean's gradient, still on the device."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient) / tokens
        return norm

    def update(self, lr: float, *, tokens: int) -> Tensor:
        """Clip, update, refresh the copy; returns the gradient's norm before clipping, still on the device.

        The gradient accumulated is that of a sum over ``tokens``; what is clipped and followed is that of the mean.
        """
        recipe = self._recipe
        norm = self.norm(tokens=tokens)
        factor = (recipe.clip / (norm + 1e-6)).clamp_(max=1.0) if recipe.clip > 0 else 1.0
        self.gradient.mul_(factor / tokens)
        for number, (group, (param, gradient)) in enumerate(zip(self._groups, self._parts, strict=True)):
            state = self._state[number]
            # The class torch.optim.AdamW would do the same, but imports torch's compiler first: a second, every start.
            adamw(
                [param],
                [gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                fused=True,
                amsgrad=False,
                beta1=recipe.beta1,
                beta2=recipe.beta2,
                lr=lr * group.rate,
                weight_decay=recipe.weight_decay * group.decay,
                eps=recipe.eps * group.eps,
                maximize=False,
            )
        self._refresh()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Master parameters and moments."""
        return {"master": self.master, "adamw": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back from :meth:`state_dict`."""
        self.master.copy_(state["master"])
        for number, moments in self._state.items():
            for name, tensor in moments.items():
                tensor.copy_(state["adamw"][number][name])
        self._refresh()

    def _refresh(self) -> None:
        if self.params.dtype is not self.master.dtype:
            self.params.copy_(self.master)
