"""Which tokens a batch holds: a pure function of (seed, index), so that a run has no loader state to save.

The training part is cut into windows of ``sequence`` + 1 tokens that overlap by one, so every token but the first is a
target once an epoch. Each epoch visits all windows in an order of its own: a keyed permutation of the window numbers,
computed for just the windows asked for by a Feistel network over two digits of mixed radix [1], whose few numbers
beyond the last window are sent through again (cycle-walking).

References
----------
.. [1] Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, the generalised Feistel cipher.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from trainer.corpus import Corpus

_ROUNDS = 4


def train_batch(corpus: Corpus, *, seed: int, index: int, sequences: int, sequence: int) -> NDArray[np.int64]:
    """Batch ``index`` (from 0): int64 (sequences, sequence + 1), inputs and, one to the right, targets.

    Row k is window number ``index * sequences + k`` of the seed's stream, so the stream does not depend on how it is
    cut into batches.

    Raises
    ------
    UserError
        If the training part has not one window.
    """
    starts = window_starts(corpus, seed=seed, index=index, sequences=sequences, sequence=sequence)
    return corpus.train.gather(starts, sequence + 1)


def window_starts(corpus: Corpus, *, seed: int, index: int, sequences: int, sequence: int) -> NDArray[np.int64]:
    """Where in the training part the windows of a batch begin, int64 (sequences,); see :func:`train_batch`."""
    windows = (corpus.train_tokens - 1) // max(sequence, 1)
    if sequence < 1 or windows < 1:
        corpus.check_windows(sequence=sequence, eval_windows=1)
    first, last = index * sequences, (index + 1) * sequences
    epochs = range(first // windows, (last - 1) // windows + 1)
    visited = [
        permutation(range(max(first - epoch * windows, 0), min(last - epoch * windows, windows)), windows, seed, epoch)
        for epoch in epochs
    ]
    return np.concatenate(visited) * sequence


def permutation(places: range, size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The numbers at ``places`` in an epoch's order of 0 .. size - 1, int64 (len(places),)."""
    keys = _keys(seed, epoch)
    numbers = _feistel(np.arange(places.start, places.stop, dtype=np.uint64), size, keys)
    while (beyond := numbers >= size).any():
        numbers[beyond] = _feistel(numbers[beyond], size, keys)
    return numbers.astype(np.int64)


def eval_windows(corpus: Corpus, *, windows: int, sequence: int) -> dict[str, NDArray[np.int64]]:
    """By validation set, its windows, int64 (windows, sequence + 1): evenly spaced, none overlapping, always the same.

    Raises
    ------
    UserError
        If they do not fit into a set.
    """
    corpus.check_windows(sequence=sequence, eval_windows=windows)
    spaced = np.arange(windows, dtype=np.int64)
    return {
        held_out.name: held_out.tokens.gather(spaced * (len(held_out.tokens) - 1) // windows, sequence + 1)
        for held_out in corpus.sets
    }


@functools.lru_cache(maxsize=1024)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    return tuple(int.from_bytes(digest[8 * turn : 8 * turn + 8], "little") for turn in range(_ROUNDS))


def _feistel(numbers: NDArray[np.uint64], size: int, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    """A permutation of 0 .. radix_left * radix_right - 1, of which fewer than radix_left lie at or above ``size``."""
    radix_left = math.isqrt(size - 1) + 1
    radix_right = -(-size // radix_left)
    left, right = np.divmod(numbers, np.uint64(radix_right))
    for turn, key in enumerate(keys):
        if turn % 2:
            right = (right + _mix(left + np.uint64(key)) % radix_right) % radix_right
        else:
            left = (left + _mix(right + np.uint64(key)) % radix_left) % radix_left
    return left * np.uint64(radix_right) + right


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a word on every other: the finaliser of MurmurHash3."""
    words = (words ^ (words >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    words = (words ^ (words >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return words ^ (words >> np.uint64(33))
