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
CLEARLY = 1.25
"""How much faster the unusual path must be to be taken: less may be noise, and two folders should choose alike."""
TUNE_SECONDS = 0.2
TUNE_TOKENS = 2048
PRODUCT_ROWS = 4096
"""Token tables up to this size get their gradient on a GPU as a product: one more of the size of the logits'."""


class Attention(StrEnum):
    """``manual``: two batched products and a softmax over T x T scores; ``sdpa``: torch's fused kernel."""

    manual = "manual"
    sdpa = "sdpa"


class _Lookup(Function):
    """Rows of the token table, or of one table above the other for each of several models."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, members: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.like, ctx.members = (table.shape, table.dtype), members
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        (rows, width), dtype = ctx.like
        if not grad.is_cuda:
            total = torch.zeros(rows, width, dtype=torch.float32, device=grad.device)
            return total.index_add_(0, index, grad.float()).to(dtype), None, None
        return summed_rows(grad, index, rows, ctx.members).to(dtype), None, None


def summed_rows(grad: Tensor, index: Tensor, rows: int, members: int = 1) -> Tensor:
    """Rows of ``grad`` (n, d) summed where ``index`` (n,) says, (rows, d): the same bits every time, also on a GPU,
    and without a question to the host, so that a graph can record it.

    Small tables by a product with the tokens' indicators: sorting, as torch does there, adds up a token's rows one
    after another, and of few tokens each has very many.

    Parameters
    ----------
    members
        So many equal parts of ``grad`` have an equal part of the rows each.
    """
    own = rows // members
    if own <= PRODUCT_ROWS:
        first = torch.arange(0, rows, own, device=grad.device)[:, None]
        token = (index.view(members, 1, -1) - first[:, :, None]) == torch.arange(own, device=grad.device)[:, None]
        return torch.bmm(token.to(grad.dtype), grad.view(members, -1, grad.shape[-1])).flatten(0, 1)
    total = torch.zeros(rows, grad.shape[-1], dtype=torch.float32, device=grad.device)
    # unsafe: the lookup has checked them
    return torch._index_put_impl_(total, [index], grad.float(), accumulate=True, unsafe=True)


class _RmsNorm(Function):
    """x / rms(x) * gain over the last dimension of a (n, d) tensor (Zhang and Sennrich 2019), in fp32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        wide = x.float()
        square = torch.linalg.vecdot(wide, wide)[:, None]
        inverse = square.mul_(1 / x.shape[-1]).add_(NORM_EPS).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        out: Tensor = (wide * inverse).mul_(gain.float()).to(x.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, inverse = ctx.saved_tensors
        x_wide, grad_wide, gain_wide = x.float(), grad.float(), gain.float()
        product = grad_wide * x_wide
        along_x = (product @ gain_wide)[:, None].mul_(1 / x.shape[-1]) * inverse**3
        grad_gain = product.t() @ inverse[:, 0]
        grad_x = torch.mul(grad_wide, gain_wide, out=product).mul_(inverse).addcmul_(x_wide, along_x, value=-1)
        return grad_x.to(x.dtype), grad_gain.to(gain.dtype)


class _Rotate(Function):
    """Neighbouring pairs of the last dimension turned in the plane: (..., T, w) by a complex table (T, w / 2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.table = table
        return _turn(x, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _turn(grad, ctx.table.conj()), None


def _turn(x: Tensor, table: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


class _CrossEntropy(Function):
    """Summed cross-entropies in nats of (n, V) logits, of ``members`` equal parts, in fp32; the gradient is made in the
    forward pass.

    With ``z`` the gradient is that of the loss plus z log(sum of exponentials)^2, the loss returned is without.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, z: float, members: int | None) -> Tensor:
        log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
        index = target[:, None]
        losses = log_p.gather(1, index)
        loss = losses.sum().neg_() if members is None else losses.view(members, -1).sum(1).neg_()
        if logits.requires_grad:
            weight = 1 + 2 * z * torch.logsumexp(logits.float(), -1, keepdim=True) if z else None
            probability = log_p.exp_() if weight is None else log_p.exp_().mul_(weight)
            if logits.is_cuda or torch.compiler.is_compiling():  # where scatters ask the host, or hinder fusion
                grad = probability.add_(index == torch.arange(logits.shape[-1], device=logits.device), alpha=-1)
            else:
                grad = probability.scatter_add_(1, index, log_p.new_full((), -1.0).expand_as(index))
            ctx.save_for_backward(grad.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0], None, None, None  # the loss is where backward starts: its own gradient is 1


def lookup(table: Tensor, index: Tensor, members: int = 1) -> Tensor:
    """Rows of ``table`` (V, d) at ``index`` (n,); each of ``members`` equal parts of that lies in its own part of V."""
    out: Tensor = _apply(_Lookup, table, index, members)
    return out


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """RMSNorm of (n, d) with gain (d,)."""
    out: Tensor = _apply(_RmsNorm, x, gain)
    return out


def plain_rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """The same in operations that a compiler fuses by itself, backward too."""
    wide = x.float()
    inverse = (wide.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    return (wide * inverse * gain.float()).to(x.dtype)


def rotary_table(tokens: int, heads: int, size: int, device: torch.device) -> Tensor:
    """exp(i t 10000^(-2j/k)) for positions t and pairs j, once for each head: complex (T, H k / 2) (Su et al. 2021)."""
    rates = 10_000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.outer(torch.arange(tokens, dtype=torch.float64), rates)
    table = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
    return table.repeat(1, heads).to(device)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary positions on (B, T, w), by a table of (T, w / 2)."""
    out: Tensor = _apply(_Rotate, x, table)
    return out


def plain_rotate(x: Tensor, table: Tensor) -> Tensor:
    """The same by cosines and sines (T, w / 2, 2), which compilers fuse, and complex numbers they do not."""
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    cosine, sine = table.unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2).to(x.dtype)


def cross_entropy(logits: Tensor, target: Tensor, z: float = 0.0) -> Tensor:
    """Summed cross-entropy, in nats, of logits (n, V) against targets (n,); only to be differentiated itself.

    ``z`` weighs the z-loss that the gradient has besides.
    """
    out: Tensor = _apply(_CrossEntropy, logits, target, z, None)
    return out


def cross_entropies(logits: Tensor, target: Tensor, members: int, z: float = 0.0) -> Tensor:
    """(members,) the same for each of so many equal parts of the rows; only their sum is to be differentiated."""
    out: Tensor = _apply(_CrossEntropy, logits, target, z, members)
    return out


def _apply(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)  # type: ignore[no-untyped-call]


def causal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(T, T), 0 on and below the diagonal and -inf above, to be added to scores."""
    return torch.full((tokens, tokens), -math.inf, dtype=dtype, device=device).triu_(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, path: Attention) -> Tensor:
    """Causal attention of q over k and v, all (B, H, T, k); ``mask`` serves the manual path."""
    if path is Attention.sdpa:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    batch, heads, tokens, size = q.shape
    q, k, v = (x.reshape(batch * heads, tokens, size) for x in (q, k, v))
    scores = torch.baddbmm(mask[:tokens, :tokens], q, k.mT, alpha=1 / math.sqrt(size))
    return torch.bmm(scores.softmax(-1), v).view(batch, heads, tokens, size)


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
            usual = Attention.manual if device.type == "cpu" and dtype is torch.bfloat16 else Attention.sdpa
            (other,) = set(Attention) - {usual}
            return other if best[other] * CLEARLY < best[usual] else usual
