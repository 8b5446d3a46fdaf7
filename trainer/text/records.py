"""Byte strings between separators, of a whole file or of a stretch of it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

CHUNK = 1 << 20


class Readable(Protocol):
    """What can be read from."""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end."""


def cuttable(separator: bytes) -> bool:
    """Whether no separator can overlap another, so that every reader finds the same ones from wherever it begins."""
    return not any(separator.startswith(separator[shift:]) for shift in range(1, len(separator)))


def stretch(path: Path, start: int, stop: int, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """The records of a file that begin in [start, stop), each with the byte it begins at.

    One begins where the file does and after every separator. Stretches that cover a file give each record once.
    """
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = start
        if start:
            before = content.find(separator, max(0, start - len(separator)))
            at = len(content) if before < 0 else before + len(separator)
        while at < min(stop, len(content)):
            end = content.find(separator, at)
            end = len(content) if end < 0 else end
            yield at, content[at:end]
            at = end + len(separator)


def split(stream: Readable, separator: bytes) -> Iterator[bytes]:
    """The records of a stream that cannot be read from the middle."""
    rest = b""
    while chunk := stream.read(CHUNK):
        *whole, rest = (rest + chunk).split(separator)
        yield from whole
    if rest:
        yield rest
