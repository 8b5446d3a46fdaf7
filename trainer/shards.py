"""Token shards: the one format every corpus has, made here or by a user.

A folder holds ``header.json`` and shards. A shard is nothing but token numbers, little-endian, one after the other,
with no header of its own (what ``numpy.ndarray.tofile`` writes, and nanoGPT's ``train.bin``). The header::

    {
      "vocabulary": 50257,                       tokens are 0 .. vocabulary - 1
      "dtype": "uint16",                         uint8, uint16 or uint32
      "tokens": {"train": 900000, "validation": 30000},
      "bytes": {"validation": 131072},           UTF-8 bytes of the validation text, for bits per byte
      "shards": {"train": ["train_0.bin", "train_1.bin"], "validation": ["validation.bin"]}
    }

``tokens`` counts each part over all its shards, read in the order listed, as one stream; names are relative to the
folder; further fields are ignored. Every part beside ``train`` is a validation set, reported under its name; the one
called ``validation``, or else the first one listed in ``shards``, gives the loss that fits read. Optional fields::

      "sha256": {"train": ["9f86d0...", ...], ...},    of each shard: then every change of content is another corpus
      "tokenizer": "tokenizer.json",                   a file of the folder, or "bytes": tokens are UTF-8 bytes
      "end_of_text": 50256                             the token between documents

``isoflop data prepare`` writes such folders from text. One is written by hand in a few lines::

    train, validation = np.array(encode(train_text)), np.array(encode(validation_text))
    train.astype("<u2").tofile("mine/train.bin")
    validation.astype("<u2").tofile("mine/validation.bin")
    header = {"vocabulary": 50257, "dtype": "uint16", "tokens": {"train": len(train), "validation": len(validation)}}
    header["bytes"] = {"validation": len(validation_text.encode())}
    header["shards"] = {"train": ["train.bin"], "validation": ["validation.bin"]}
    json.dump(header, open("mine/header.json", "w"))

and used with ``data=tokens data.path=mine``.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError

HEADER = "header.json"
TRAIN, VALIDATION = "train", "validation"
BYTES = "bytes"
"""The tokenizer of a corpus whose tokens are bytes."""
PART_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
_MAPPED_AT_ONCE = 256
"""Every mapped shard holds a file descriptor, of which a process often has 1024."""
_EDGE_BYTES = 4096
_SCAN_TOKENS = 1 << 24


class ShardError(Exception):
    """A folder does not hold the shards its header promises; the message is a clause that says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What ``header.json`` says; see the module's docstring."""

    vocabulary: int
    dtype: str
    tokens: Mapping[str, int]
    """Of each part."""
    bytes: Mapping[str, int]
    """Of text, in each validation set."""
    shards: Mapping[str, Sequence[str]]
    sha256: Mapping[str, Sequence[str]] | None = None
    tokenizer: str | None = None
    end_of_text: int | None = None

    @property
    def validation_sets(self) -> list[str]:
        """Names, the one whose loss fits read first."""
        names = [part for part in self.shards if part != TRAIN]
        return sorted(names, key=lambda name: name != VALIDATION)

    @property
    def coding(self) -> str | None:
        """How tokens are text: the tokenizer named, else bytes where they can be nothing else."""
        return BYTES if self.tokenizer is None and (self.vocabulary, self.dtype) == (256, "uint8") else self.tokenizer

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        parts = [TRAIN, *self.validation_sets]
        raw: dict[str, Any] = {
            "vocabulary": self.vocabulary,
            "dtype": self.dtype,
            "tokens": {part: self.tokens[part] for part in parts},
            "bytes": {part: self.bytes[part] for part in self.validation_sets},
            "shards": {part: list(self.shards[part]) for part in parts},
        }
        if self.sha256 is not None:
            raw["sha256"] = {part: list(self.sha256[part]) for part in parts}
        optional = {"tokenizer": self.tokenizer, "end_of_text": self.end_of_text}
        return raw | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def from_dict(cls, raw: Any) -> Header:
        """Check every field.

        Raises
        ------
        ShardError
            If a field is missing or cannot be.
        """
        dtype = _field(raw, "dtype")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ShardError(f"{HEADER} has dtype={dtype!r}, which is not one of {', '.join(DTYPES)}")
        vocabulary = _count(raw, "vocabulary")
        if vocabulary > numbered(dtype):
            raise ShardError(
                f"{HEADER} has vocabulary={vocabulary}, but dtype={dtype} numbers only {numbered(dtype)} tokens"
            )
        listed = _field(raw, "shards")
        others = [part for part in listed if part != TRAIN] if isinstance(listed, Mapping) else []
        parts = [TRAIN, *(others or [VALIDATION])]
        shards = {part: _names(raw, part) for part in parts}
        tokenizer, end = raw.get("tokenizer"), raw.get("end_of_text")
        if tokenizer is not None and not isinstance(tokenizer, str):
            raise ShardError(f"{HEADER} has tokenizer={tokenizer!r}, which is neither a file name nor {BYTES!r}")
        if end is not None and (type(end) is not int or not 0 <= end < vocabulary):
            raise ShardError(f"{HEADER} has end_of_text={end!r}, which is no token of its vocabulary={vocabulary}")
        return cls(
            vocabulary=vocabulary,
            dtype=dtype,
            tokens={part: _count(raw, "tokens", part) for part in parts},
            bytes={part: _count(raw, "bytes", part) for part in parts[1:]},
            shards=shards,
            sha256=_digests(raw, shards),
            tokenizer=tokenizer,
            end_of_text=end,
        )


def numbered(dtype: str) -> int:
    """How many tokens a dtype of shards tells apart."""
    return int(np.iinfo(DTYPES[dtype]).max) + 1


def _names(raw: Any, part: str) -> list[str]:
    if not PART_NAME.fullmatch(part):
        raise ShardError(f"{HEADER} has a part {part!r}; name it with up to 40 letters, digits and _, a letter first")
    names = _field(raw, "shards", part)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ShardError(f"{HEADER} has shards.{part}={names!r}, which is not a list of file names")
    return names


def _digests(raw: Any, shards: Mapping[str, Sequence[str]]) -> dict[str, list[str]] | None:
    if raw.get("sha256") is None:
        return None
    digests = {part: _field(raw, "sha256", part) for part in shards}
    for part, names in shards.items():
        if not isinstance(digests[part], list) or len(digests[part]) != len(names):
            raise ShardError(f"{HEADER} has not one sha256.{part} for each of shards.{part}")
    return digests


def _field(raw: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(raw, Mapping) or name not in raw:
            raise ShardError(f"{HEADER} has no field {'.'.join(path)}")
        raw = raw[name]
    return raw


def _count(raw: Any, *path: str) -> int:
    value = _field(raw, *path)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShardError(f"{HEADER} has {'.'.join(path)}={value!r}, which is not a whole number of at least 1")
    return value


def read_header(folder: Path) -> dict[str, Any]:
    """The header's JSON object, unchecked.

    Raises
    ------
    ShardError
        If the file is absent or no JSON object.
    """
    try:
        raw = json.loads((folder / HEADER).read_bytes())
    except OSError as error:
        raise ShardError(f"{HEADER} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ShardError(f"{HEADER} is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ShardError(f"{HEADER} is not a JSON object")
    return raw


class Tokens:
    """One part of a corpus as one stream of tokens over memory-mapped shards.

    ``tokens[start:stop]`` is an array of the shards' dtype, read-only where it lies in one shard; ``len(tokens)``
    counts tokens.

    Raises
    ------
    UserError
        By a read, if a shard is no longer as long as it was.
    """

    def __init__(self, shards: Sequence[tuple[Path, int]], dtype: str) -> None:
        """``shards``: path and tokens of each."""
        filled = [(path, count) for path, count in shards if count]  # nothing of an empty file can be mapped
        self._paths = [path for path, _ in filled]
        self._starts = list(itertools.accumulate((count for _, count in filled), initial=0))
        self._dtype = np.dtype(dtype)
        self._shard = functools.lru_cache(maxsize=_MAPPED_AT_ONCE)(self._map)

    def _map(self, number: int) -> tuple[mmap.mmap, NDArray[Any]]:
        count = self._starts[number + 1] - self._starts[number]
        with self._paths[number].open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return mapped, np.frombuffer(mapped, self._dtype, count)

    def _tokens_of(self, number: int) -> NDArray[Any]:
        """A shard's, while the file is as long as it was: reading past the end of a shortened one kills the process."""
        try:
            mapped, tokens = self._shard(number)
            if mapped.size() == tokens.nbytes:
                return tokens
        except (OSError, ValueError):  # it is gone, or was shortened before it was mapped
            pass
        raise UserError(
            f"the shard {self._paths[number]} was changed or removed after it was opened; restore it, and submit again "
            "with retry=all."
        )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, span: slice) -> NDArray[Any]:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise IndexError(f"tokens are read in steps of 1, not {step}")
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        pieces = []
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            first, end = self._starts[number : number + 2]
            pieces.append(self._tokens_of(number)[start - first : stop - first])
            start, number = end, number + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self._dtype)

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """The windows of ``length`` tokens at ``starts``: int64 (len(starts), length)."""
        out = np.empty((len(starts), length), np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            row[:] = self._read(start, start + length)
        return out


def open_shards(folder: Path, header: Header) -> dict[str, Tokens]:
    """Every part, its sizes checked; shards are mapped when first read.

    Raises
    ------
    ShardError
        If a shard is missing, holds no whole tokens, or a part is not as long as the header says.
    """
    parts = {}
    item = np.dtype(DTYPES[header.dtype]).itemsize
    for part, names in header.shards.items():
        shards = []
        for path in (folder / name for name in names):
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ShardError(f"the shard {path.name} cannot be read ({error.strerror})") from error
            if size % item:
                raise ShardError(f"the shard {path.name} has {size} bytes, no multiple of the {item} of {header.dtype}")
            shards.append((path, size // item))
        held = sum(count for _, count in shards)
        if held != header.tokens[part]:
            raise ShardError(f"the {part} shards hold {held} tokens where {HEADER} says {header.tokens[part]}")
        parts[part] = Tokens(shards, DTYPES[header.dtype])
    return parts


def fingerprint(folder: Path, header: Header) -> str:
    """12 hex digits over the header, and the size, head and tail of every shard; file names do not count.

    Raises
    ------
    ShardError
        If a shard cannot be read.
    """
    named = ("tokenizer", "end_of_text")
    known = {name: value for name, value in header.to_dict().items() if name not in named} | {"shards": None}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for part in (TRAIN, *header.validation_sets):
        for name in header.shards[part]:
            try:
                size, edges = _edges(folder / name)
            except OSError as error:
                raise ShardError(f"the shard {name} cannot be read ({error.strerror})") from error
            digest.update(f"{part} {size} ".encode() + edges)
    return digest.hexdigest()[:12]


def _edges(path: Path) -> tuple[int, bytes]:
    """A file's size in bytes, and its head and tail."""
    with path.open("rb") as file:
        head = file.read(_EDGE_BYTES)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _EDGE_BYTES))
        return size, head + file.read(_EDGE_BYTES)


def check_tokens(header: Header, parts: Mapping[str, Tokens], progress: Callable[[str, float], None]) -> None:
    """Read every token once.

    Raises
    ------
    ShardError
        If one is outside the vocabulary.
    """
    if header.vocabulary == numbered(header.dtype):
        return
    total, seen = sum(len(tokens) for tokens in parts.values()), 0
    for part, tokens in parts.items():
        for start in range(0, len(tokens), _SCAN_TOKENS):
            chunk = tokens[start : start + _SCAN_TOKENS]
            largest = int(chunk.max())
            if largest >= header.vocabulary:
                where = start + int(np.argmax(chunk >= header.vocabulary))
                raise ShardError(
                    f"the {part} part has a token {int(chunk[where - start])} at {where}, outside its "
                    f"vocabulary of {header.vocabulary}"
                )
            seen += len(chunk)
            progress("checking tokens", seen / total)


def check_digests(folder: Path, header: Header, progress: Callable[[str, float], None]) -> None:
    """Compare the SHA-256 of every shard with the header's, where it has them.

    Raises
    ------
    ShardError
        If a shard holds other bytes.
    """
    if header.sha256 is None:
        return
    parts = header.shards.items()
    pairs = [pair for part, names in parts for pair in zip(names, header.sha256[part], strict=True)]
    for number, (name, wanted) in enumerate(pairs):
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ShardError(f"the shard {name} cannot be read ({error.strerror})") from error
        if found != wanted:
            raise ShardError(f"the shard {name} does not hold the bytes that {HEADER} has the SHA-256 of")
        progress("comparing digests", (number + 1) / len(pairs))
