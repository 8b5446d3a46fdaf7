"""Text in every form that can be prepared, and what came out of preparing it."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.shards import DTYPES, Header, read_header
from trainer.text.config import PrepareConfig
from trainer.text.prepare import Prepared, prepare
from trainer.text.vocabulary import vocabulary_of

WORDS = [
    "law",
    "loss",
    "size",
    "token",
    "compute",
    "naïve",
    "雪",
    "straße",
    "🜚",
    "<|endoftext|>",
    "\r\n",
    "",
    "\t",
    "x",
    "=",
    "f(y)",
]


def texts(count: int, seed: int = 0, longest: int = 200) -> list[str]:
    """Different documents of a few words, or a few hundred."""
    draw = random.Random(seed)
    return [f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for number in range(count)]


def write_jsonl(path: Path, documents: Sequence[str], field: str = "text") -> None:
    raw = "".join(json.dumps({"id": number, field: text}) + "\n" for number, text in enumerate(documents)).encode()
    suffix = path.suffix
    if suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(raw)
    elif suffix == ".gz":  # two members, as `cat a.gz b.gz` makes them
        path.write_bytes(gzip.compress(raw[: len(raw) // 2]) + gzip.compress(raw[len(raw) // 2 :]))
    elif suffix == ".bz2":
        path.write_bytes(bz2.compress(raw))
    else:
        path.write_bytes(raw)


def write_parquet(path: Path, documents: Sequence[str], rows: int = 50) -> None:
    pq.write_table(pa.table({"id": range(len(documents)), "text": list(documents)}), path, row_group_size=rows)


def write_saved(folder: Path, documents: Sequence[str], files: int = 2, rows: int = 40) -> None:
    """A folder as ``datasets.Dataset.save_to_disk`` leaves it."""
    folder.mkdir(parents=True)
    names = []
    for number in range(files):
        part = list(documents[number * len(documents) // files : (number + 1) * len(documents) // files])
        name = f"data-{number:05d}-of-{files:05d}.arrow"
        table = pa.table({"text": part})
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
        names.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_format_type": None}))
    (folder / "dataset_info.json").write_text("{}")


def made(**options: Any) -> Prepared:
    """Prepare with one worker unless told otherwise."""
    values = {"workers": 1, "path": [str(path) for path in options.pop("path")], "out": str(options.pop("out"))}
    return prepare(PrepareConfig(**(values | options)), lambda message, share: None)


def parts_of(folder: Path) -> dict[str, list[str]]:
    """The documents that a prepared folder holds, by part, decoded."""
    header = Header.from_dict(read_header(folder))
    vocabulary = vocabulary_of(header, folder)
    assert vocabulary is not None
    found = {}
    for part, names in header.shards.items():
        tokens = np.concatenate([np.fromfile(folder / name, DTYPES[header.dtype]) for name in names])
        assert len(tokens) == header.tokens[part]
        ends = np.flatnonzero(tokens == header.end_of_text)
        assert ends[-1] == len(tokens) - 1
        found[part] = [vocabulary.decode(each[:-1].tolist()) for each in np.split(tokens, ends[:-1] + 1)]
    return found


def documents_of(folder: Path) -> list[str]:
    """All of them, sorted."""
    return sorted(text for part in parts_of(folder).values() for text in part)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the one with the inputs' times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "prepare.json"}


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
