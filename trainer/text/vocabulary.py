"""Vocabularies: text to token numbers and back.

A corpus's folder says which one it has: ``tokenizer`` in its header is ``bytes`` or a file of the ``tokenizers``
library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.shards import BYTES, Header

FILE = "tokenizer.json"
EXTRA_FILES = ("tokenizer_config.json", "special_tokens_map.json")
"""What lies beside a tokenizer.json that ``transformers`` reads."""
END_OF_TEXT = "<|endoftext|>"
USUAL_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>", "[SEP]")
BYTE_END = 0xFF
"""No UTF-8 text has this byte."""
LONGEST = 1 << 20
"""Characters encoded at once: a longer text goes in pieces that end with a line, as memory grows with their length."""


class Vocabulary(Protocol):
    """Texts to tokens and back."""

    size: int
    """Tokens are 0 .. size - 1."""
    end_of_text: int | None
    """Follows every document."""

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        """Documents as one stream of tokens, each followed by ``end_of_text``."""

    def prompt(self, text: str) -> list[int]:
        """The tokens of a text that goes on."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""


class Bytes:
    """UTF-8, a byte a token."""

    size = 256

    def __init__(self, end_of_text: int | None = BYTE_END) -> None:
        self.end_of_text = end_of_text

    def encode(self, texts: Sequence[str]) -> NDArray[np.uint8]:
        """See :class:`Vocabulary`."""
        end = b"" if self.end_of_text is None else bytes([self.end_of_text])
        return np.frombuffer(b"".join(text.encode() + end for text in texts), np.uint8)

    def prompt(self, text: str) -> list[int]:
        """See :class:`Vocabulary`."""
        return list(text.encode(errors="replace"))

    def decode(self, tokens: Sequence[int]) -> str:
        """See :class:`Vocabulary`."""
        return bytes(tokens).decode(errors="replace")


class Subwords:
    """A vocabulary of the ``tokenizers`` library; special tokens in a text are encoded as the text they are."""

    def __init__(self, tokenizer: Any, end_of_text: int | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_text = end_of_text

    def encode(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """See :class:`Vocabulary`."""
        parts = [pieces(text) for text in texts]
        encoded = iter(self._tokenizer.encode_batch_fast([part for each in parts for part in each], False, False))
        ids: list[int] = []
        for each in parts:
            for _ in each:
                ids += next(encoded).ids
            if self.end_of_text is not None:
                ids.append(self.end_of_text)
        return np.array(ids, np.uint32)

    def prompt(self, text: str) -> list[int]:
        """See :class:`Vocabulary`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """See :class:`Vocabulary`."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text


def pieces(text: str, longest: int = LONGEST) -> list[str]:
    """A text in pieces of at most ``longest`` characters that end with a line where one ends in their second half."""
    found = []
    start = 0
    while len(text) - start > longest:
        end = text.rfind("\n", start + longest // 2, start + longest) + 1 or start + longest
        found.append(text[start:end])
        start = end
    return [*found, text[start:]]


def train_bpe(texts: Iterable[str], size: int) -> str:
    """A byte-level BPE vocabulary (Radford et al. 2019) of ``size`` tokens or, where the text gives no more, fewer.

    Returns
    -------
    str
        The content of a tokenizer.json. The same texts give the same one.
    """
    tokenizers = library()
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    text: str = made.to_str(pretty=True)
    return text


def read_subwords(content: bytes, where: str, end_of_text: str | None) -> Subwords:
    """A tokenizer.json's vocabulary.

    Raises
    ------
    UserError
        If it is none, or has no token for the end of a text.
    """
    tokenizer = _parsed(content, f"tokenizer={where}", "name another")
    names = USUAL_ENDS if end_of_text is None else (end_of_text,)
    ends = [found for name in names if (found := tokenizer.token_to_id(name)) is not None]
    if not ends:
        wanted = "none of the usual tokens for the end of a text" if end_of_text is None else "no such token"
        given = "" if end_of_text is None else f"end_of_text={end_of_text}: "
        raise UserError(f"{given}tokenizer={where} has {wanted}; name one of its tokens with end_of_text=.")
    return Subwords(tokenizer, ends[0])


def vocabulary_of(header: Header, folder: Path) -> Vocabulary | None:
    """The vocabulary of a corpus; None where nothing says how its tokens are text.

    Raises
    ------
    UserError
        If its tokenizer's file is gone or damaged.
    """
    if header.coding == BYTES:
        return Bytes(header.end_of_text)
    if header.coding is None:
        return None
    path = folder / header.coding
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read ({error.strerror}); restore it.") from None
    return Subwords(_parsed(content, f"the tokenizer {path}", "restore it"), header.end_of_text)


def _parsed(content: bytes, what: str, remedy: str) -> Any:
    from_str = library().Tokenizer.from_str
    try:
        return from_str(content.decode())
    except Exception as error:  # the library raises plain ones
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{what} is no file of the tokenizers library ({said}); {remedy}.") from None


def library() -> Any:
    """The ``tokenizers`` package, which not every installation has.

    Raises
    ------
    UserError
        If it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "the package tokenizers is not installed; install it with `pip install 'isoflop[hf]'`, or choose "
            "tokenizer=bytes."
        ) from None
    return tokenizers
