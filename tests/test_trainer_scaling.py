"""muP and CompleteP: the same at the base, and activations that keep their scale over widths and depths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_runs import small_shape

from trainer.adamw import FlatAdamW
from trainer.config import Parametrisation
from trainer.kernels import Attention
from trainer.model import Transformer, groups, initial_params, slots
from trainer.recipe import OptimRecipe, Scaling
from trainer.shape import Activation, Positions, Shape

WIDTHS, DEPTHS = (32, 64, 128, 256), (2, 4, 8, 16)
UPDATES = 4
OPTIM = OptimRecipe(lr=0.01, batch=256, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0, clip=0.0)


class Watched(Transformer):
    """Remembers the residual stream behind the last layer."""

    stream: Tensor

    def add(self, stream: Tensor, x: Tensor, name: str) -> Tensor:
        self.stream = super().add(stream, x, name)
        return self.stream


def shape_of(width: int, layers: int, **changes: Any) -> Shape:
    return small_shape(d_model=width, layers=layers, heads=width // 16, head_size=16, ffw=4 * width, **changes)


def moved(shape: Shape, scaling: Scaling | None) -> tuple[float, float]:
    """How far (rms) the residual stream's end, and the targets' logits, move in a few updates on one batch."""
    changes = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        windows = torch.randint(shape.vocabulary, (16, shape.sequence + 1), generator=generator)
        optimizer = FlatAdamW(
            initial_params(shape, seed, scaling), OPTIM, groups=groups(slots(shape, scaling)), dtype=torch.float32
        )
        model = Watched(shape, optimizer.params, Attention.sdpa, scaling)

        def look(model: Watched = model, windows: Tensor = windows) -> tuple[Tensor, Tensor]:
            logits = model.logits(windows[:, :-1]).detach()
            return model.stream.detach().clone(), logits.gather(1, windows[:, 1:].reshape(-1, 1))

        before = look()
        for _ in range(UPDATES):
            optimizer.accumulate(model.gradient(model.loss(windows)), first=True)
            optimizer.update(OPTIM.lr, tokens=windows[:, 1:].numel())
        changes.append([float((b - a).square().mean().sqrt()) for a, b in zip(before, look(), strict=True)])
    stream, logits = torch.tensor(changes).mean(dim=0).tolist()
    return stream, logits


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """The power of the size that the values follow."""
    x, y = torch.tensor(sizes).double().log(), torch.tensor(values).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rule", [Parametrisation.mup, Parametrisation.completep])
def test_coordinates_keep_their_scale_over_widths(rule: Parametrisation, tied: bool) -> None:
    def over_widths(scaling: Scaling | None) -> list[float]:
        found = [moved(shape_of(width, 2, tied_head=tied), scaling) for width in WIDTHS]
        return [slope(WIDTHS, [each[i] for each in found]) for i in range(2)]

    kept, standard = over_widths(Scaling(rule=rule, width=32, layers=2)), over_widths(None)
    assert all(abs(power) < 0.2 for power in kept), kept
    assert all(power > 0.35 for power in standard), standard


def test_coordinates_keep_their_scale_over_depths() -> None:
    def over_depths(rule: Parametrisation | None) -> float:
        scaling = None if rule is None else Scaling(rule=rule, width=32, layers=2)
        return slope(DEPTHS, [moved(shape_of(32, layers), scaling)[0] for layers in DEPTHS])

    powers = {rule: over_depths(rule) for rule in (Parametrisation.completep, Parametrisation.mup, None)}
    assert abs(powers[Parametrisation.completep]) < 0.2, powers
    assert powers[Parametrisation.mup] > 0.35 and powers[None] > 0.35, powers


@pytest.mark.parametrize("rule", [Parametrisation.mup, Parametrisation.completep])
def test_at_the_base_it_is_the_standard_parametrisation(rule: Parametrisation) -> None:
    for changes in ({}, {"tied_head": False}, {"positions": Positions.learned}, {"activation": Activation.swiglu}):
        shape = shape_of(32, 2, **changes)
        assert slots(shape, Scaling(rule=rule, width=32, layers=2)) == slots(shape)


def test_what_each_tensor_gets() -> None:
    shape = shape_of(128, 8, tied_head=False)
    by_name = {slot.name: slot for slot in slots(shape, Scaling(rule=Parametrisation.completep, width=32, layers=2))}
    inside, into, head = by_name["3.qkv"], by_name["3.ffw_out"], by_name["head"]
    assert (inside.rate, inside.decay, inside.eps, inside.scale) == (1 / 4, 4, 1 / 16, 1)
    assert inside.rate * inside.decay == 1  # decoupled decay multiplies both: it stays what it is at the base
    assert (into.rate, into.scale) == (1 / 4, 1 / 4) and into.std == pytest.approx(1 / math.sqrt(2 * 2 * 512))
    assert (head.rate, head.scale, head.eps) == (1, 1 / 4, 1 / 4)
    assert head.std == by_name["embedding"].std == pytest.approx(1 / math.sqrt(32))
    assert by_name["norm_out"].decay == 0


def test_tensors_that_learn_alike_are_one_group_each() -> None:
    shape = shape_of(128, 4, tied_head=False)
    layout = slots(shape, Scaling(rule=Parametrisation.mup, width=32, layers=2))
    made = groups(layout)
    assert sum(group.params for group in made) == shape.params_total
    assert len({(group.rate, group.decay, group.eps) for group in made}) == len(made) == 3
    assert initial_params(shape, 0, Scaling(rule=Parametrisation.mup, width=32, layers=2)).numel() == shape.params_total
