"""Text from a model: tokens drawn one by one, with the keys and values of those before kept."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.errors import UserError
from trainer.kernels import Attention, lookup, rms_norm, rotate
from trainer.model import Transformer
from trainer.recipe import Scaling
from trainer.shape import Shape
from trainer.text.vocabulary import Bytes, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the next token is drawn."""

    temperature: float = 1.0
    """0 takes the likeliest."""
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed, good in (
            ("temperature", self.temperature, "0 or more", 0 <= self.temperature < float("inf")),
            ("top_k", self.top_k, "0 or more", self.top_k >= 0),
            ("top_p", self.top_p, "in (0, 1]", 0 < self.top_p <= 1),
            ("seed", self.seed, "in [0, 2^63)", 0 <= self.seed < 2**63),
        ):
            if not good:
                raise UserError(f"{name}={value} must be {allowed}; set {name}=<value> so.")


class Decoder:
    """A model that is asked for one token after another.

    A context of ``shape.sequence`` tokens is all that it has learned; a longer text goes on from its last half.
    """

    def __init__(self, shape: Shape, flat: Tensor, scaling: Scaling | None = None) -> None:
        self._model = Transformer(shape, flat, Attention.sdpa, scaling)
        self._shape = shape
        self._context: list[int] = []
        self._keys = torch.zeros(shape.layers, shape.heads, shape.sequence, shape.head_size)
        self._values = torch.zeros_like(self._keys)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """(V,): what follows when ``tokens``, one or more, have been read after all those before."""
        most = self._shape.sequence
        fresh = list(tokens)
        if len(self._context) + len(fresh) > most:
            fresh = (self._context + fresh)[-max(1, most // 2) :]
            self._context = []
        with torch.no_grad():
            out = self._forward(fresh, len(self._context))
        self._context += fresh
        return out

    def _forward(self, fresh: list[int], before: int) -> Tensor:
        shape, model = self._shape, self._model
        w, wide, after = model.tensors, shape.attention_width, before + len(fresh)
        x = lookup(w["embedding"], torch.tensor(fresh))
        if "positions" in w:
            x = x + w["positions"][before:after]
        for layer in range(shape.layers):
            qkv = model.linear(rms_norm(x, w[f"{layer}.norm_attention"]), f"{layer}.qkv")
            qk, v = torch.split(qkv, [2 * wide, wide], -1)
            if shape.qk_norm:
                heads = [
                    model.norm_heads(part, f"{layer}.norm_{name}")
                    for part, name in zip(qk.chunk(2, -1), "qk", strict=True)
                ]
                qk = torch.cat(heads, -1)
            if model.table is not None:
                qk = rotate(qk[None], model.table[before:after])[0]
            q, k, v = (part.view(len(fresh), shape.heads, -1).transpose(0, 1) for part in (*qk.chunk(2, -1), v))
            self._keys[layer, :, before:after], self._values[layer, :, before:after] = k, v
            keys, values = self._keys[layer, :, :after], self._values[layer, :, :after]
            seen = torch.ones(len(fresh), after, dtype=torch.bool).tril(before)
            mixed = functional.scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=seen)[0]
            x = model.add(x, mixed.transpose(0, 1).flatten(1), f"{layer}.attention_out")
            inner = model.linear(rms_norm(x, w[f"{layer}.norm_ffw"]), f"{layer}.ffw_in")
            x = model.add(x, model.activate(inner), f"{layer}.ffw_out")
        return model.linear(rms_norm(x[-1:], w["norm_out"]), "embedding" if shape.tied_head else "head")[0]


def draw(logits: Tensor, how: Drawing, generator: torch.Generator) -> int:
    """One token: nucleus sampling (Holtzman et al. 2020) among the ``top_k`` likeliest."""
    if how.temperature == 0:
        return int(logits.argmax())
    ordered, tokens = ((logits.double() - logits.max()) / how.temperature).sort(descending=True, stable=True)
    if how.top_k:
        ordered = ordered[: how.top_k]
    chances = ordered.softmax(-1)
    kept = chances.cumsum(-1) - chances < how.top_p  # the one that reaches top_p is in
    chances = torch.where(kept, chances, 0.0)
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])


def generate(decoder: Decoder, prompt: Sequence[int], how: Drawing, *, tokens: int, end: int | None) -> Iterator[int]:
    """Up to ``tokens`` tokens after the prompt; ``end`` ends the text, and is not given.

    Parameters
    ----------
    prompt
        One token or more.

    Raises
    ------
    UserError
        If the model's numbers are not finite.
    """
    generator = torch.Generator().manual_seed(how.seed)
    fresh = list(prompt)
    for _ in range(tokens):
        logits = decoder.logits(fresh)
        if not logits.isfinite().all():
            raise UserError("the model gives numbers that are not finite, as its run diverged; choose another point.")
        token = draw(logits, how, generator)
        if token == end:
            return
        yield token
        fresh = [token]


def texts(tokens: Iterator[int], vocabulary: Vocabulary) -> Iterator[str]:
    """The text of tokens as it grows: a character is given once all of its bytes are there."""
    if isinstance(vocabulary, Bytes):
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", final=True)
        return
    drawn, said = list[int](), ""
    for token in tokens:
        drawn.append(token)
        text = vocabulary.decode(drawn)
        if not text.endswith("\ufffd"):
            yield text[len(said) :]
            said = text
    yield vocabulary.decode(drawn)[len(said) :]
