"""The flat optimiser against torch's own on separate tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_the_same_bits_as_torchs_own_fused_class_and_resumed_from_its_state() -> None:
    generator = torch.Generator().manual_seed(1)
    initial = torch.randn(50, generator=generator)
    groups = [Group(30, 1.0, 1.0, 1.0), Group(20, 0.5, 0.0, 3.0)]
    plain = list(initial.clone().split([30, 20]))
    theirs = torch.optim.AdamW(
        [
            {"params": [part], "weight_decay": 0.1 * group.decay, "eps": 1e-6 * group.eps}
            for part, group in zip(plain, groups, strict=True)
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    ours = FlatAdamW(initial.clone(), RECIPE, groups=groups, dtype=torch.float32)
    for step in range(6):
        gradient, lr = torch.randn(50, generator=generator), 0.01 / (step + 1)
        ours.accumulate([gradient], first=True)
        ours.update(lr, tokens=1)
        for part, slope, options in zip(plain, gradient.split([30, 20]), theirs.param_groups, strict=True):
            part.grad, options["lr"] = slope, lr * (0.5 if part is plain[1] else 1.0)
        theirs.step()
        assert torch.equal(ours.master, torch.cat(plain))
        if step == 2:  # a checkpoint made with the class
            state = {"master": torch.cat(plain), "adamw": theirs.state_dict()["state"]}
            ours = FlatAdamW(torch.zeros(50), RECIPE, groups=groups, dtype=torch.float32)
            ours.load_state_dict(state)


def test_an_update_does_not_import_torchs_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from test_trainer_adamw import RECIPE, FlatAdamW, Group\n"
        "ours = FlatAdamW(torch.ones(4), RECIPE, groups=[Group(4, 1.0, 1.0, 1.0)], dtype=torch.float32)\n"
        "ours.update(0.1, tokens=1)\n"
        "ours.load_state_dict(ours.state_dict())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True, timeout=120)
