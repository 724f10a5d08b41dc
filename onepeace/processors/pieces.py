"""Converts text to token ids without torch, with the same cleaning and length limit wherever a text is read."""

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onepeace.errors import UserError
from onepeace.special_ids import EOS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

LEADING = ",.!?*#:;~"
SPACES = re.compile(r"\s{2,}|\t")
# Only the beginning of a huge text is tokenised; tokens of known vocabularies are less than half as long.
MAX_CHARS_PER_TOKEN = 256
# Lone surrogates: Python strings may contain them, UTF-8 may not.
SURROGATES = re.compile("[\ud800-\udfff]")


def clean_text(text: str, lower: bool = True) -> str:
    """Clean a text by the original's rule: lower case, no leading punctuation, runs of white space as one space."""
    text = text.lower() if lower else text
    return SPACES.sub(" ", text.lstrip(LEADING)).rstrip("\n").strip(" ")


def preparation(settings: Mapping[str, Any]) -> str:
    """Description of how texts are prepared under settings of `TextPieces`."""
    case = "lower case" if settings.get("lower", True) else "letters as they are"
    rule = "no punctuation in front, white space as one space" if settings.get("clean", True) else "not cleaned"
    return f"{case}, {rule}"


class TextPieces:
    """Splits strings into the tokens of a vocabulary, with eos at the end.

    max_tokens: ids kept before eos (None = all). lower, clean: see `clean_text`; models trained here clean texts as the
    original's data sets do, released ones only lower-case them (clean=False), as the original's API does. prefix_space:
    prepend a space, so that the first word has the same token as in the middle of a sentence; the released vocabulary
    then reads "" as that space.
    """

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
        self.report_cut = True
        """Whether the next truncated text is reported; only the first one is."""

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that create an equal instance."""
        return {name: getattr(self, name) for name in ("max_tokens", "lower", "prefix_space", "clean")}

    def prepare(self, text: str) -> str:
        """The text to be tokenised: cleaned, without the prefix space."""
        text = SURROGATES.sub("\ufffd", text)
        if self.clean:
            return clean_text(text, self.lower)
        return text.lower() if self.lower else text

    def cut(self, prepared: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, eos last, and [start, end) of all but eos; these count the prefix space in front of `prepared`."""
        beginning = self._beginning(prepared)
        encoding = self.tokenizer.encode(" " + beginning if self.prefix_space else beginning)
        count = len(encoding) - 1  # without eos
        if self.max_tokens is None or count <= self.max_tokens:
            return encoding.ids, encoding.offsets[:-1]
        if self.report_cut:
            self.report_cut = False
            more_than = "more than " if len(beginning) < len(prepared) else ""
            logger.warning(
                "a text of %s%d tokens was cut to its first %d (said once): %s...",
                more_than,
                count,
                self.max_tokens,
                prepared[:40],
            )
        encoding.truncate(self.max_tokens)
        return [*encoding.ids, EOS], encoding.offsets

    def _beginning(self, prepared: str) -> str:
        """The part of a text that is tokenised: of a huge one only the beginning, up to a space."""
        if self.max_tokens is None:
            return prepared
        limit = self.max_tokens * MAX_CHARS_PER_TOKEN
        if len(prepared) <= limit:
            return prepared
        space = prepared.rfind(" ", limit // 2, limit)
        return prepared[:space] if space > 0 else prepared[:limit]
