"""One unit of work: its documents, told apart by their content, become one shard of each part they belong to.

A unit is finished when its record (``units/00012.json``) is there, which is written last. What a unit gives depends on
the unit and the settings alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.files import disk_faults, write_json, write_whole
from trainer.shards import BYTES, DTYPES, TRAIN, VALIDATION
from trainer.text.documents import Document, Reading, documents
from trainer.text.inputs import Unit
from trainer.text.vocabulary import Bytes, Subwords, Vocabulary, library

AT_ONCE = 1 << 20
"""Characters encoded at once."""
HASH_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every unit's work needs to know."""

    folder: Path
    """With ``units/`` and ``corpus/`` in it."""
    reading: Reading
    split_seed: int
    held_out: float
    dtype: str
    tokenizer: str
    """``bytes``, or the path of a tokenizer.json."""
    end_of_text: int
    deduplicate: bool

    def vocabulary(self) -> Vocabulary:
        """The vocabulary, read once in every process."""
        return _vocabulary(self.tokenizer, self.end_of_text)

    def shard(self, part: str, unit: Unit) -> Path:
        """Where a unit's shard of a part lies."""
        return self.folder / "corpus" / f"{part}-{unit.number:05d}.bin"

    def record(self, unit: Unit) -> Path:
        """Says that a unit is finished, and what it gave."""
        return self.folder / "units" / f"{unit.number:05d}.json"

    def hashes(self, unit: Unit) -> Path:
        """The hashes of a unit's documents, (documents, 2) words of 64 bits; those of empty ones are 0."""
        return self.folder / "units" / f"{unit.number:05d}.hashes"

    def kept(self, unit: Unit) -> Path:
        """One byte per document of a unit: whether it is the one kept of its kind."""
        return self.folder / "units" / f"{unit.number:05d}.kept"


@functools.lru_cache(maxsize=1)
def _vocabulary(tokenizer: str, end_of_text: int) -> Vocabulary:
    if tokenizer == BYTES:
        return Bytes(end_of_text)
    return Subwords(library().Tokenizer.from_file(tokenizer), end_of_text)


Report = Callable[[int], None]
"""Takes the bytes of input that were just finished."""


def read_unit(unit: Unit, reading: Reading, report: Report = lambda size: None) -> Iterator[Document]:
    """Every document of a unit."""
    for piece in unit.pieces:
        left = piece.size
        for document in documents(piece, reading):
            yield document
            done = min(left, len(document.text)) if piece.compression is None else 0
            left -= done
            report(done)
        report(left)


def hash_unit(unit: Unit, work: Work, report: Report) -> None:
    """Write the hashes of a unit's documents."""
    digests = [
        fingerprint(document.text.encode(), work.split_seed) if document.text else bytes(HASH_BYTES)
        for document in read_unit(unit, work.reading, report)
    ]
    write_whole(work.hashes(unit), b"".join(digests))


def encode_unit(unit: Unit, work: Work, report: Report) -> None:
    """Write a unit's shards, and then its record."""
    kept = np.fromfile(work.kept(unit), np.bool_) if work.deduplicate else None
    vocabulary = work.vocabulary()
    counts: Counter[str] = Counter()
    shards: dict[str, _Shard] = {}
    try:
        for number, document in enumerate(read_unit(unit, work.reading, report)):
            counts["skipped"] += document.skipped
            if not document.text:
                counts["empty"] += not document.skipped
                continue
            if kept is not None and not kept[number]:
                counts["duplicates"] += 1
                continue
            counts["repaired"] += document.repaired
            raw = document.text.encode()
            part = unit.part
            if part == TRAIN and share(fingerprint(raw, work.split_seed)) < work.held_out:
                part = VALIDATION
            if part not in shards:
                shards[part] = _Shard(work.shard(part, unit), DTYPES[work.dtype], vocabulary)
            shards[part].add(document.text, len(raw))
        parts = {part: shard.close() for part, shard in shards.items()}
    finally:
        for shard in shards.values():
            shard.discard()
    write_json(work.record(unit), {"parts": parts, **counts})


def finished(unit: Unit, work: Work) -> dict[str, Any] | None:
    """A finished unit's record; None where it is to be done (again)."""
    try:
        record: dict[str, Any] = json.loads(work.record(unit).read_text())
        item = np.dtype(DTYPES[work.dtype]).itemsize
        sizes = {part: work.shard(part, unit).stat().st_size for part in record["parts"]}
        whole = all(size == item * record["parts"][part]["tokens"] for part, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def fingerprint(raw: bytes, seed: int) -> bytes:
    """128 bits of a document's content."""
    return hashlib.blake2b(raw, digest_size=HASH_BYTES, key=str(seed).encode()).digest()


def share(digest: bytes) -> float:
    """A document's place in [0, 1), by which it is held out or not: the same for the same text, wherever it stands."""
    return int.from_bytes(digest[:7], "little") / 2**56


class _Shard:
    """Writes one shard under another name until it is whole."""

    def __init__(self, path: Path, dtype: str, vocabulary: Vocabulary) -> None:
        self._path, self._dtype, self._vocabulary = path, dtype, vocabulary
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with disk_faults(path):
            self._file: BinaryIO = self._temporary.open("wb")
        self._waiting: list[str] = []
        self._held = self._bytes = self._documents = self._tokens = 0
        self._digest = hashlib.sha256()

    def add(self, text: str, size: int) -> None:
        """Take a document of ``size`` bytes."""
        self._waiting.append(text)
        self._held += len(text)
        self._bytes += size
        self._documents += 1
        if self._held >= AT_ONCE:
            self._encode()

    def close(self) -> dict[str, Any]:
        """Put the shard in its place; what is in it."""
        self._encode()
        with disk_faults(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._path)
        return {
            "tokens": self._tokens,
            "bytes": self._bytes,
            "documents": self._documents,
            "sha256": self._digest.hexdigest(),
        }

    def discard(self) -> None:
        """Leave nothing of a shard that was not closed."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _encode(self) -> None:
        tokens: NDArray[Any] = self._vocabulary.encode(self._waiting).astype(self._dtype)
        self._waiting.clear()
        self._held = 0
        self._tokens += len(tokens)
        self._digest.update(tokens.data)
        with disk_faults(self._path):
            self._file.write(tokens.data)
