"""``isoflop data prepare``: text of one's own as token shards.

isoflop data prepare path=articles/ out=corpora/articles
isoflop data prepare path=web/*.jsonl.zst validation.wiki=wiki.parquet tokenizer=bpe vocabulary=32768 out=corpora/web
isoflop plan sweep=ours data=tokens data.path=corpora/web
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from analysis.text import count_text
from sweeps.app import run_verb, typed
from sweeps.config import DataPrepareCommand, Format
from sweeps.terminal import print_json, progress_line, say, stdout, table
from trainer.shards import TRAIN
from trainer.text.prepare import Prepared, Progress, prepare

SAID_EVERY = 30.0
"""Seconds between the lines that report progress where there is no terminal."""


@contextmanager
def reported() -> Iterator[Progress]:
    """A progress bar, or a line now and then in a log."""
    if sys.stderr.isatty():
        with progress_line() as report:
            yield report
        return
    said = [time.monotonic()]

    def say_it(message: str, share: float) -> None:
        if time.monotonic() - said[0] >= SAID_EVERY:
            said[0] = time.monotonic()
            say(f"{message} ({share:.0%})")

    yield say_it


def show(made: Prepared, form: Format) -> None:
    """Parts on stdout, remarks on stderr."""
    header = made.header
    parts = [TRAIN, *header.validation_sets]
    if form is Format.json:
        documents = {"documents": {part: made.documents[part] for part in parts}, "counts": dict(made.counts)}
        print_json({"folder": str(made.folder), **header.to_dict(), **documents})
    else:
        shown = table("<part", "documents", "tokens", "bytes/token", "shards",
                      title=f"{made.folder}: vocabulary {header.vocabulary}, {header.dtype}")  # fmt: skip
        for part in parts:
            ratio = f"{header.bytes[part] / header.tokens[part]:.3f}" if part in header.bytes else "–"
            cells = count_text(made.documents[part]), count_text(header.tokens[part]), ratio
            shown.add_row(part, *cells, str(len(header.shards[part])))
        stdout().print(shown)
    remarks = {
        "empty": "empty documents were left out",
        "skipped": "bad lines were left out",
        "duplicates": "documents were left out as copies",
        "repaired": "documents were not UTF-8 throughout; what was not is U+FFFD now",
    }
    for name, remark in remarks.items():
        if made.counts[name]:
            say(f"{made.counts[name]} {remark}")
    say(f"{'found' if made.found else 'written'}: {made.folder}; train on it with data=tokens data.path={made.folder}")


def _body(raw: DictConfig) -> int:
    config: DataPrepareCommand = typed(raw)
    with reported() as progress:
        made = prepare(config, progress)
    show(made, config.format)
    return 0


HELP = """isoflop data prepare path=FILES out=FOLDER [validation.NAME=FILES] [tokenizer=bytes|bpe|FILE] [key=value ...]

Text files, JSON lines, parquet, arrow or a data set saved by `datasets`, as token shards for data=tokens
data.path=FOLDER. A kill costs only what was unfinished: the same command goes on. No number of workers changes
the result."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("data_prepare", _body, HELP)


if __name__ == "__main__":
    main()
