"""``isoflop data check``: whether a folder of token shards is what its header says, every byte of it.

isoflop data check path=corpora/web
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from analysis.text import count_text
from sweeps.app import run_verb, typed
from sweeps.config import DataCheckCommand
from sweeps.data_prepare import reported
from sweeps.terminal import say
from trainer.errors import UserError
from trainer.shards import Header, ShardError, check_digests, check_tokens, open_shards, read_header


def _body(raw: DictConfig) -> int:
    config: DataCheckCommand = typed(raw)
    if not config.path:
        raise UserError("path is empty; name the folder with header.json and the shards.")
    folder = Path(config.path).expanduser()
    try:
        header = Header.from_dict(read_header(folder))
        folder = Path(read_header(folder).get("folder", folder))
        with reported() as progress:
            check_tokens(header, open_shards(folder, header), progress)
            check_digests(folder, header, progress)
    except ShardError as error:
        raise UserError(f"path={config.path}: {error}; restore the folder, or prepare it again.") from error
    known = "every byte is" if header.sha256 is not None else "sizes and tokens are (it has no SHA-256 to compare)"
    say(f"{known} as {config.path} says: {count_text(sum(header.tokens.values()))} tokens")
    return 0


HELP = """isoflop data check path=FOLDER

Read every shard of a folder and compare it with the header: sizes, tokens inside the vocabulary, SHA-256."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("data_check", _body, HELP)


if __name__ == "__main__":
    main()
