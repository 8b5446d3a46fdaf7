"""A decoder-only transformer on one flat tensor of parameters.

Pre-norm with RMSNorm (gain, no bias), rotary or learned positions, GELU, SwiGLU or squared-ReLU feed-forward layers,
no biases anywhere. Tensors that share a learning rate and a weight decay lie together, so that clipping and the bf16
copy are one operation, and the update one for each such group, however many tensors there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from trainer.kernels import (
    Attention,
    attend,
    causal_mask,
    cross_entropy,
    lookup,
    plain_rms_norm,
    plain_rotate,
    rms_norm,
    rotary_table,
    rotate,
)
from trainer.recipe import Scaling
from trainer.scaling import factors
from trainer.shape import Activation, Positions, Shape


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter tensor: its group (as in ``Shape.params_by_group``), its size, how it starts, and how it learns."""

    name: str
    group: str
    size: tuple[int, ...]
    std: float
    """Of the normal distribution it is drawn from; 0 means all ones (gains)."""
    rate: float = 1.0
    """Its learning rate over the run's."""
    decay: float = 1.0
    """Its weight decay over the run's."""
    eps: float = 1.0
    """Its epsilon in AdamW over the run's."""
    scale: float = 1.0
    """Products with it are multiplied with this; of a token table, those as a tied head, not the lookups."""

    @property
    def params(self) -> int:
        """Numbers it holds."""
        return math.prod(self.size)

    @property
    def learning(self) -> tuple[float, float, float]:
        """What the tensors of one group of the optimiser have in common."""
        return self.rate, self.decay, self.eps


@dataclass(frozen=True)
class Group:
    """Neighbouring tensors that learn alike: how many numbers, and their factors of rate, decay and epsilon."""

    params: int
    rate: float
    decay: float
    eps: float


def slots(shape: Shape, scaling: Scaling | None = None) -> list[Slot]:
    """Every parameter tensor of a shape, in the order of the flat parameters: those that learn alike lie together.

    Each matrix starts as N(0, 1/columns), tables included, so that a tied head starts with logits of order one;
    those that write to the residual stream are scaled down by sqrt(2 layers) (Radford et al. 2019). What another
    parametrisation changes of that stands in :mod:`trainer.scaling`.
    """
    d, wide, ffw = shape.d_model, shape.attention_width, shape.ffw
    into = 2 * ffw if shape.activation is Activation.swiglu else ffw
    by = factors(shape, scaling)
    m, k = by.width, by.depth

    def table(name: str, group: str, rows: int, scale: float = 1.0) -> Slot:
        std = 1 / math.sqrt(by.table_columns)
        return Slot(name=name, group=group, size=(rows, d), std=std, eps=1 / m, scale=scale)

    def matrix(name: str, group: str, rows: int, columns: int, start: float = 1.0, scale: float = 1.0) -> Slot:
        std = start / math.sqrt(columns)
        return Slot(
            name=name, group=group, size=(rows, columns), std=std, rate=1 / m, decay=m, eps=1 / (m * k), scale=scale
        )

    def gains(name: str, size: int, eps: float) -> Slot:
        return Slot(name=name, group="norms", size=(size,), std=0.0, decay=0.0, eps=eps)

    residual = 1 / math.sqrt(2 * by.residual_layers)
    out = [table("embedding", "embedding", shape.vocabulary, scale=1 / m)]
    if shape.positions is Positions.learned:
        out.append(table("positions", "positions", shape.sequence))
    for layer in range(shape.layers):
        out.append(matrix(f"{layer}.qkv", "attention", 3 * wide, d))
        out.append(matrix(f"{layer}.attention_out", "attention", d, wide, residual, 1 / k))
        out.append(matrix(f"{layer}.ffw_in", "ffw", into, d))
        out.append(matrix(f"{layer}.ffw_out", "ffw", d, ffw, residual, 1 / k))
    if not shape.tied_head:
        out.append(table("head", "head", shape.vocabulary, scale=1 / m))
    for layer in range(shape.layers):
        out += [gains(f"{layer}.norm_{part}", d, 1 / (m * k)) for part in ("attention", "ffw")]
        if shape.qk_norm:
            out += [gains(f"{layer}.norm_{part}", shape.head_size, 1 / (m * k)) for part in ("q", "k")]
    out.append(gains("norm_out", d, 1 / m))
    first = {learning: number for number, learning in reversed(list(enumerate(slot.learning for slot in out)))}
    return sorted(out, key=lambda slot: first[slot.learning])


def groups(layout: Sequence[Slot]) -> list[Group]:
    """The optimiser's groups of a layout, each a contiguous part of the flat parameters."""
    alike = groupby(layout, key=lambda slot: slot.learning)
    return [Group(sum(slot.params for slot in part), *learning) for learning, part in alike]


def flops_of(layout: Sequence[Slot], shape: Shape) -> float:
    """Training FLOPs per token, counted from the tensors: two per number of a matrix that multiplies, and attention's.

    The token table multiplies where it is the head too; both of attention's products are over whole sequences.
    """
    lookups = {"positions"} if shape.tied_head else {"positions", "embedding"}
    matrices = sum(slot.params for slot in layout if len(slot.size) == 2 and slot.group not in lookups)
    scores = sum(2 * shape.sequence * 2 * slot.size[1] for slot in layout if slot.name.endswith("attention_out"))
    return 3 * (2 * matrices + scores)


def initial_params(shape: Shape, seed: int, scaling: Scaling | None = None) -> Tensor:
    """The flat fp32 parameters a seed gives: the same numbers on every machine and device."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.ones(shape.params_total)
    offset = 0
    for slot in slots(shape, scaling):
        if slot.std:
            flat[offset : offset + slot.params].normal_(0.0, slot.std, generator=generator)
        offset += slot.params
    return flat


class Transformer:
    """Computes losses from flat parameters ``flat`` (..., params_total), in their dtype and on their device.

    Those of several models are :class:`trainer.stacked.StackedTransformer`'s. With ``plain`` the pieces that have a
    backward written by hand are left to a compiler, as plain operations.
    """

    def __init__(
        self,
        shape: Shape,
        flat: Tensor,
        attention: Attention,
        scaling: Scaling | None = None,
        z_loss: float = 0.0,
        *,
        plain: bool = False,
    ) -> None:
        self.shape = shape
        self._norm, self._rotate = (plain_rms_norm, plain_rotate) if plain else (rms_norm, rotate)
        self.attention = attention
        self.tensors: dict[str, Tensor] = {}
        self._z_loss = z_loss
        layout = slots(shape, scaling)
        self._scale = {slot.name: slot.scale for slot in layout}
        offset = 0
        for slot in layout:
            view = flat.detach()[..., offset : offset + slot.params].view(*flat.shape[:-1], *slot.size)
            self.tensors[slot.name] = view.requires_grad_()
            offset += slot.params
        self.table: Tensor | None = None
        if shape.positions is Positions.rope:  # for q and k at once
            table = rotary_table(shape.sequence, 2 * shape.heads, shape.head_size, flat.device)
            self.table = torch.view_as_real(table) if plain else table
        self._mask = causal_mask(shape.sequence, flat.dtype, flat.device)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to (B T, V) logits; T is at most the shape's sequence."""
        shape = self.shape
        batch, length = tokens.shape
        x = self.look_up(tokens)
        if shape.positions is Positions.learned:
            x = self.place(x, batch, length)
        for layer in range(shape.layers):
            qkv = self.linear(self.norm(x, f"{layer}.norm_attention"), f"{layer}.qkv")
            mixed = self._mix(qkv.view(batch, length, -1), layer).flatten(0, 1)
            x = self.add(x, mixed, f"{layer}.attention_out")
            inner = self.linear(self.norm(x, f"{layer}.norm_ffw"), f"{layer}.ffw_in")
            x = self.add(x, self.activate(inner), f"{layer}.ffw_out")
        return self.linear(self.norm(x, "norm_out"), "embedding" if shape.tied_head else "head")

    def look_up(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to their rows of the token table, (B T, d)."""
        return lookup(self.tensors["embedding"], tokens.flatten())

    def place(self, x: Tensor, batch: int, length: int) -> Tensor:
        """(B T, d) with the learned positions added."""
        return (x.view(batch, length, -1) + self.tensors["positions"][:length]).flatten(0, 1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm of (n, d) with a gain."""
        return self._norm(x, self.tensors[name])

    def linear(self, x: Tensor, name: str) -> Tensor:
        """(n, columns) to (n, rows) by a matrix and its scale."""
        out, scale = functional.linear(x, self.tensors[name]), self._scale[name]
        return out if scale == 1 else out * scale

    def add(self, stream: Tensor, x: Tensor, name: str) -> Tensor:
        """The residual stream plus what a matrix and its scale make of ``x``."""
        return torch.addmm(stream, x, self.tensors[name].t(), alpha=self._scale[name])

    def _mix(self, qkv: Tensor, layer: int) -> Tensor:
        """Attention from projections (B, T, 3 H k) to (B, T, H k)."""
        wide = self.shape.attention_width
        qk, v = torch.split(qkv, [2 * wide, wide], -1)
        if self.shape.qk_norm:
            qk = torch.cat(
                [self.norm_heads(x, f"{layer}.norm_{part}") for x, part in zip(qk.chunk(2, -1), "qk", strict=True)], -1
            )
        if self.table is not None:
            qk = self._rotate(qk, self.table[: qk.shape[1]])
        split = (*qkv.shape[:2], self.shape.heads, self.shape.head_size)
        q, k, v = (x.view(split).transpose(1, 2) for x in (*qk.chunk(2, -1), v))
        return attend(q, k, v, self._mask, self.attention).transpose(1, 2).flatten(2)

    def norm_heads(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm of each head of (..., H k)."""
        return self.norm(x.reshape(-1, self.shape.head_size), name).view(x.shape)

    def activate(self, inner: Tensor) -> Tensor:
        """The non-linearity between the matrices of a feed-forward layer."""
        if self.shape.activation is Activation.gelu:
            return functional.gelu(inner)
        if self.shape.activation is Activation.relu2:
            return functional.relu(inner).square()
        gate, value = inner.chunk(2, -1)
        return functional.silu(gate) * value

    def loss(self, windows: Tensor) -> Tensor:
        """Summed cross-entropy, in nats, of windows (B, T + 1) of token ids; its gradient is that with the z-loss."""
        return cross_entropy(self.logits(windows[:, :-1]), windows[:, 1:].flatten(), self._z_loss)

    def gradient(self, loss: Tensor) -> tuple[Tensor, ...]:
        """The gradient of a loss, a tensor for each slot, in the order of the flat parameters."""
        return torch.autograd.grad(loss, list(self.tensors.values()))
