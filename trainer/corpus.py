"""Corpora: made once under ``<root>/corpora/<corpus id>``, then only read.

::

    <root>/corpora/<corpus id>/
        header.json     the fields of trainer.shards, and: id, spec (the settings that decided the content), facts,
                        fingerprint; for data.source=tokens also folder, the user's, where the shards stay
        train.bin, validation.bin

A corpus appears whole, by one rename; ``.making-*`` beside it belong to makers at work or, if those died, to nobody.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import python_source, zipf_facts
from trainer.config import DataConfig, Source
from trainer.errors import UserError
from trainer.files import disk_faults, write_json
from trainer.lock import STALE_SECONDS, Lock, holder
from trainer.shards import (
    HEADER,
    TRAIN,
    Header,
    ShardError,
    Tokens,
    check_tokens,
    fingerprint,
    open_shards,
    read_header,
)

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What a plan needs of a corpus."""

    id: str
    vocabulary: int
    train_tokens: int


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """One of a corpus's validation sets."""

    name: str
    tokens: Tokens
    bytes_per_token: float


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, open for reading; ``train`` and each set's ``tokens`` are sliced like arrays of tokens."""

    id: str
    vocabulary: int
    train: Tokens
    sets: Sequence[ValidationSet]
    """One or more; the first one's loss is the one that fits read."""

    @property
    def train_tokens(self) -> int:
        """How many there are."""
        return len(self.train)

    def check_windows(self, *, sequence: int, eval_windows: int) -> None:
        """Refuse windows that the corpus is too short for.

        A window of ``sequence`` tokens takes one more, the last one's target.

        Raises
        ------
        UserError
            If no training window fits, or fewer than ``eval_windows`` fit into a validation set.
        """
        if sequence < 1:
            raise UserError(f"data.sequence={sequence} is no length of a sequence; choose at least 1 token.")
        if (self.train_tokens - 1) // sequence < 1:
            raise UserError(
                f"data.sequence={sequence} needs {sequence + 1} training tokens, but the corpus {self.id} has "
                f"{self.train_tokens}; choose a shorter sequence or more data."
            )
        for held_out in self.sets:
            tokens, fit = len(held_out.tokens), (len(held_out.tokens) - 1) // sequence
            if not 1 <= eval_windows <= fit:
                named = "" if len(self.sets) == 1 else f"set {held_out.name!r} of the "
                raise UserError(
                    f"data.eval_windows={eval_windows}: the {tokens} validation tokens of {named}{self.id} hold "
                    f"{fit} windows of data.sequence={sequence}; choose between 1 and that many, or add validation "
                    "data."
                )


def prepare_corpus(config: DataConfig, root: Path, progress: Progress | None = None) -> Corpus:
    """Open the root's corpus of these settings, made first if there is none.

    What was made before is taken as it is: newer packages do not change a root's ``python_source``. A user's tokens are
    looked at again: other content is another corpus.

    Raises
    ------
    UserError
        If the settings or the user's shards are wrong, or the corpus too short for the windows asked for.
    MachineFault
        If the disk is full or read-only; nothing is left behind.
    """
    report = progress or (lambda message, share: None)
    corpora = root / "corpora"
    if config.source is Source.unspecified:
        raise UserError(
            "data.source=unspecified has no tokens to train on; choose data=python_source or another corpus."
        )
    if config.source is Source.tokens:
        corpus_id = _prepare_tokens(_token_folder(config), corpora, report)
    else:
        found = _find(_spec(config), corpora)
        corpus_id = found["id"] if found is not None else _make(config, corpora, report)
    corpus = open_corpus(root, corpus_id)
    corpus.check_windows(sequence=config.sequence, eval_windows=config.eval_windows)
    return corpus


def unspecified_corpus(config: DataConfig) -> CorpusFacts:
    """What a plan takes a corpus to be that lies elsewhere.

    Raises
    ------
    UserError
        If its tokens are no whole number.
    """
    tokens = _whole(config.tokens, "how many training tokens the data will have")
    return CorpusFacts(id=f"unspecified-v{config.vocabulary}", vocabulary=config.vocabulary, train_tokens=tokens)


def corpus_key(config: DataConfig) -> str:
    """The settings that decide a corpus's content, in one word: what a sweep pins its corpus under.

    Raises
    ------
    UserError
        If a setting is wrong.
    """
    settings = {"path": str(_token_folder(config))} if config.source is Source.tokens else _spec(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    return f"{config.source.value}-{digest}"


def open_corpus(root: Path, corpus_id: str) -> Corpus:
    """Open a corpus the root has.

    Raises
    ------
    UserError
        If it is absent, or its shards are not those its header speaks of.
    """
    folder = root / "corpora" / corpus_id
    if not folder.is_dir():
        raise UserError(
            f"corpus {corpus_id} is not at {folder}; copy it there from the root it was made in, or plan a new sweep."
        )
    remedy = "delete that folder and plan again"
    try:
        raw = read_header(folder)
        header = Header.from_dict(raw)
        shards = folder
        if "folder" in raw:
            shards = Path(raw["folder"])
            remedy = f"restore the shards at {shards}, or plan a new sweep with data.path="
        parts = open_shards(shards, header)
        if _changed(corpus_id, raw, header, shards):
            raise ShardError("the shards' content is no longer that of this corpus")
    except ShardError as error:
        raise UserError(f"corpus {folder}: {error}; {remedy}.") from error
    sets = [
        ValidationSet(name=name, tokens=parts[name], bytes_per_token=header.bytes[name] / header.tokens[name])
        for name in header.validation_sets
    ]
    return Corpus(id=corpus_id, vocabulary=header.vocabulary, train=parts[TRAIN], sets=sets)


def corpus_header(root: Path, corpus_id: str) -> tuple[Header, Path]:
    """A corpus's header, and the folder with its shards and, where it has one, its tokenizer.

    Raises
    ------
    UserError
        If the root does not have the corpus.
    """
    folder = root / "corpora" / corpus_id
    try:
        raw = read_header(folder)
        return Header.from_dict(raw), Path(raw.get("folder", folder))
    except ShardError as error:
        raise UserError(f"corpus {folder}: {error}; copy it there from the root it was made in.") from None


def _changed(corpus_id: str, raw: Mapping[str, Any], header: Header, shards: Path) -> bool:
    """Whether the shards are others than those the corpus was made of, as far as their header, sizes and ends tell."""
    if "folder" not in raw:
        found = fingerprint(shards, header)
        return bool(raw.get("fingerprint", found) != found)
    own = Header.from_dict(read_header(shards))  # has the SHA-256 of shards that were prepared anew
    return corpus_id != _tokens_id(shards, header) or corpus_id != _tokens_id(shards, own)


def _spec(config: DataConfig) -> dict[str, Any]:
    """The settings that decide the content of a made corpus."""
    if config.source is Source.python_source:
        cut = _whole(config.max_file_bytes, "the bytes kept of a file", name="max_file_bytes")
        return {"source": config.source.value, "version": python_source.VERSION, "max_file_bytes": cut}
    if config.seed < 0:
        raise UserError(f"data.seed={config.seed} is negative; choose 0 or more.")
    tokens = _whole(config.tokens, "how many training tokens to make")
    return {"source": config.source.value, "version": zipf_facts.VERSION, "tokens": tokens, "seed": config.seed}


def _whole(value: float, meaning: str, name: str = "tokens") -> int:
    if not 1 <= value < 2**53 or value != int(value):
        raise UserError(
            f"data.{name}={value:g} is not a whole number of at least 1; say {meaning}, e.g. data.{name}=1e6."
        )
    return int(value)


def _find(spec: dict[str, Any], corpora: Path) -> dict[str, Any] | None:
    """The header of the corpus of this spec; of several, the first made."""
    found = []
    for path in corpora.glob(f"[!.]*/{HEADER}"):
        try:
            raw = read_header(path.parent)
            Header.from_dict(raw)
        except ShardError:
            continue
        if raw.get("spec") == spec and raw.get("id") == path.parent.name:
            found.append((path.stat().st_mtime_ns, path.parent.name, raw))
    return min(found)[2] if found else None


def _make(config: DataConfig, corpora: Path, progress: Progress) -> str:
    """Make a corpus into a folder of its own and rename that to its place; if another was quicker, theirs is it."""
    spec = _spec(config)

    def fill(folder: Path) -> tuple[str, dict[str, Any]]:
        if config.source is Source.python_source:
            cut = spec["max_file_bytes"]
            digest, header, facts = python_source.make(folder, max_file_bytes=cut, progress=progress)
        else:
            digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
            header, facts = zipf_facts.make(folder, tokens=spec["tokens"], seed=spec["seed"], progress=progress)
        record = {"spec": spec, **header.to_dict(), "facts": facts, "fingerprint": fingerprint(folder, header)}
        return f"{config.source.value}-{digest}", record

    return _place(corpora, fill)


def _place(corpora: Path, fill: Callable[[Path], tuple[str, dict[str, Any]]]) -> str:
    with disk_faults(corpora):
        corpora.mkdir(parents=True, exist_ok=True)
        _sweep(corpora)
        making = corpora / f".making-{secrets.token_hex(4)}"
        folder = making / "corpus"
        folder.mkdir(parents=True)
        try:
            with Lock(making, "corpus"):
                corpus_id, header = fill(folder)
                write_json(folder / HEADER, {"id": corpus_id, **header})
                for path in folder.iterdir():
                    _flush(path)
                try:
                    folder.rename(corpora / corpus_id)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return corpus_id


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sweep(corpora: Path) -> None:
    """Remove what makers left that were killed."""
    for making in corpora.glob(".making-*"):
        try:
            young = time.time() - making.stat().st_mtime < STALE_SECONDS and not (making / "heartbeat").exists()
        except FileNotFoundError:  # its maker was done just now
            continue
        if not young and holder(making) is None:
            shutil.rmtree(making, ignore_errors=True)


def _token_folder(config: DataConfig) -> Path:
    if not config.path:
        raise UserError("data.source=tokens needs data.path=, the folder with header.json and the shards.")
    folder = Path(config.path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"data.path={config.path} is not a folder; name the one that holds {HEADER} and the shards.")
    return folder


def _tokens_id(folder: Path, header: Header) -> str:
    return f"{Source.tokens.value}-{fingerprint(folder, header)}"


def _read_tokens(folder: Path) -> tuple[str, Header, dict[str, Tokens]]:
    try:
        header = Header.from_dict(read_header(folder))
        parts = open_shards(folder, header)
    except ShardError as error:
        raise _wrong_tokens(folder, error) from error
    return _tokens_id(folder, header), header, parts


def _wrong_tokens(folder: Path, error: ShardError) -> UserError:
    return UserError(f"data.path={folder}: {error}; correct the folder (`pydoc trainer.shards` has the format).")


def _recorded_folder(known: Path) -> str | None:
    try:
        return str(read_header(known).get("folder"))
    except ShardError:
        return None


def _prepare_tokens(folder: Path, corpora: Path, progress: Progress) -> str:
    """Record where a user's shards are; they are neither copied nor, once checked, read again."""
    corpus_id, header, parts = _read_tokens(folder)
    record = {"spec": {"source": Source.tokens.value}, **header.to_dict(), "folder": str(folder)}
    known = corpora / corpus_id
    if known.is_dir():
        if _recorded_folder(known) != str(folder):
            write_json(known / HEADER, {"id": corpus_id, **record})
        return corpus_id
    try:
        check_tokens(header, parts, progress)
    except ShardError as error:
        raise _wrong_tokens(folder, error) from error
    return _place(corpora, lambda _: (corpus_id, record))
