"""Text to a folder of token shards, from wherever an earlier attempt left off.

::

    <out>.unfinished/
        prepare.json    settings and inputs, compared when the work is taken up again
        tokenizer.json  bpe: as soon as it is trained
        units/          a record of every finished unit
        corpus/         the shards, and at the end the header

``corpus/`` is renamed to ``<out>`` when everything is in it. It is a function of the settings and the inputs' content:
neither the number of workers nor kills change a byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainer.config import plain
from trainer.errors import UserError
from trainer.files import disk_faults, write_json, write_whole
from trainer.lock import Lock, holder
from trainer.shards import BYTES, HEADER, PART_NAME, TRAIN, VALIDATION, Header, ShardError, numbered, read_header
from trainer.text.config import PrepareConfig, ShardType
from trainer.text.documents import Reading
from trainer.text.duplicates import mark
from trainer.text.encode import Work, encode_unit, fingerprint, finished, hash_unit, read_unit, share
from trainer.text.inputs import Piece, Unit, cut, find, unit_bytes
from trainer.text.pool import Task, cores, run
from trainer.text.vocabulary import BYTE_END, EXTRA_FILES, FILE, Subwords, library, read_subwords, train_bpe

BPE = "bpe"
VERSION = 1
"""To be raised by any change of what the same settings and inputs give."""
SETTINGS = "prepare.json"
HELD_OUT = 0.01
FREE = ("out", "workers", "fresh")
"""Options that do not decide what is made."""
COUNTS = ("empty", "skipped", "duplicates", "repaired")

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was made."""

    folder: Path
    header: Header
    documents: Mapping[str, int]
    """Of each part."""
    counts: Mapping[str, int]
    """Documents left out because they were ``empty``, bad lines (``skipped``) or ``duplicates``; and ``repaired``."""
    found: bool
    """It was there already."""


def prepare(config: PrepareConfig, progress: Progress) -> Prepared:
    """Make the folder ``config.out``, or find it made of the same settings and inputs.

    Raises
    ------
    UserError
        If a setting or an input is wrong, another corpus is at ``out``, or unfinished work there had other settings.
    MachineFault
        If the disk is full or a process was killed; the finished units stay.
    """
    _check(config)
    out = Path(config.out or "").expanduser().absolute()
    inputs = {TRAIN: find("path", _paths("path", config.path))}
    for name, path in config.validation.items():
        inputs[name] = find(f"validation.{name}", _paths(f"validation.{name}", path))
    settings = _settings(config, inputs)
    unfinished = out.with_name(f"{out.name}.unfinished")
    if out.exists():
        known = _known(out, settings)
        if holder(unfinished) is None:  # left by a kill after the rename
            shutil.rmtree(unfinished, ignore_errors=True)
        return known
    with disk_faults(unfinished):
        unfinished.mkdir(parents=True, exist_ok=True)
    with Lock(unfinished, "data prepare") as lock:
        if lock is None:
            raise UserError(f"out={out} is being prepared by another process; wait for it, or choose another out=.")
        _take_up(unfinished, settings, fresh=config.fresh)
        _make(config, inputs, unfinished, progress)
        with disk_faults(out):
            (unfinished / "corpus").rename(out)
        shutil.rmtree(unfinished, ignore_errors=True)
    return _known(out, settings, found=False)


def _check(config: PrepareConfig) -> None:
    if not config.out:
        raise UserError("out is empty; name the folder to write, e.g. out=corpora/mine.")
    for name, value, allowed, good in (
        ("held_out", config.held_out, "null or in [0, 1)", config.held_out is None or 0 <= config.held_out < 1),
        ("shard_mb", config.shard_mb, "0 or more", 0 <= config.shard_mb < 2**20),
        ("sample_mb", config.sample_mb, "a positive number", 0 < config.sample_mb < 2**20),
        ("split_seed", config.split_seed, "between -2^63 and 2^63", abs(config.split_seed) < 2**63),
        ("workers", config.workers, "0 or more", config.workers >= 0),
        ("vocabulary", config.vocabulary, "between 257 and 2^31", 257 <= config.vocabulary <= 2**31),
    ):
        if not good:
            raise UserError(f"{name}={value} must be {allowed}; set {name}=<value> so.")
    for name in config.validation:
        if not PART_NAME.fullmatch(name) or name == TRAIN:
            raise UserError(f"validation.{name}: name a set with letters, digits and _, a letter first, not train.")
        if name == VALIDATION and config.held_out:
            raise UserError("validation.validation and held_out both make the set validation; drop one of them.")
    if not _held_out(config) and not config.validation:
        raise UserError("held_out=0 leaves no validation set; hold out a share, or give validation.NAME=<path>.")


def _paths(name: str, value: Any) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{name}={value} names no input; give a file, a folder, a pattern, or a list of them.")
    return paths


def _held_out(config: PrepareConfig) -> float:
    if config.held_out is not None:
        return config.held_out
    return 0.0 if config.validation else HELD_OUT


def _settings(config: PrepareConfig, inputs: Mapping[str, Sequence[Piece]]) -> dict[str, Any]:
    """All that decides what is made, in JSON's words."""
    options = {each.name: plain(getattr(config, each.name)) for each in fields(PrepareConfig) if each.name not in FREE}
    files = [
        [part, file.path, file.size, Path(file.path).stat().st_mtime_ns]
        for part, each in inputs.items()
        for file in each
    ]
    if config.tokenizer not in (BYTES, BPE):
        options["tokenizer_sha256"] = hashlib.sha256(_tokenizer_path(config).read_bytes()).hexdigest()
    return {"version": VERSION, "options": options, "files": files}


def _known(out: Path, settings: Mapping[str, Any], *, found: bool = True) -> Prepared:
    """What is at ``out``, if it was made of these settings."""
    try:
        made = json.loads((out / SETTINGS).read_text())
        header = Header.from_dict(read_header(out))
    except (OSError, ValueError, ShardError):
        raise UserError(
            f"out={out} is there and was not made by `isoflop data prepare`; choose another out=."
        ) from None
    change = _difference(made["settings"], settings)
    if change is not None:
        raise UserError(f"out={out} is there, with {change}; choose another out=, or remove it if no run needs it.")
    return Prepared(folder=out, header=header, documents=made["documents"], counts=made["counts"], found=found)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What was different then; None if nothing was."""
    if before.get("version") != now["version"]:
        return "the work of another version of isoflop"
    then = before["options"]
    for name, value in now["options"].items():
        if then.get(name) != value:
            return f"{name}={then.get(name)} where it is {value} now"
    if before["files"] == now["files"]:
        return None
    old, new = ({tuple(file) for file in each["files"]} for each in (before, now))
    changed = sorted(file[1] for file in old ^ new)
    return f"other inputs ({changed[0]})" if changed else "its inputs in another order"


def _take_up(unfinished: Path, settings: Mapping[str, Any], *, fresh: bool) -> None:
    """Make sure that what is there was begun with these settings."""
    path = unfinished / SETTINGS
    try:
        before = json.loads(path.read_text())
    except FileNotFoundError:
        before = None
    except ValueError:
        before = {}
    change = None if before is None else _difference(before, settings)
    if change is not None and not fresh and any((unfinished / "units").glob("*.json")):
        raise UserError(
            f"{unfinished} was begun with {change}; set it back to go on there, or start over with fresh=true."
        )
    with disk_faults(unfinished):
        if change is not None:
            for name in ("units", "corpus"):
                shutil.rmtree(unfinished / name, ignore_errors=True)
            (unfinished / FILE).unlink(missing_ok=True)
        for name in ("units", "corpus"):
            (unfinished / name).mkdir(exist_ok=True)
        for rest in (unfinished / "corpus").glob(".*.tmp"):
            rest.unlink(missing_ok=True)
    write_json(path, settings)


def _make(config: PrepareConfig, inputs: Mapping[str, Sequence[Piece]], folder: Path, progress: Progress) -> None:
    separator = None if config.separator is None else _unescaped(config.separator)
    reading = Reading(field=config.field, separator=separator, bad_lines=config.bad_lines)
    units = list(_units(config, inputs, separator))
    held_out = _held_out(config)
    size, end = 256, BYTE_END
    tokenizer = BYTES
    if config.tokenizer != BYTES:
        words = _subwords(config, units, reading, held_out, folder, progress)
        size, end, tokenizer = words.size, words.end_of_text or 0, str(folder / FILE)
    work = Work(
        folder=folder,
        reading=reading,
        split_seed=config.split_seed,
        held_out=held_out,
        dtype=_dtype(config, size),
        tokenizer=tokenizer,
        end_of_text=end,
        deduplicate=config.deduplicate,
    )
    workers = config.workers or cores()
    if config.deduplicate:
        missing = [unit for unit in units if not work.hashes(unit).exists()]
        _run(hash_unit, missing, units, work, workers, "comparing documents", progress)
        mark(units, work)
    missing = [unit for unit in units if finished(unit, work) is None]
    _run(encode_unit, missing, units, work, workers, "encoding", progress)
    _finish(config, units, work, size)


def _units(config: PrepareConfig, inputs: Mapping[str, Sequence[Piece]], separator: bytes | None) -> Iterator[Unit]:
    wanted = unit_bytes(sum(file.size for file in inputs[TRAIN]), config.shard_mb)
    number = itertools.count()
    for part, files in inputs.items():
        for pieces in cut(files, shard_bytes=wanted, separator=separator):
            yield Unit(number=next(number), part=part, pieces=pieces)


def _dtype(config: PrepareConfig, size: int) -> str:
    if config.dtype is ShardType.auto:
        return next(each.value for each in ShardType if each is not ShardType.auto and numbered(each) >= size)
    if size > numbered(config.dtype):
        raise UserError(
            f"dtype={config.dtype.value} numbers only {numbered(config.dtype)} tokens, but the vocabulary has {size}; "
            "choose dtype=auto."
        )
    return config.dtype.value


def _tokenizer_path(config: PrepareConfig) -> Path:
    path = Path(config.tokenizer).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"tokenizer={config.tokenizer} is neither bytes, nor bpe, nor a {FILE} or a folder with one; correct it."
        )
    return path


def _subwords(
    config: PrepareConfig, units: Sequence[Unit], reading: Reading, held_out: float, folder: Path, progress: Progress
) -> Subwords:
    """The vocabulary of ``tokenizers`` that is asked for; its files lie in the corpus from now on."""
    library()
    path = folder / FILE
    if config.tokenizer != BPE:
        given = _tokenizer_path(config)
        content = given.read_bytes()
        words = read_subwords(content, str(given), config.end_of_text)
        write_whole(path, content)
        for name in EXTRA_FILES:
            if (given.parent / name).is_file():
                write_whole(folder / "corpus" / name, (given.parent / name).read_bytes())
    else:
        if not path.exists():
            texts = _sample(config, [unit for unit in units if unit.part == TRAIN], reading, held_out, progress)
            write_whole(path, train_bpe(texts, config.vocabulary))
        words = read_subwords(path.read_bytes(), str(path), None)
    write_whole(folder / "corpus" / FILE, path.read_bytes())
    return words


def _sample(
    config: PrepareConfig, units: Sequence[Unit], reading: Reading, held_out: float, progress: Progress
) -> Iterator[str]:
    """The first training documents of every unit, ``sample_mb`` together."""
    wanted = config.sample_mb * 2**20 / len(units)
    for number, unit in enumerate(units):
        progress(f"reading a sample for a vocabulary of {config.vocabulary}", number / len(units))
        held = 0
        for document in read_unit(unit, reading):
            if share(fingerprint(document.text.encode(), config.split_seed)) >= held_out:
                text = document.text[: int(wanted - held) + 1]
                held += len(text)
                yield text
            if held > wanted:
                break
    progress(f"training a vocabulary of {config.vocabulary}", 1.0)


def _run(
    task: Task, missing: Sequence[Unit], units: Sequence[Unit], work: Work, workers: int, name: str, progress: Progress
) -> None:
    total, left = sum(unit.size for unit in units), sum(unit.size for unit in missing)
    began = time.monotonic()

    def tick(done: int) -> None:
        at = total - left + done
        rate = done / max(time.monotonic() - began, 1e-9)
        progress(f"{name}: {at / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:,.1f} MB/s", at / max(total, 1))

    tick(0)
    run(task, missing, work, workers, tick)


def _finish(config: PrepareConfig, units: Sequence[Unit], work: Work, size: int) -> None:
    """Write the header over all units."""
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    text: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    shards: dict[str, list[str]] = {}
    digests: dict[str, list[str]] = {}
    for unit in units:
        record = finished(unit, work)
        assert record is not None
        counts.update({name: record.get(name, 0) for name in COUNTS})
        for part, made in record["parts"].items():
            tokens[part] += made["tokens"]
            text[part] += made["bytes"]
            documents[part] += made["documents"]
            shards.setdefault(part, []).append(work.shard(part, unit).name)
            digests.setdefault(part, []).append(made["sha256"])
    wanted = [TRAIN, *([VALIDATION] if work.held_out else []), *(name for name in config.validation)]
    for part in wanted:
        if not tokens[part]:
            shutil.rmtree(work.folder / "units")  # other settings are needed: nothing to go on with
            raise _empty(config, part, sum(documents.values()), counts["duplicates"])
    header = Header(
        vocabulary=size,
        dtype=work.dtype,
        tokens=tokens,
        bytes=text,
        shards={part: shards[part] for part in wanted},
        sha256=digests,
        tokenizer=BYTES if work.tokenizer == BYTES else FILE,
        end_of_text=work.end_of_text,
    )
    settings = json.loads((work.folder / SETTINGS).read_text())
    made = {"settings": settings, "documents": dict(documents), "counts": {name: counts[name] for name in COUNTS}}
    write_json(work.folder / "corpus" / SETTINGS, made)
    write_json(work.folder / "corpus" / HEADER, header.to_dict())


def _empty(config: PrepareConfig, part: str, documents: int, copies: int) -> UserError:
    if part == VALIDATION and part not in config.validation:
        return UserError(
            f"held_out={_held_out(config)} took none of {documents} documents; raise it, part long files with "
            "separator=, or give validation.NAME=<path>."
        )
    if part == TRAIN and (copies or (_held_out(config) and documents)):
        return UserError(
            f"path: of its documents none is left to train on, with held_out={_held_out(config)} and {copies} that are "
            "copies of validation documents or of each other; lower held_out, or give other documents."
        )
    name = "path" if part == TRAIN else f"validation.{part}"
    return UserError(f"{name} gave no document with text; check the files, field= and separator=.")


def _unescaped(separator: str) -> bytes:
    if not separator:
        raise UserError("separator is empty; give the text that parts documents, or null where a file is a document.")
    return separator.replace("\\n", "\n").replace("\\t", "\t").encode()
