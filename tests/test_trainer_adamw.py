"""The flat optimiser against torch's own on separate tensors."""

from __future__ import annotations

import pytest
import torch

from trainer.adamw import FlatAdamW
from trainer.model import Group
from trainer.recipe import OptimRecipe

RECIPE = OptimRecipe(lr=0.01, batch=64, beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1, clip=0.0)


def test_groups_learn_at_their_own_rate_decay_and_epsilon() -> None:
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(30, generator=generator)
    groups = [Group(12, 1.0, 1.0, 1.0), Group(8, 0.25, 4.0, 100.0), Group(10, 2.0, 0.0, 1.0)]
    plain = [part.clone().requires_grad_() for part in initial.split([12, 8, 10])]
    theirs = torch.optim.AdamW(
        [
            {"params": [part], "lr": 0.01 * group.rate, "weight_decay": 0.1 * group.decay, "eps": 1e-6 * group.eps}
            for part, group in zip(plain, groups, strict=True)
        ],
        betas=(0.9, 0.95),
    )
    ours = FlatAdamW(initial.clone(), RECIPE, groups=groups, dtype=torch.float32)
    for _ in range(5):
        gradient = torch.randn(30, generator=generator)
        ours.accumulate([gradient[:20] * 64, gradient[20:] * 64], first=True)
        norm = ours.update(0.01, tokens=64)
        for part, slope in zip(plain, gradient.split([12, 8, 10]), strict=True):
            part.grad = slope
        theirs.step()
        assert float(norm) == pytest.approx(float(torch.linalg.vector_norm(gradient)), rel=1e-6)
    torch.testing.assert_close(ours.master, torch.cat([part.detach() for part in plain]))


def test_the_copy_that_computes_follows_the_master() -> None:
    ours = FlatAdamW(torch.ones(4), RECIPE, groups=[Group(4, 1.0, 1.0, 1.0)], dtype=torch.bfloat16)
    ours.accumulate([torch.ones(4)], first=True)
    ours.accumulate([torch.ones(4)], first=False)
    ours.update(0.5, tokens=2)
    assert torch.equal(ours.params, ours.master.bfloat16()) and not torch.equal(ours.master, torch.ones(4))
