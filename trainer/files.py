"""Writes that a reader, a crash or a full disk never sees half done."""

from __future__ import annotations

import codecs
import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import MachineFault
from trainer.yamltext import yaml_text

_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and infinities are no JSON; made once, as it is slow
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and start again",
    errno.EDQUOT: "the disk quota is used up; free some space and start again",
    errno.EROFS: "the file system is read-only; choose another folder with root= or out=",
    errno.EACCES: "permission is denied; choose another folder with root= or out=, or change its owner",
    errno.EPERM: "permission is denied; choose another folder with root= or out=, or change its owner",
    errno.EIO: "the disk reports an input/output error",
}


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into a :class:`MachineFault` of one sentence."""
    try:
        yield
    except OSError as error:
        fix = f"{error.strerror or error}; choose another folder with root= or out="
        raise MachineFault(f"cannot write {path}: {_DISK_ERRORS.get(error.errno or 0, fix)}.") from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` so that every reader sees the old file or the new one, never a part.

    Raises
    ------
    MachineFault
        If the disk is full or read-only; the old file is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, levels: int | None = None) -> None:
    """Write ``value`` as indented JSON, whole; floats keep full precision; ``levels`` as for :func:`json_text`."""
    write_whole(path, json_text(value, levels))


def json_text(value: Any, levels: int | None = None) -> str:
    """``value`` as indented JSON; with ``levels``, what lies deeper stands on one line, which is ten times as fast."""
    return (json.dumps(value, indent=2, allow_nan=False) if levels is None else _outer_levels(value, levels, "")) + "\n"


def _outer_levels(value: Any, levels: int, indent: str) -> str:
    if not levels or not value or not isinstance(value, dict | list | tuple):
        return json.dumps(value, allow_nan=False)
    deeper = indent + "  "
    named = isinstance(value, dict)
    names = [json.dumps(name) + ": " for name in value] if named else [""] * len(value)
    members = value.values() if isinstance(value, dict) else value
    lines = [deeper + name + _outer_levels(item, levels - 1, deeper) for name, item in zip(names, members, strict=True)]
    return "\n".join(["{" if named else "[", ",\n".join(lines), indent + ("}" if named else "]")])


def write_yaml(path: Path, value: Any) -> None:
    """Write ``value`` as YAML in the order given, whole."""
    write_whole(path, yaml_text(value))


def read_yaml(path: Path) -> Any:
    """Read a YAML file written by :func:`write_yaml`."""
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object as one line; a torn line left by a crash is closed first, so it spoils only itself."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with disk_faults(path), path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "short write", str(path))


def read_lines(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Every whole JSON object of a file of lines, or of its end; torn lines, and a missing file, are tolerated."""
    try:
        with path.open("rb") as file:
            if last_bytes is not None and file.seek(0, os.SEEK_END) > last_bytes:
                file.seek(-last_bytes, os.SEEK_END)
                file.readline()
            elif last_bytes is not None:
                file.seek(0)
            raw = file.read()
    except FileNotFoundError:
        return []
    records = []
    for line in raw.removeprefix(codecs.BOM_UTF8).splitlines():
        try:
            record = _JSON.decode(line.decode())
        except ValueError:  # a write cut short by a kill
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
