"""AdamW on flat parameters: fp32 master, fp32 gradient and moments, and the copy the model computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.model import Group
from trainer.recipe import OptimRecipe


class FlatAdamW:
    """AdamW (Loshchilov and Hutter 2019), one fused update for each group: contiguous parts of the flat parameters.

    The groups' rates, decays and epsilons are factors on the recipe's. ``params`` is the flat tensor in the dtype of
    the forward pass: the master itself in fp32, else a copy that each update refreshes.
    """

    def __init__(self, initial: Tensor, recipe: OptimRecipe, *, groups: Sequence[Group], dtype: torch.dtype) -> None:
        self.master = initial
        self.gradient = torch.zeros_like(initial)
        self.params = initial if dtype is initial.dtype else initial.to(dtype)
        self._clip = recipe.clip
        self._rates = [group.rate for group in groups]
        sizes = [group.params for group in groups]
        parts = []
        for group, param, gradient in zip(
            groups, torch.split(self.master, sizes), torch.split(self.gradient, sizes), strict=True
        ):
            param.grad = gradient
            decay, eps = recipe.weight_decay * group.decay, recipe.eps * group.eps
            parts.append({"params": [param], "weight_decay": decay, "eps": eps})
        self._adamw = torch.optim.AdamW(parts, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)

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

    def update(self, lr: float, *, tokens: int) -> Tensor:
        """Clip, update, refresh the copy; returns the gradient's norm before clipping, still on the device.

        The gradient accumulated is that of a sum over ``tokens``; what is clipped and followed is that of the mean.
        """
        norm: Tensor = torch.linalg.vector_norm(self.gradient) / tokens
        factor = (self._clip / (norm + 1e-6)).clamp_(max=1.0) if self._clip > 0 else 1.0
        self.gradient.mul_(factor / tokens)
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate
        self._adamw.step()
        self._refresh()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Master parameters and moments."""
        return {"master": self.master, "adamw": self._adamw.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back from :meth:`state_dict`."""
        self.master.copy_(state["master"])
        groups = self._adamw.state_dict()["param_groups"]
        self._adamw.load_state_dict({"state": state["adamw"], "param_groups": groups})
        self._refresh()

    def _refresh(self) -> None:
        if self.params is not self.master:
            self.params.copy_(self.master)
