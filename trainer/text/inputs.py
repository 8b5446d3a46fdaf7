"""Which files a path means, what they hold, and how they are cut into units of work of about the same size.

Cuts depend on the files alone, never on who works: that is what makes the result the same for any number of workers.
"""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from trainer.errors import UserError
from trainer.text.records import cuttable


class Kind(StrEnum):
    """How a file holds documents."""

    text = "text"
    jsonl = "jsonl"
    parquet = "parquet"
    arrow = "arrow"


COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
KINDS = {
    ".jsonl": Kind.jsonl,
    ".ndjson": Kind.jsonl,
    ".json": Kind.jsonl,
    ".parquet": Kind.parquet,
    ".arrow": Kind.arrow,
}
TEXTS = frozenset(
    f".{name}"
    for names in (
        "txt text md markdown rst tex org adoc html htm xml srt sql",
        "py pyi c h cc cpp hpp cu rs go java js ts jsx tsx rb pl php sh r jl scala kt swift hs ml lisp el lua f90 m cs",
    )
    for name in names.split()
)
"""What is taken for plain text in a folder; a file that is named, or that a pattern finds, may be called anything."""
STATE, SPLITS = "state.json", "dataset_dict.json"
"""Files of a folder that the ``datasets`` library saved: of one data set, and of one with splits."""
LEAST, MOST, PARTS = 4 << 20, 256 << 20, 64


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file, or the part of one whose documents begin at ``start`` or later, and before ``stop``.

    The two count bytes of text and JSON lines, row groups of parquet, batches of arrow.
    """

    path: str
    kind: Kind
    compression: str | None = None
    start: int = 0
    stop: int | None = None
    size: int
    """Bytes on disk, about."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one worker does at a time; gives one shard of each part it has documents for."""

    number: int
    part: str
    """``train``, or the validation set that all documents go to."""
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(piece.size for piece in self.pieces)


def find(name: str, paths: Sequence[str]) -> list[Piece]:
    """The files that the paths of an option mean, each once, in the order of the paths and then of their names.

    Raises
    ------
    UserError
        If a path means no file with text.
    """
    found: dict[str, Piece] = {}
    for path in paths:
        files = _files(name, path)
        for file in files:
            found.setdefault(str(file.absolute()), _piece(file.absolute()))
        if not files:
            raise UserError(
                f"{name}={path} finds no file with text; name a file, a folder with some, or a pattern such as "
                "'text/**/*.txt'."
            )
    return list(found.values())


def cut(files: Sequence[Piece], *, shard_bytes: int, separator: bytes | None) -> Iterator[tuple[Piece, ...]]:
    """Group small files and part large ones, each group about ``shard_bytes`` of input."""
    group: list[Piece] = []
    held = 0
    for piece in (piece for file in files for piece in _parted(file, shard_bytes, separator)):
        if group and held + piece.size > shard_bytes:
            yield tuple(group)
            group, held = [], 0
        group.append(piece)
        held += piece.size
    if group:
        yield tuple(group)


def unit_bytes(total: int, shard_mb: float) -> int:
    """Input per unit."""
    return max(1, int(shard_mb * 2**20)) if shard_mb else min(max(total // PARTS, LEAST), MOST)


def _files(name: str, path: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_dir():
        return _inside(name, place)
    if place.is_file():
        return [place]
    matched = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207  (Path's takes no absolute pattern)
    return [Path(each) for each in matched if Path(each).is_file()]


def _inside(name: str, folder: Path) -> list[Path]:
    """A folder's files: a saved data set's own, or all whose name says that they are text, hidden ones left out."""
    if (folder / SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        raise UserError(f"{name}={folder} holds the splits {', '.join(splits)}; name one: {name}={folder / splits[0]}.")
    if (folder / STATE).is_file():
        try:
            return [folder / each["filename"] for each in json.loads((folder / STATE).read_text())["_data_files"]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{name}={folder}: {STATE} is damaged; save the data set again.") from None
    below = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in below if _textual(path) and not _hidden(path.relative_to(folder))]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _textual(path: Path) -> bool:
    """Whether a file's name says that it holds documents; what is called plain .json is more often settings."""
    content, packed = _suffixes(path)
    return content in TEXTS or (content in KINDS and (content != ".json" or bool(packed)))


def _suffixes(path: Path) -> tuple[str, str]:
    """What the name says of the content, and of the compression."""
    last = path.suffix.lower()
    if last in COMPRESSED:
        return path.with_suffix("").suffix.lower(), last
    return last, ""


def _piece(path: Path) -> Piece:
    content, packed = _suffixes(path)
    kind = KINDS.get(content, Kind.text)
    if packed and kind in (Kind.parquet, Kind.arrow):
        raise UserError(f"{path} is a compressed {kind} file, which cannot be read; decompress it first.")
    return Piece(path=str(path), kind=kind, compression=COMPRESSED.get(packed), size=path.stat().st_size)


def _parted(file: Piece, wanted: int, separator: bytes | None) -> Iterator[Piece]:
    if file.size <= wanted or file.compression:
        yield file
        return
    if file.kind is Kind.jsonl or (file.kind is Kind.text and separator and cuttable(separator)):
        parts = -(-file.size // wanted)
        edges = [file.size * number // parts for number in range(parts + 1)]
        for start, stop in itertools.pairwise(edges):
            yield replace(file, start=start, stop=stop, size=stop - start)
    elif file.kind in (Kind.parquet, Kind.arrow):
        from trainer.text.tables import block_sizes

        start = held = 0
        sizes = block_sizes(file.path, file.kind)
        for number, size in enumerate(sizes):
            held += size
            if held >= wanted or number + 1 == len(sizes):
                yield replace(file, start=start, stop=number + 1, size=held)
                start, held = number + 1, 0
    else:
        yield file
