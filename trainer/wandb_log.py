"""The framing of W&B's own files (``run-<id>.wandb``), as offline runs leave them.

A file is a header of seven bytes, then a log in LevelDB's framing: blocks of 32 KiB, in them chunks of a checksum, a
length and a kind, and chunks make up records, which are protocol buffers. The format is W&B's internal one; only this
module knows it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAGIC = b":W&B"
HEADER = 7
BLOCK = 32 * 1024
CHUNK = struct.Struct("<IHB")
"""crc32 of kind and content, length, kind."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(raw: bytes, faults: list[str]) -> Iterator[bytes]:
    """The whole records of a file's bytes; what is wrong with it is added to ``faults``.

    After a damaged chunk the next block is tried, as LevelDB does.
    """
    at = HEADER
    parts: list[bytes] | None = None
    while at + CHUNK.size <= len(raw):
        left = BLOCK - at % BLOCK
        if left < CHUNK.size:  # a block's last bytes hold no chunk
            at += left
            continue
        checksum, length, kind = CHUNK.unpack_from(raw, at)
        begin = at + CHUNK.size
        content = raw[begin : begin + length]
        if len(content) < length and begin + length <= at + left:
            break
        sound = begin + length <= at + left and zlib.crc32(content, zlib.crc32(bytes([kind]))) == checksum
        if not sound:
            faults.append(f"is damaged at byte {at}; the rest was read")
            at, parts = at + left, None
            continue
        at = begin + length
        if kind in (FULL, FIRST):
            parts = []
        if parts is None:  # the record's beginning was in a damaged block
            continue
        parts.append(content)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = None
    if at < len(raw) or parts is not None:
        faults.append(f"is cut short after {len(raw)} bytes; the rest was read")
