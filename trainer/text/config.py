"""What ``isoflop data prepare`` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class BadLines(StrEnum):
    """What becomes of JSON lines that are none, or lack the field."""

    refuse = "refuse"
    skip = "skip"


class ShardType(StrEnum):
    """The integers that shards hold; ``auto`` takes the smallest that numbers the vocabulary."""

    auto = "auto"
    uint8 = "uint8"
    uint16 = "uint16"
    uint32 = "uint32"


@dataclass(kw_only=True)
class PrepareConfig:
    """Text in, token shards out."""

    path: Any = None
    """A file, a folder, a pattern like ``text/**/*.md``, or a list of such. Kinds go by the name: .jsonl (.ndjson, and
    .json where named), .parquet and .arrow, also a folder that ``datasets`` saved; everything else is plain text. Text
    and JSON lines may be compressed: .gz, .bz2, .zst, .lz4."""
    validation: dict[str, Any] = field(default_factory=dict)
    """``validation.NAME=path``: a validation set of its own, reported under its name."""
    out: str | None = None
    """The folder to write, for ``data=tokens data.path=``."""
    held_out: float | None = None
    """Share of the documents of ``path`` that become the set ``validation``; null: 0.01, or 0 with other sets."""
    split_seed: int = 0
    """Another one holds out other documents."""
    field: str = "text"
    """JSON lines, parquet, arrow: where a document's text is."""
    separator: str | None = None
    r"""Plain text: what parts the documents of a file (\n and \t are understood); null: a file is a document."""
    bad_lines: BadLines = BadLines.refuse
    """JSON lines that are none, or lack the field."""
    deduplicate: bool = False
    """Keep one of documents that are the same to the byte; one that a validation set has is left out of training."""
    tokenizer: str = "bytes"
    """bytes: UTF-8 as it is, 256 tokens. bpe: byte-pair encoding, trained here. Else a tokenizer.json."""
    vocabulary: int = 4096
    """bpe: how many tokens to make."""
    sample_mb: float = 100.0
    """bpe: how much text, spread over all inputs, it is trained on."""
    end_of_text: str | None = None
    """A tokenizer.json: the token that goes between documents; null looks for the usual ones."""
    dtype: ShardType = ShardType.auto
    """Of the shards."""
    shard_mb: float = 0.0
    """Input per shard; 0: a 64th of all, between 4 and 256."""
    workers: int = 0
    """Processes; 0 takes one per core. The result does not depend on it."""
    fresh: bool = False
    """Start over where an earlier, unfinished preparation had other settings or inputs."""
