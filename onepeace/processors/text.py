"""Text to token ids: one rule of cleaning and one limit of length, in training and in use."""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from onepeace.errors import UserError
from onepeace.files.source import describe, read_bytes, scheme, suffix
from onepeace.processors.processor import Processor, lengths_if_padded
from onepeace.processors.tokenizer import EOS, PAD, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

LEADING = ",.!?*#:;~"
SPACES = re.compile(r"\s{2,}|\t")
# Only the beginning of a huge text is tokenised; no token of a known vocabulary is half as long.
MAX_CHARS_PER_TOKEN = 256
MAX_FILE_BYTES = 1 << 20
# Halves of a surrogate pair that stand alone: Python strings may hold them, UTF-8 may not.
SURROGATES = re.compile("[\ud800-\udfff]")


def clean_text(text: str, lower: bool = True) -> str:
    """The original's data-set rule: lower case, no punctuation in front, runs of white space as one space."""
    text = text.lower() if lower else text
    return SPACES.sub(" ", text.lstrip(LEADING)).rstrip("\n").strip(" ")


def source_positions(text: str, lower: bool = True) -> list[int]:
    """For every character of `clean_text(text, lower)` the index in `text` that it came from."""
    lowered = text.lower() if lower else text
    # Lower case can be longer: a capital I with a dot becomes two characters.
    origin = range(len(text)) if len(lowered) == len(text) else [i for i, c in enumerate(text) for _ in c.lower()]
    start = len(lowered) - len(lowered.lstrip(LEADING))
    squeezed = SPACES.sub(" ", lowered[start:])
    kept: list[int] = []
    for run in SPACES.finditer(lowered, start):
        kept.extend(range(start, run.start() + 1))
        start = run.end()
    kept.extend(range(start, len(lowered)))
    front = len(squeezed) - len(squeezed.lstrip(" "))
    return [origin[i] for i in kept[front : front + len(clean_text(text, lower))]]


class TextProcessor(Processor):
    """Strings, and `pathlib.Path`s of text files, to (L,) int64 ids with eos last.

    max_tokens: ids kept before eos (None: all). lower, clean: see `clean_text`; the original's hub only lower-cases
    (clean=False), its data sets and this library clean. prefix_space: a space in front, so that the first word is the
    same piece as in the middle of a sentence; the released vocabulary then reads "" as that space.
    """

    key: ClassVar[str] = "text"
    suffixes: ClassVar[frozenset[str]] = frozenset({".txt"})

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        max_tokens: int | None = 70,
        lower: bool = True,
        prefix_space: bool = True,
        clean: bool = True,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"processors.text.max_tokens is {max_tokens}; it must be at least 1")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.lower = lower
        self.prefix_space = prefix_space
        self.clean = clean
        self._warned = False

    @classmethod
    def _own_files(cls, folder: Path | None) -> dict[str, object]:
        if folder is None:
            raise UserError("a text processor needs the folder of its model: tokenizer.json is there")
        return {"tokenizer": read_tokenizer(Path(folder) / "tokenizer.json")}

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @classmethod
    def matches(cls, item: object) -> bool:
        if isinstance(item, os.PathLike):
            return suffix(item) in cls.suffixes
        return isinstance(item, str) and scheme(item) is None  # an address is nobody's caption

    def load(self, item: object) -> str:
        """The text of a file, or a string as it is."""
        if isinstance(item, os.PathLike):
            return _text_in(item)
        if not isinstance(item, str):
            raise UserError(f"text must be a str, got {type(item).__name__}")
        return item

    def prepare(self, text: str) -> str:
        """The text that is cut into pieces: cleaned, without the space in front."""
        text = SURROGATES.sub("\ufffd", text)
        if self.clean:
            return clean_text(text, self.lower)
        return text.lower() if self.lower else text

    def decode(self, item: object) -> Tensor:
        """(L,) int64 ids of one text; a text that is cut is reported once per processor."""
        return torch.tensor(self._pieces(self.prepare(self.load(item)))[0], dtype=torch.int64)

    def token_positions(self, item: object) -> tuple[Tensor, str]:
        """(L, 2) characters [start, end) of the text, as it was given, behind every id; eos is empty, at the end."""
        text = self.load(item)
        prepared = self.prepare(text)
        if self.clean:
            positions = source_positions(text, self.lower)
        else:
            positions = [i for i, char in enumerate(text) for _ in (char.lower() if self.lower else char)]
        shift = int(self.prefix_space)
        offsets = []
        for start, end in self._pieces(prepared)[1]:
            start, end = max(start - shift, 0), max(end - shift, 0)
            # A piece owns its word, not the space before it, unless it is nothing but space.
            while end - start > 1 and prepared[start].isspace():
                start += 1
            offsets.append((positions[start], positions[end - 1] + 1) if end > start else (0, 0))
        return torch.tensor([*offsets, (len(text), len(text))]), "character"

    def _pieces(self, prepared: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, eos last, and the place in `prepared` of all but eos."""
        limit = len(prepared) if self.max_tokens is None else self.max_tokens * MAX_CHARS_PER_TOKEN
        if len(prepared) > limit:
            space = prepared.rfind(" ", limit // 2, limit)
            prepared = prepared[: space if space > 0 else limit]
        encoding = self.tokenizer.encode(" " + prepared if self.prefix_space else prepared)
        count = len(encoding) - 1  # without eos
        if self.max_tokens is None or count <= self.max_tokens:
            return encoding.ids, encoding.offsets[:-1]
        if not self._warned:
            self._warned = True
            logger.warning(
                "a text of %d tokens was cut to its first %d (said once): %s...",
                count, self.max_tokens, prepared[:40],
            )  # fmt: skip
        encoding.truncate(self.max_tokens)
        return [*encoding.ids, EOS], encoding.offsets

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """{"ids": (B, L) int64}, padded on the right with 1; then also "lengths": (B,) tokens of each."""
        batch = {"ids": torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=PAD)}
        return batch | lengths_if_padded(samples)


def _text_in(path: os.PathLike) -> str:
    """The content of a text file; `UserError` if it is no text, or more than anyone could mean as one."""
    try:
        text = read_bytes(path, max_bytes=MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{describe(path)}: not UTF-8 text (byte {error.start})") from error
    if "\0" in text or not text.strip():
        raise UserError(f"{describe(path)}: {'not text (it holds NUL bytes)' if text.strip() else 'holds no text'}")
    return text
