"""The pieces of the forward pass that profit from a hand-written backward, and the choice between attention paths.

Small models spend their time in the operations between the matrix products, so these do few passes over memory. Sums
over tokens are taken in fp32, also where activations are bf16.
"""

from __future__ import annotations

import math
import time
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

NORM_EPS = 1e-6
TUNE_SECONDS = 0.2
TUNE_TOKENS = 2048


class Attention(StrEnum):
    """``manual``: two batched products and a softmax over T x T scores; ``sdpa``: torch's fused kernel."""

    manual = "manual"
    sdpa = "sdpa"


class _Lookup(Function):
    """Rows of the token table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.like = (table.shape, table.dtype)
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        size, dtype = ctx.like
        total = torch.zeros(size, dtype=torch.float32, device=grad.device)
        return total.index_add_(0, index, grad.float()).to(dtype), None


class _RmsNorm(Function):
    """x / rms(x) * gain over the last dimension of a (n, d) tensor (Zhang and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().mul_(1 / x.shape[-1]).add_(NORM_EPS).rsqrt_().to(x.dtype)
        ctx.save_for_backward(x, gain, inverse)
        out: Tensor = (x * inverse).mul_(gain)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, inverse = ctx.saved_tensors
        unit = x * inverse
        product = grad * unit
        mean = (product @ gain).mul_(1 / x.shape[-1])
        grad_x = torch.addcmul(grad * gain, unit, mean[:, None], value=-1).mul_(inverse)
        return grad_x, product.sum(0, dtype=torch.float32).to(gain.dtype)


class _Heads(Function):
    """(B, T, 3 H k) projections to q, k, v of (B, H, T, k): q scaled by 1/sqrt(k), q and k rotated."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = qkv.shape
        ctx.turn = turn
        ctx.split = (batch, tokens, 3, heads, width // (3 * heads))
        q, k, v = qkv.view(ctx.split).permute(2, 0, 3, 1, 4).contiguous()
        return turn.q(q), turn.k(k), v

    @staticmethod
    def backward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None, None]:
        grad = torch.empty(ctx.split, dtype=q.dtype, device=q.device)
        parts = grad.permute(2, 0, 3, 1, 4)
        ctx.turn.q(q, back=True, out=parts[0])
        ctx.turn.k(k, back=True, out=parts[1])
        parts[2].copy_(v)
        return grad.flatten(2), None, None


class _CrossEntropy(Function):
    """Summed cross-entropy in nats of (n, V) logits, in fp32; the gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: float) -> Tensor:
        log_p = torch.log_softmax(logits.float(), -1)
        index = target[:, None]
        loss = log_p.gather(1, index).sum(dtype=torch.float32).mul_(-weight)
        if logits.requires_grad:
            grad = log_p.exp_().mul_(weight)
            grad.scatter_add_(1, index, grad.new_full((), -weight).expand_as(index))
            ctx.save_for_backward(grad.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # The loss is where backward starts, so its gradient is 1.
        return ctx.saved_tensors[0], None, None


class Turn:
    """The scale of q and the rotation of q and k (Su et al. 2021, halves paired as in GPT-NeoX), as two tables.

    ``rotary=False`` leaves the scale alone.
    """

    def __init__(self, tokens: int, size: int, *, rotary: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.scale = 1 / math.sqrt(size)
        self.rotary = rotary
        self.half = size // 2
        rates = 10_000.0 ** (-torch.arange(self.half, dtype=torch.float64) / max(1, self.half))
        angle = torch.outer(torch.arange(tokens, dtype=torch.float64), rates)
        cos, sin = torch.cat((angle, angle), 1).cos(), torch.cat((-angle, angle), 1).sin()
        self._q = ((cos * self.scale).to(device, dtype), (sin * self.scale).to(device, dtype))
        self._k = (cos.to(device, dtype), sin.to(device, dtype))

    def q(self, x: Tensor, *, back: bool = False, out: Tensor | None = None) -> Tensor:
        """Scaled and rotated; ``back`` applies the transpose, which the gradient needs."""
        return self._rotate(x, *self._q, back, out) if self.rotary else torch.mul(x, self.scale, out=out)

    def k(self, x: Tensor, *, back: bool = False, out: Tensor | None = None) -> Tensor:
        """Rotated; ``back`` applies the transpose."""
        if self.rotary:
            return self._rotate(x, *self._k, back, out)
        return x if out is None else out.copy_(x)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, back: bool, out: Tensor | None) -> Tensor:
        tokens = x.shape[-2]
        swapped = x.roll(self.half, -1)
        return torch.addcmul(x * cos[:tokens], swapped, sin[:tokens], value=-1 if back else 1, out=out)


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Rows of ``table`` (V, d) at ``index`` (n,)."""
    out: Tensor = _apply(_Lookup, table, index)
    return out


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """RMSNorm of (n, d) with gain (d,)."""
    out: Tensor = _apply(_RmsNorm, x, gain)
    return out


def split_heads(qkv: Tensor, heads: int, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of (B, H, T, k) from (B, T, 3 H k); q carries the 1/sqrt(k)."""
    out: tuple[Tensor, Tensor, Tensor] = _apply(_Heads, qkv, heads, turn)
    return out


def cross_entropy(logits: Tensor, target: Tensor, weight: float = 1.0) -> Tensor:
    """``weight`` times the summed cross-entropy, in nats, of logits (n, V) against targets (n,)."""
    out: Tensor = _apply(_CrossEntropy, logits, target, weight)
    return out


def _apply(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)  # type: ignore[no-untyped-call]


def causal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(T, T), 0 on and below the diagonal and -inf above, to be added to scores."""
    return torch.full((tokens, tokens), -math.inf, dtype=dtype, device=device).triu_(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, path: Attention) -> Tensor:
    """Causal attention of scaled q over k and v, all (B, H, T, k); ``mask`` serves the manual path."""
    if path is Attention.sdpa:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    tokens = q.shape[-2]
    scores = torch.baddbmm(mask[:tokens, :tokens], q.flatten(0, 1), k.flatten(0, 1).mT)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view_as(v)


def tune_attention(
    *, sequences: int, heads: int, tokens: int, size: int, dtype: torch.dtype, device: torch.device
) -> Attention:
    """The faster path, forward and backward, for tensors of this shape; takes about ``TUNE_SECONDS``.

    On a CPU the process's own time counts, and the paths take turns, so that a busy machine does not decide.
    """
    generator = torch.Generator().manual_seed(0)
    sequences = max(1, min(sequences, TUNE_TOKENS // tokens))
    q, k, v, grad = torch.randn(4, sequences, heads, tokens, size, generator=generator).to(device, dtype)
    mask = causal_mask(tokens, dtype, device)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def seconds(path: Attention) -> float:
        start = clock()
        torch.autograd.grad(attend(inputs[0], inputs[1], inputs[2], mask, path), inputs, grad)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    for path in Attention:
        seconds(path)  # warms up
    best = dict.fromkeys(Attention, math.inf)
    began = clock()
    while True:
        for path in Attention:
            best[path] = min(best[path], seconds(path))
        if clock() - began >= TUNE_SECONDS:
            return min(best, key=lambda path: best[path])
