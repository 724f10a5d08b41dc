"""Reads strings and text files, and converts them to tensors of token ids by the rules in `pieces`."""

import io
import os
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from onepeace.errors import UserError
from onepeace.files.source import MAX_TEXT_BYTES, decode_text, describe, read_bytes, scheme
from onepeace.processors.endings import ENDINGS
from onepeace.processors.processor import Processor, lengths_if_padded
from onepeace.processors.tokenizer import EOS, LEADING, PAD, UNK, TextPieces, read_tokenizer

LONG_TOKENS = 70
"""Tokens of the longest example, where the settings allow any number."""


class TextReader(Processor):
    """Reads strings, and `pathlib.Path`s of text files. A subclass has `decode` and `collate`, with any tokenizer."""

    key: ClassVar[str] = "text"
    suffixes: ClassVar[frozenset[str]] = ENDINGS["text"]

    @classmethod
    def matches(cls, item: object) -> bool:
        return isinstance(item, str) and scheme(item) is None  # a URL is not a text

    def load(self, item: object) -> str:
        """The text of a file, or a string as it is."""
        if isinstance(item, os.PathLike):
            return _text_in(item)
        if not isinstance(item, str):
            remedy = "; of an open file give .read()" if isinstance(item, io.TextIOBase) else ""
            raise UserError(f"text must be a str, got {type(item).__name__}{remedy}")
        return item


class TextProcessor(TextPieces, TextReader):
    """Converts strings, and `pathlib.Path`s of text files, to (L,) int64 ids, eos last. Settings: see `TextPieces`."""

    @classmethod
    def _own_files(cls, folder: Path | None) -> dict[str, object]:
        if folder is None:
            raise UserError("a text processor needs the folder of its model: tokenizer.json is there")
        return {"tokenizer": read_tokenizer(Path(folder) / "tokenizer.json")}

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def decode(self, item: object) -> Tensor:
        """(L,) int64 ids of one text; only the first text that is truncated is reported."""
        ids, _ = self.cut(self.prepare(self.load(item)))
        return torch.tensor(ids, dtype=torch.int64)

    def token_positions(self, item: object) -> tuple[Tensor, str]:
        """(L, 2) characters [start, end) of every id in the prepared text; the range of eos is empty, at the end."""
        prepared = self.prepare(self.load(item))
        shift = int(self.prefix_space)
        _, shifted_offsets = self.cut(prepared)
        offsets = []
        for shifted_start, shifted_end in shifted_offsets:
            start = max(shifted_start - shift, 0)
            end = max(shifted_end - shift, 0)
            # The range starts after the space before a word, unless the token is only space.
            while end - start > 1 and prepared[start].isspace():
                start += 1
            offsets.append((start, end))
        offsets.append((len(prepared), len(prepared)))
        return torch.tensor(offsets), "character"

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """{"ids": (B, L) int64}; if padded (with 1 on the right), also "lengths": (B,) numbers of tokens."""
        batch = {"ids": torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=PAD)}
        return batch | lengths_if_padded(samples)

    def example(self, share: float, generator: torch.Generator) -> Tensor:
        longest = LONG_TOKENS if self.max_tokens is None else self.max_tokens
        count = max(1, round(share * longest))
        ids = torch.randint(UNK + 1, self.vocab_size, (count,), generator=generator)
        return torch.cat([ids, torch.tensor([EOS])])

    @property
    def rules(self) -> str:
        return (
            f"lower: lower case. clean: no {LEADING} at the beginning, runs of white space and tabs as one space, no "
            "spaces and line ends around it. prefix_space: a space in front. Then tokenizer.json, which appends </s>, "
            f"{EOS}. A longer text is cut to its first max_tokens ids, followed by {EOS}. ids is padded on the right "
            f"with {PAD}; lengths counts the ids of each text, {EOS} included."
        )


def _text_in(path: os.PathLike[str]) -> str:
    """The content of a text file; `UserError` if it is not text, or larger than MAX_TEXT_BYTES."""
    try:
        text = decode_text(read_bytes(path, max_bytes=MAX_TEXT_BYTES))
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text, nor UTF-16 with a byte order mark (byte {error.start})", where=describe(path)
        ) from error
    if not text.strip():
        raise UserError("holds no text", where=describe(path))
    if "\0" in text:
        raise UserError("not text (it holds NUL bytes)", where=describe(path))
    return text
