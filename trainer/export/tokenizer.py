"""The files of a corpus's vocabulary that ``AutoTokenizer`` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.shards import BYTES, Header
from trainer.text.vocabulary import EXTRA_FILES, FILE


def tokenizer_files(header: Header, shards: Path, sequence: int) -> dict[str, bytes]:
    """File name -> content; empty where nothing says how the corpus's tokens are text.

    Of a byte vocabulary the end of a text is in the model's config alone: as a token of the tokenizer, it would be
    found in texts that have the character of that number.

    Raises
    ------
    UserError
        If the tokenizer's file is gone or damaged.
    """
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": sequence}
    settings |= {"clean_up_tokenization_spaces": False}
    if header.coding is None:
        return {}
    if header.coding == BYTES:
        return {FILE: _json(byte_tokenizer()), EXTRA_FILES[0]: _json(settings)}
    path = shards / header.coding
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read ({error.strerror}); restore it.") from None
    found = {name: (shards / name).read_bytes() for name in EXTRA_FILES if (shards / name).is_file()}
    try:
        ends = [token["content"] for token in json.loads(content)["added_tokens"] if token["id"] == header.end_of_text]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"the tokenizer {path} is damaged; restore it.") from None
    settings |= {"eos_token": ends[0]} if ends else {}
    return {EXTRA_FILES[0]: _json(settings)} | found | {FILE: content}


def byte_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose tokens are the bytes of UTF-8: byte-level BPE (Radford et al. 2019) without a merge."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(others)}
    bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": bytelevel,
        "post_processor": None,
        "decoder": bytelevel,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letters[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
