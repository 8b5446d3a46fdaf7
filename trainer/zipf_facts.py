"""A synthetic corpus of facts whose entropy is known: what a perfect model's loss would be.

A text of triples (a, b, v). A key is drawn with Zipf's probability ~ rank^-1.2 out of 16,384, and written as two
symbols a, b out of two alphabets of 128 that share none; its value v is the key's own with probability 0.9, and
otherwise uniform over all 256 symbols. Nothing else can be known, so no model's expected loss lies below
:func:`entropy_floor`.

One 64-bit draw makes a triple: 32 bits choose the key, 24 whether it has its own value, 8 the value it has otherwise.
Only raw bits of PCG64 are used, the part of numpy's generators whose stream is promised to stay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.shards import Header

VERSION = 1
"""Part of the corpus id: to be raised by any change of the text."""
VOCABULARY = 256
VALIDATION_TOKENS = 3_000_000
KEYS = 16_384
EXPONENT = 1.2
OWN_VALUE = 0.9
_ALPHABET = 128
_CHUNK = 1 << 20
_TABLE, _TRAIN, _VALIDATION = range(3)


@functools.cache
def _key_edges() -> NDArray[np.uint32]:
    """Where each key but the first begins in the range of 32-bit draws, (KEYS - 1,)."""
    weights = np.array([rank**-EXPONENT for rank in range(1, KEYS + 1)])
    shares = np.cumsum(weights) / math.fsum(weights)
    return np.rint(shares[:-1] * 2.0**32).astype(np.uint32)


_OWN_DRAWS = round(OWN_VALUE * 2**24)


def entropy_floor() -> float:
    """(H(key) + H(value | key)) / 3, in nats per token, of the probabilities as they are drawn."""
    edges = np.concatenate([[0], _key_edges().astype(np.float64), [2.0**32]])
    keys = np.diff(edges) / 2.0**32
    other = (1 - _OWN_DRAWS / 2**24) / VOCABULARY
    own = 1 - other * (VOCABULARY - 1)
    value_entropy = -own * math.log(own) - (VOCABULARY - 1) * other * math.log(other)
    return (-float(np.sum(keys * np.log(keys))) + value_entropy) / 3


def _stream(seed: int, part: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed, part]))


def _triples(draws: NDArray[np.uint64], values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draws (n,) and the value of every key (KEYS,) to tokens (n, 3)."""
    keys = np.searchsorted(_key_edges(), (draws >> 32).astype(np.uint32), side="right")
    own = ((draws >> 8) & 0xFFFFFF) < _OWN_DRAWS
    out = np.empty((len(draws), 3), np.uint8)
    out[:, 0] = keys // _ALPHABET
    out[:, 1] = _ALPHABET + keys % _ALPHABET
    out[:, 2] = np.where(own, values[keys], (draws & 0xFF).astype(np.uint8))
    return out


def make(
    folder: Path, *, tokens: int, seed: int, progress: Callable[[str, float], None]
) -> tuple[Header, dict[str, Any]]:
    """Write the shards of ``tokens`` training tokens into ``folder``; give their header and what is known of them."""
    values = (_stream(seed, _TABLE).random_raw(KEYS) >> np.uint64(56)).astype(np.uint8)
    counts = {"train": tokens, "validation": VALIDATION_TOKENS}
    done, total = 0, sum(counts.values())
    for part, number in (("train", _TRAIN), ("validation", _VALIDATION)):
        stream = _stream(seed, number)
        left = counts[part]
        with (folder / f"{part}.bin").open("wb") as file:
            while left:
                text = _triples(stream.random_raw(min(_CHUNK, -(-left // 3))), values).reshape(-1)[:left]
                file.write(text.data)
                left -= len(text)
                done += len(text)
                progress("making zipf_facts", done / total)
    header = Header(
        vocabulary=VOCABULARY,
        dtype="uint8",
        tokens=counts,
        bytes={"validation": VALIDATION_TOKENS},
        shards={part: [f"{part}.bin"] for part in counts},
    )
    return header, {"entropy_floor_nats_per_token": entropy_floor()}
