"""The documents of a piece of input, one text after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.text.config import BadLines
from trainer.text.inputs import Kind, Piece
from trainer.text.records import CHUNK, Readable, split, stretch
from trainer.text.tables import column

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The settings that decide what a document is."""

    field: str
    separator: bytes | None
    """Of plain text; None: a file is a document."""
    bad_lines: BadLines


@dataclass(frozen=True)
class Document:
    """A text and how it was read."""

    text: str
    """Empty where there was none."""
    repaired: bool = False
    """It was not UTF-8 throughout: what was not is U+FFFD now."""
    skipped: bool = False
    """It was a bad line."""


def documents(piece: Piece, reading: Reading) -> Iterator[Document]:
    """Every document of a piece, empty ones included.

    Raises
    ------
    UserError
        If the file is gone or damaged, or a line is not what it should be and ``bad_lines`` refuses that.
    """
    with _file_errors(piece.path):
        if piece.kind in (Kind.parquet, Kind.arrow):
            for text in column(piece.path, piece.kind.value, reading.field, piece.start, piece.stop):
                yield _decoded(text) if isinstance(text, bytes) else _sound(text or "")
        elif piece.kind is Kind.jsonl:
            for place, line in _records(piece, b"\n"):
                if line.strip():
                    yield _from_json(line, f"{piece.path}: the line {place}", reading)
        else:
            for _, raw in _records(piece, reading.separator):
                yield _decoded(raw)


def _records(piece: Piece, separator: bytes | None) -> Iterator[tuple[str, bytes]]:
    """Records, each with where it is, for messages."""
    path = Path(piece.path)
    if piece.compression is not None:
        with path.open("rb") as raw, _unpacked(raw, piece.compression) as stream:
            records = split(stream, separator) if separator else iter([_whole(stream)])
            for number, record in enumerate(records):
                yield f"number {number + 1}", record if number else record.removeprefix(BOM)
    elif separator is None:
        yield "", path.read_bytes().removeprefix(BOM)
    else:
        stop = path.stat().st_size if piece.stop is None else piece.stop
        for at, record in stretch(path, piece.start, stop, separator):
            yield f"at byte {at}", record if at else record.removeprefix(BOM)


def _whole(stream: Readable) -> bytes:
    return b"".join(iter(lambda: stream.read(CHUNK), b""))


def _unpacked(raw: Any, compression: str) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)


def _decoded(raw: bytes) -> Document:
    try:
        return Document(raw.decode())
    except UnicodeDecodeError:
        return Document(raw.decode(errors="replace"), repaired=True)


def _sound(text: str) -> Document:
    """JSON can hold halves of surrogate pairs, which UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return Document(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), repaired=True)
    return Document(text)


def _from_json(line: bytes, where: str, reading: Reading) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _bad(reading, f"{where} is not JSON ({error})")
    if not isinstance(row, dict) or reading.field not in row:
        keys = f"only {', '.join(map(str, row)) or 'nothing'}" if isinstance(row, dict) else "as it is no object"
        return _bad(reading, f"{where} has no field {reading.field!r}, {keys}; name the field of the text with field=")
    text = row[reading.field]
    if text is None:
        return Document("")
    if not isinstance(text, str):
        return _bad(reading, f"{where} has in {reading.field!r} no text, but {type(text).__name__}")
    return _sound(text)


def _bad(reading: Reading, why: str) -> Document:
    if reading.bad_lines is BadLines.skip:
        return Document("", skipped=True)
    raise UserError(f"{why}, or leave such lines out with bad_lines=skip.")


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # pyarrow's of a damaged stream is one without a number
        why = error.strerror or " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{path} cannot be read ({why}); replace it or leave it out.") from error
