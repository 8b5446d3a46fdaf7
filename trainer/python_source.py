"""A corpus every machine of this project already has: Python source, a byte a token.

The standard library and whatever is installed of a few large packages, found without importing them. Files are told
apart by the sha1 of their content, which drops copies, puts them in an order where neighbours have nothing in common,
and decides which of them are for validation. A byte 0 follows every file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.shards import BYTES, Header

VERSION = 1
"""Part of the corpus id: to be raised by any change of the text that the same files give."""
VOCABULARY = 256
PACKAGES = ("torch", "sympy", "networkx", "numpy", "scipy")
_VALIDATION_ONE_IN = 30
_SEPARATOR = b"\0"
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__"}


def source_folders() -> dict[str, Path]:
    """The folders read, by the name their files get."""
    folders = {"stdlib": Path(sysconfig.get_path("stdlib"))}
    for name in PACKAGES:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.submodule_search_locations:
            folders[name] = Path(next(iter(spec.submodule_search_locations)))
    return folders


def _files(folders: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """Name and path of every Python file, in the order of the names."""
    found = {}
    for name, folder in folders.items():
        for place, below, files in os.walk(folder):
            below[:] = [sub for sub in below if sub not in _LEFT_OUT]
            for file in files:
                if file.endswith(".py"):
                    path = Path(place, file)
                    found[f"{name}/{path.relative_to(folder).as_posix()}"] = path
    return iter(sorted(found.items()))


def make(
    folder: Path, *, max_file_bytes: int, progress: Callable[[str, float], None], sources: dict[str, Path] | None = None
) -> tuple[str, Header, dict[str, Any]]:
    """Write the shards into ``folder``; give a digest of the files, the header, and what is known about them.

    Files longer than ``max_file_bytes`` are cut there. Files that cannot be read, are empty, or hold a byte 0 (which no
    Python source does) are left out. ``sources`` replaces :func:`source_folders`.

    The digest is over name and sha1 of every file kept and the version of this recipe. Peak memory is the corpus.
    """
    texts: dict[str, bytes] = {}
    digest = hashlib.sha256(f"{VERSION}".encode())
    files = list(_files(source_folders() if sources is None else sources))
    for number, (name, path) in enumerate(files):
        try:
            with path.open("rb") as file:
                text = file.read(max_file_bytes)
        except OSError:
            continue
        sha1 = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        if text and _SEPARATOR not in text and sha1 not in texts:
            texts[sha1] = text
            digest.update(f"{name} {sha1}\n".encode(errors="surrogateescape"))
        progress("reading Python source", 0.9 * (number + 1) / len(files))

    counts = {"train": 0, "validation": 0}
    with (folder / "train.bin").open("wb") as train, (folder / "validation.bin").open("wb") as validation:
        for sha1 in sorted(texts):
            held_out = int(sha1[-8:], 16) % _VALIDATION_ONE_IN == 0
            part, shard = ("validation", validation) if held_out else ("train", train)
            counts[part] += shard.write(texts[sha1] + _SEPARATOR)
    progress("writing Python source", 1.0)
    header = Header(
        vocabulary=VOCABULARY,
        dtype="uint8",
        tokens=counts,
        bytes={"validation": counts["validation"]},
        shards={part: [f"{part}.bin"] for part in counts},
        tokenizer=BYTES,
        end_of_text=_SEPARATOR[0],
    )
    return digest.hexdigest()[:12], header, {"files": len(texts), "files_left_out": len(files) - len(texts)}
