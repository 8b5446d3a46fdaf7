"""A transformer whose loss and gradient come from the C++ step: the maths of :class:`trainer.model.Transformer`."""

from __future__ import annotations

import ctypes
import math
import weakref

import numpy as np
import torch
from torch import Tensor

from trainer.model import slots
from trainer.native.build import Spec, library
from trainer.recipe import Scaling
from trainer.shape import Activation, Positions, Shape

_PARTS = ("qkv", "attention_out", "ffw_in", "ffw_out", "norm_attention", "norm_ffw")


class NativeTransformer:
    """Computes from the fp32 master parameters ``flat`` (params_total,); bf16 is used inside.

    Parameters
    ----------
    chunk
        Sequences that are taken through the model together: few enough to stay in cache.
    """

    def __init__(
        self,
        shape: Shape,
        flat: Tensor,
        precision: str,
        *,
        chunk: int,
        threads: int,
        scaling: Scaling | None = None,
        z_loss: float = 0.0,
    ) -> None:
        lib = library(precision)
        if lib is None:
            raise RuntimeError(f"no C++ step in {precision} here")
        self.shape, self.flat, self._lib = shape, flat, lib
        spec, kept = _spec(shape, scaling, z_loss)
        self._step = lib.isoflop_make(ctypes.byref(spec), chunk, threads)
        del kept
        if not self._step:
            raise MemoryError("out of memory")
        weakref.finalize(self, lib.isoflop_free, self._step)

    def loss(self, windows: Tensor) -> Tensor:
        """Summed cross-entropy, in nats, of windows (B, T + 1) of token ids."""
        return self._run(windows, None)

    def gradient(self, windows: Tensor, into: Tensor) -> Tensor:
        """The loss of windows; its gradient overwrites ``into`` (params_total,)."""
        return self._run(windows, into)

    def _run(self, windows: Tensor, into: Tensor | None) -> Tensor:
        tokens = windows.contiguous()
        if tokens.shape[1] != self.shape.sequence + 1:
            raise ValueError(f"windows of {tokens.shape[1]} tokens, where the model takes {self.shape.sequence + 1}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.shape.vocabulary:
            raise ValueError("a token lies outside the vocabulary")
        total = self._lib.isoflop_run(
            self._step, self.flat.data_ptr(), tokens.data_ptr(), len(tokens), None if into is None else into.data_ptr()
        )
        return torch.tensor(total, dtype=torch.float64)


def _spec(shape: Shape, scaling: Scaling | None, z_loss: float) -> tuple[Spec, list[np.ndarray]]:
    """The shape as C++ takes it, and the arrays it points to."""
    offsets, scales, offset = {}, {}, 0
    for slot in slots(shape, scaling):
        offsets[slot.name], scales[slot.name] = offset, slot.scale
        offset += slot.params
    names = ["embedding", "positions", "head", "norm_out"]
    names += [f"{layer}.{part}" for layer in range(shape.layers) for part in _PARTS]
    places = np.array([offsets.get(name, 0) for name in names], dtype=np.int64)
    factors = np.array([scales.get(name, 1.0) for name in names])
    angles = np.zeros((shape.sequence, shape.head_size))
    if shape.positions is Positions.rope:
        rates = 10_000.0 ** (-np.arange(0, shape.head_size, 2) / shape.head_size)
        angles = np.repeat(np.outer(np.arange(shape.sequence), rates), 2, axis=1)
    spec = Spec(
        layers=shape.layers,
        width=shape.d_model,
        heads=shape.heads,
        head_size=shape.head_size,
        ffw=shape.ffw,
        vocabulary=shape.vocabulary,
        sequence=shape.sequence,
        activation=list(Activation).index(shape.activation),
        learned_positions=shape.positions is Positions.learned,
        tied_head=shape.tied_head,
        params=shape.params_total,
        query_scale=1 / math.sqrt(shape.head_size),
        z_loss=z_loss,
        angles=angles.ctypes.data,
        offsets=places.ctypes.data,
        scales=factors.ctypes.data,
    )
    return spec, [angles, places, factors]
