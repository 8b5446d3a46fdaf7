from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from trainer_runs import small_shape

from trainer.kernels import NORM_EPS, Attention, tune_attention
from trainer.model import Group, Transformer, groups, initial_params, slots
from trainer.shape import Activation, FlopCount, Positions, Shape

SHAPES = st.builds(
    Shape,
    layers=st.integers(1, 3),
    d_model=st.integers(1, 24),
    heads=st.integers(1, 3),
    head_size=st.integers(1, 6).map(lambda half: 2 * half),
    ffw=st.integers(1, 40),
    vocabulary=st.integers(2, 60),
    sequence=st.integers(1, 12),
    activation=st.sampled_from(Activation),
    positions=st.sampled_from(Positions),
    tied_head=st.booleans(),
)
KINDS = [(a, p, t) for a in Activation for p in Positions for t in (True, False)]


def windows(shape: Shape, batch: int = 3) -> Tensor:
    size = (batch, shape.sequence + 1)
    return torch.randint(0, shape.vocabulary, size, generator=torch.Generator().manual_seed(1))


def plain_loss(shape: Shape, flat: Tensor, tokens: Tensor) -> Tensor:
    """The model once more, in textbook form, with autograd alone: mean cross-entropy of (B, T + 1) windows."""
    sizes = [slot.params for slot in slots(shape)]
    w = {s.name: part.view(s.size) for s, part in zip(slots(shape), flat.split(sizes), strict=True)}
    d, k = shape.d_model, shape.head_size
    x = w["embedding"][tokens[:, :-1]]
    if shape.positions is Positions.learned:
        x = x + w["positions"][: x.shape[1]]
    position = torch.arange(x.shape[1], dtype=flat.dtype)
    angle = torch.outer(position, 10_000 ** (-torch.arange(k // 2, dtype=flat.dtype) * 2 / k))

    def rotate(y: Tensor) -> Tensor:
        if shape.positions is Positions.learned:
            return y
        even, odd = y[..., 0::2], y[..., 1::2]
        turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
        return torch.stack(turned, -1).flatten(-2)

    for layer in range(shape.layers):
        h = functional.rms_norm(x, (d,), w[f"{layer}.norm_attention"], NORM_EPS)
        q, key, v = (h @ w[f"{layer}.qkv"].T).unflatten(-1, (3, shape.heads, k)).permute(2, 0, 3, 1, 4)
        scores = rotate(q) @ rotate(key).mT / math.sqrt(k)
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w[f"{layer}.attention_out"].T
        h = functional.rms_norm(x, (d,), w[f"{layer}.norm_ffw"], NORM_EPS) @ w[f"{layer}.ffw_in"].T
        if shape.activation is Activation.swiglu:
            h = functional.silu(h[..., : shape.ffw]) * h[..., shape.ffw :]
        elif shape.activation is Activation.relu2:
            h = functional.relu(h) ** 2
        else:
            h = functional.gelu(h)
        x = x + h @ w[f"{layer}.ffw_out"].T
    logits = functional.rms_norm(x, (d,), w["norm_out"], NORM_EPS) @ w["embedding" if shape.tied_head else "head"].T
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def loss_and_gradient(shape: Shape, flat: Tensor, tokens: Tensor, path: Attention) -> tuple[Tensor, Tensor]:
    model = Transformer(shape, flat, path)
    loss, count = model.loss(tokens), tokens[:, 1:].numel()
    gradient = torch.cat([part.flatten() for part in model.gradient(loss)])
    return loss.detach() / count, gradient / count


@given(shape=SHAPES)
def test_parameters_are_those_the_shape_counts(shape: Shape) -> None:
    counts = dict.fromkeys(shape.params_by_group(), 0)
    for slot in slots(shape):
        counts[slot.group] += slot.params
    assert counts == shape.params_by_group()
    flat = initial_params(shape, 0)
    tensors = Transformer(shape, flat, Attention.manual).tensors
    assert flat.numel() == sum(tensor.numel() for tensor in tensors.values()) == shape.params_total
    norms = shape.params_by_group()["norms"]
    assert groups(slots(shape)) == [Group(shape.params_total - norms, 1, 1, 1), Group(norms, 1, 0, 1)]


@given(shape=SHAPES)
@settings(max_examples=40)
def test_torch_counts_the_flops_that_the_shape_does(shape: Shape) -> None:
    model = Transformer(shape, initial_params(shape, 0), Attention.manual)
    with FlopCounterMode(display=False) as counter:
        model.gradient(model.loss(windows(shape, 2)))
    assert counter.get_total_flops() == shape.flops_per_token(FlopCount.matmul) * 2 * shape.sequence


def test_flops_of_the_worked_example() -> None:
    shape = Shape(layers=3, d_model=64, heads=4, head_size=16, ffw=256, vocabulary=256, sequence=128)
    model = Transformer(shape, initial_params(shape, 0), Attention.manual)
    with FlopCounterMode(display=False) as counter:
        model.gradient(model.loss(windows(shape, 2)))
    assert counter.get_total_flops() == 327_155_712 == shape.flops_per_token() * 256


@pytest.mark.parametrize(("activation", "positions", "tied"), KINDS)
def test_loss_and_gradient_are_those_of_the_textbook_form(
    activation: Activation, positions: Positions, tied: bool
) -> None:
    shape = small_shape(activation=activation, positions=positions, tied_head=tied, ffw=24)
    flat = initial_params(shape, 3) + 0.3 * torch.randn(shape.params_total, generator=torch.Generator().manual_seed(2))
    tokens = windows(shape)
    exact = flat.double().requires_grad_()
    expected = plain_loss(shape, exact, tokens)
    (gradient,) = torch.autograd.grad(expected, exact)
    for path in Attention:
        loss, flat_gradient = loss_and_gradient(shape, flat, tokens, path)
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
        assert torch.linalg.vector_norm(flat_gradient - gradient) < 1e-4 * torch.linalg.vector_norm(gradient)


def test_bf16_stays_close_to_fp32() -> None:
    shape, tokens = small_shape(), windows(small_shape(), 8)
    flat = initial_params(shape, 0)
    loss, gradient = loss_and_gradient(shape, flat, tokens, Attention.manual)
    for path in Attention:
        low, low_gradient = loss_and_gradient(shape, flat.bfloat16(), tokens, path)
        assert low.dtype is torch.float32
        assert float(low) == pytest.approx(float(loss), rel=2e-3)
        assert functional.cosine_similarity(low_gradient.float(), gradient, dim=0) > 0.999


@pytest.mark.parametrize("path", Attention)
def test_no_logit_depends_on_a_later_token(path: Attention) -> None:
    shape = small_shape()
    model = Transformer(shape, initial_params(shape, 0), path)
    tokens = windows(shape)[:, :-1]
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % shape.vocabulary
    before, after = (model.logits(x).detach().view(3, shape.sequence, -1) for x in (tokens, changed))
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_order_matters_and_shorter_sequences_are_prefixes() -> None:
    for positions in Positions:
        shape = small_shape(positions=positions)
        model = Transformer(shape, initial_params(shape, 0), Attention.manual)
        tokens = windows(shape)[:, :-1]
        full = model.logits(tokens).view(3, shape.sequence, -1)
        torch.testing.assert_close(model.logits(tokens[:, :7]).view(3, 7, -1), full[:, :7])
        swapped = tokens[:, [1, 0, *range(2, shape.sequence)]]
        assert not torch.allclose(model.logits(swapped).view_as(full)[:, -1], full[:, -1], atol=1e-6)


def test_starts_near_a_uniform_guess_and_is_decided_by_the_seed() -> None:
    shape = small_shape(d_model=64, heads=4, head_size=16, ffw=256)
    flat = initial_params(shape, 5)
    assert torch.equal(flat, initial_params(shape, 5))
    assert not torch.equal(flat, initial_params(shape, 6))
    loss, _ = loss_and_gradient(shape, flat, windows(shape, 16), Attention.manual)
    assert float(loss) == pytest.approx(math.log(256) + 0.5, abs=0.3)


def test_residual_outputs_start_smaller_in_deeper_models() -> None:
    def spread(layers: int, name: str) -> Any:
        shape = small_shape(layers=layers, d_model=64, ffw=256)
        return Transformer(shape, initial_params(shape, 0), Attention.manual).tensors[name].std().item()

    assert spread(8, "0.ffw_out") == pytest.approx(spread(2, "0.ffw_out") / 2, rel=0.05)
    assert spread(8, "0.ffw_in") == pytest.approx(spread(2, "0.ffw_in"), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tuning_tries_every_path(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import kernels

    tried: list[Attention] = []
    attend = kernels.attend

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, path: Attention) -> Tensor:
        tried.append(path)
        return attend(q, k, v, mask, path)

    monkeypatch.setattr(kernels, "attend", watched)
    monkeypatch.setattr(kernels, "TUNE_SECONDS", 0.01)
    chosen = tune_attention(sequences=2, heads=2, tokens=16, size=8, dtype=dtype, device=torch.device("cpu"))
    assert chosen in Attention and set(tried) == set(Attention)
