"""Which of documents that are the same to the byte is kept: the first one of a validation set, else the first one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.files import write_whole
from trainer.shards import TRAIN
from trainer.text.encode import Work
from trainer.text.inputs import Unit


def first_ones(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of rows (n, 2), whether each is the first of its kind, (n,)."""
    words = hashes.view([("a", np.uint64), ("b", np.uint64)]).reshape(-1)
    _, first = np.unique(words, return_index=True)
    kept = np.zeros(len(hashes), np.bool_)
    kept[first] = True
    return kept


def mark(units: Sequence[Unit], work: Work) -> None:
    """From every unit's hashes, write which of its documents are kept."""
    ordered = sorted(units, key=lambda unit: (unit.part == TRAIN, unit.number))  # validation sets keep theirs
    hashes = [np.fromfile(work.hashes(unit), np.uint64).reshape(-1, 2) for unit in ordered]
    kept = first_ones(np.concatenate(hashes))
    ends = np.cumsum([len(each) for each in hashes])
    for unit, part in zip(ordered, np.split(kept, ends[:-1]), strict=True):
        write_whole(work.kept(unit), part.tobytes())
