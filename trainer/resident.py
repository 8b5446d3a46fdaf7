"""The training part of a corpus in a GPU's own memory, so that a batch costs no more than its windows' places."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.corpus import Corpus

SHARE = 0.125
"""Of the device's free memory that a corpus may take."""
READ_TOKENS = 1 << 24
"""Read from disk and sent at once."""


class ResidentTokens:
    """Windows of tokens by their places, gathered on the device."""

    def __init__(self, corpus: Corpus, device: torch.device) -> None:
        self._tokens = torch.empty(corpus.train_tokens, dtype=stored_dtype(corpus.vocabulary), device=device)
        for start in range(0, corpus.train_tokens, READ_TOKENS):
            part = np.ascontiguousarray(corpus.train[start : min(start + READ_TOKENS, corpus.train_tokens)])
            self._tokens[start : start + len(part)] = torch.from_numpy(part.astype(np.int64)).to(device)

    @property
    def bytes(self) -> int:
        """On the device."""
        return self._tokens.nbytes

    def gather(self, starts: NDArray[np.int64], length: int) -> Tensor:
        """As :meth:`trainer.shards.Tokens.gather`: int64 (len(starts), length), on the device."""
        device = self._tokens.device
        places = torch.from_numpy(starts)
        if device.type == "cuda":
            places = places.pin_memory().to(device, non_blocking=True)
        index = places[:, None] + torch.arange(length, device=device)
        return self._tokens[index].long()


def stored_dtype(vocabulary: int) -> torch.dtype:
    """The narrowest that torch gathers on every device."""
    return torch.uint8 if vocabulary <= 256 else torch.int32


def resident(corpus: Corpus, device: torch.device) -> ResidentTokens | None:
    """The corpus on a GPU, where there is room for it; None elsewhere: a CPU reads the mapped shards themselves."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    item = torch.empty((), dtype=stored_dtype(corpus.vocabulary)).element_size()
    return ResidentTokens(corpus, device) if corpus.train_tokens * item <= SHARE * free else None
