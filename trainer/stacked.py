"""Several models of one shape as one: the first dimension of parameters is the model, and that of activations too.

Products become batched ones, everything else works on all rows at once: what a device launches for several small models
is about what it launches for one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.kernels import NORM_EPS, cross_entropies, lookup
from trainer.model import Transformer


class StackedTransformer(Transformer):
    """As :class:`trainer.model.Transformer`, from parameters ``flat`` (K, params_total) of K models.

    Token ids are (K B, T), the first model's B sequences first; so are all activations' rows.
    """

    @property
    def _members(self) -> int:
        """K."""
        return len(self.tensors["embedding"])

    def losses(self, windows: Tensor) -> Tensor:
        """(K,) summed cross-entropies, in nats, of windows (K, B, T + 1) of token ids; their sum is differentiated."""
        logits = self.logits(windows[:, :, :-1].flatten(0, 1))
        return cross_entropies(logits, windows[:, :, 1:].flatten(), len(windows), self._z_loss)

    def look_up(self, tokens: Tensor) -> Tensor:
        """Each model in its own table."""
        table, rows = self.tensors["embedding"], self.shape.vocabulary
        first = torch.arange(0, self._members * rows, rows, device=tokens.device)
        index = (tokens.reshape(self._members, -1) + first[:, None]).flatten()
        return lookup(table.reshape(-1, table.shape[-1]), index, self._members)

    def place(self, x: Tensor, batch: int, length: int) -> Tensor:
        """Each model with its own positions."""
        positions = self.tensors["positions"][:, None, :length]
        return (x.view(self._members, batch // self._members, length, -1) + positions).flatten(0, 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Each model with its own gain."""
        wide = x.view(self._members, -1, x.shape[-1]).float()
        inverse = (wide.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        return (wide * inverse * self.tensors[name][:, None].float()).to(x.dtype).flatten(0, 1)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Each model with its own matrix."""
        out = torch.bmm(x.view(self._members, -1, x.shape[-1]), self.tensors[name].mT).flatten(0, 1)
        return out if self._scale[name] == 1 else out * self._scale[name]

    def add(self, stream: Tensor, x: Tensor, name: str) -> Tensor:
        """Each model with its own matrix."""
        stream, x = (each.view(self._members, -1, each.shape[-1]) for each in (stream, x))
        return torch.baddbmm(stream, x, self.tensors[name].mT, alpha=self._scale[name]).flatten(0, 1)
