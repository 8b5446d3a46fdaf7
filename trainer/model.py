"""A decoder-only transformer on one flat tensor of parameters.

Pre-norm with RMSNorm (gain, no bias), rotary or learned positions, GELU, SwiGLU or squared-ReLU feed-forward layers,
no biases anywhere. All matrices lie before all vectors, so that weight decay, clipping, the update and the bf16 copy
are one operation each, however many tensors there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.kernels import Attention, attend, causal_mask, cross_entropy, lookup, rms_norm, rotary_table, rotate
from trainer.shape import Activation, Positions, Shape


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter tensor: its group (as in ``Shape.params_by_group``), its size, and how it starts."""

    name: str
    group: str
    size: tuple[int, ...]
    std: float
    """Of the normal distribution it is drawn from; 0 means all ones (gains)."""

    @property
    def params(self) -> int:
        """Numbers it holds."""
        return math.prod(self.size)


def slots(shape: Shape) -> list[Slot]:
    """Every parameter tensor of a shape, matrices first.

    Each matrix starts as N(0, 1/columns), tables included, so that a tied head starts with logits of order one;
    those that write to the residual stream are scaled down by sqrt(2 layers) (Radford et al. 2019).
    """
    d, wide, ffw = shape.d_model, shape.attention_width, shape.ffw
    into = 2 * ffw if shape.activation is Activation.swiglu else ffw
    residual = 1 / math.sqrt(2 * shape.layers)

    def matrix(name: str, group: str, rows: int, columns: int, scale: float = 1.0) -> Slot:
        return Slot(name=name, group=group, size=(rows, columns), std=scale / math.sqrt(columns))

    out = [matrix("embedding", "embedding", shape.vocabulary, d)]
    if shape.positions is Positions.learned:
        out.append(matrix("positions", "positions", shape.sequence, d))
    for layer in range(shape.layers):
        out.append(matrix(f"{layer}.qkv", "attention", 3 * wide, d))
        out.append(matrix(f"{layer}.attention_out", "attention", d, wide, residual))
        out.append(matrix(f"{layer}.ffw_in", "ffw", into, d))
        out.append(matrix(f"{layer}.ffw_out", "ffw", d, ffw, residual))
    if not shape.tied_head:
        out.append(matrix("head", "head", shape.vocabulary, d))
    names = [f"{layer}.norm_{part}" for layer in range(shape.layers) for part in ("attention", "ffw")]
    return out + [Slot(name=name, group="norms", size=(d,), std=0.0) for name in (*names, "norm_out")]


def matrix_params(shape: Shape) -> int:
    """Length of the leading part of the flat parameters that holds matrices: the part that decays."""
    return sum(slot.params for slot in slots(shape) if len(slot.size) > 1)


def initial_params(shape: Shape, seed: int) -> Tensor:
    """The flat fp32 parameters a seed gives: the same numbers on every machine and device."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.ones(shape.params_total)
    offset = 0
    for slot in slots(shape):
        if slot.std:
            flat[offset : offset + slot.params].normal_(0.0, slot.std, generator=generator)
        offset += slot.params
    return flat


class Transformer:
    """Computes losses from flat parameters ``flat`` (params_total,), in their dtype and on their device."""

    def __init__(self, shape: Shape, flat: Tensor, attention: Attention) -> None:
        self.shape = shape
        self.attention = attention
        self.tensors: dict[str, Tensor] = {}
        offset = 0
        for slot in slots(shape):
            view = flat.detach()[offset : offset + slot.params].view(slot.size)
            self.tensors[slot.name] = view.requires_grad_()
            offset += slot.params
        self._table: Tensor | None = None
        if shape.positions is Positions.rope:  # for q and k at once
            self._table = rotary_table(shape.sequence, 2 * shape.heads, shape.head_size, flat.device)
        self._mask = causal_mask(shape.sequence, flat.dtype, flat.device)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to (B T, V) logits; T is at most the shape's sequence."""
        shape, w = self.shape, self.tensors
        batch, length = tokens.shape
        x = lookup(w["embedding"], tokens.flatten())
        if shape.positions is Positions.learned:
            x = (x.view(batch, length, -1) + w["positions"][:length]).flatten(0, 1)
        for layer in range(shape.layers):
            qkv = functional.linear(rms_norm(x, w[f"{layer}.norm_attention"]), w[f"{layer}.qkv"])
            mixed = self._mix(qkv.view(batch, length, -1)).flatten(0, 1)
            x = torch.addmm(x, mixed, w[f"{layer}.attention_out"].t())
            inner = functional.linear(rms_norm(x, w[f"{layer}.norm_ffw"]), w[f"{layer}.ffw_in"])
            x = torch.addmm(x, self._activate(inner), w[f"{layer}.ffw_out"].t())
        return functional.linear(rms_norm(x, w["norm_out"]), w["embedding" if shape.tied_head else "head"])

    def _mix(self, qkv: Tensor) -> Tensor:
        """Attention from projections (B, T, 3 H k) to (B, T, H k)."""
        wide = self.shape.attention_width
        qk, v = torch.split(qkv, [2 * wide, wide], -1)
        if self._table is not None:
            qk = rotate(qk, self._table[: qk.shape[1]])
        split = (*qkv.shape[:2], self.shape.heads, self.shape.head_size)
        q, k, v = (x.view(split).transpose(1, 2) for x in (*qk.chunk(2, -1), v))
        return attend(q, k, v, self._mask, self.attention).transpose(1, 2).flatten(2)

    def _activate(self, inner: Tensor) -> Tensor:
        if self.shape.activation is Activation.gelu:
            return functional.gelu(inner)
        if self.shape.activation is Activation.relu2:
            return functional.relu(inner).square()
        gate, value = inner.chunk(2, -1)
        return functional.silu(gate) * value

    def loss(self, windows: Tensor) -> Tensor:
        """Summed cross-entropy, in nats, of windows (B, T + 1) of token ids."""
        return cross_entropy(self.logits(windows[:, :-1]), windows[:, 1:].flatten())

    def gradient(self, loss: Tensor) -> tuple[Tensor, ...]:
        """The gradient of a loss, a tensor for each slot, in the order of the flat parameters."""
        return torch.autograd.grad(loss, list(self.tensors.values()))
