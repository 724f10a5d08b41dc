"""Text and ids of a generative model: one vocabulary of words, a mask, image codes and box bins.

The words of the model's tokenizer (processors/tokenizer.py) have the first ids; the symbols follow in this order:
`<mask>`, `<code_0>` ..., `<bin_0>` ... (OFA's released models: 50,264 words, 8,192 codes, 1,000 bins). A vocabulary may
lack any of the three.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from onepeace.errors import UserError
from onepeace.generative.config import OFAConfig
from onepeace.processors.tokenizer import BOS, EOS, LEADING, PAD, SURROGATES, UNK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SYMBOL = re.compile(r" ?<(?:(?P<mask>mask)|(?P<family>code|bin)_(?P<number>\d+))>")
"""A symbol in a text. A space in front of it only separates it: symbols never pass through the tokenizer."""
WHITE = re.compile(r"\s{2,}")


Size: TypeAlias = tuple[int, int]
"""Width and height of a picture in pixels."""


class Vocabulary:
    """Text to ids and back, boxes to bins and back.

    Args:
        tokenizer: tokenizer of the words, from `read_tokenizer`.
        num_words: number of word ids; None = that of the tokenizer.
        mask: whether there is a `<mask>`, which stands for missing words.
        num_codes: number of image codes.
        num_bins: number of coordinates that a box can have along an axis.
        box_side: pixel of the resized picture that the last bin stands for, independent of the size of the picture;
            the released models use 512 for pictures of 480 pixels too, where the largest bin is 937.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        num_words: int | None = None,
        *,
        mask: bool = False,
        num_codes: int = 0,
        num_bins: int = 0,
        box_side: int = 512,
    ) -> None:
        self.tokenizer = tokenizer
        self.box_side = box_side
        self.num_words = tokenizer.get_vocab_size() if num_words is None else num_words
        self.mask = self.num_words if mask else None
        start = self.num_words + mask
        self.codes = range(start, start + num_codes)
        self.bins = range(self.codes.stop, self.codes.stop + num_bins)

    @classmethod
    def of(cls, config: OFAConfig, tokenizer: "Tokenizer") -> "Vocabulary":
        """Vocabulary of an OFA model."""
        return cls(
            tokenizer,
            config.num_words,
            mask=True,
            num_codes=config.num_codes,
            num_bins=config.num_bins,
        )

    def __len__(self) -> int:
        return self.bins.stop

    def encode(self, text: str) -> list[int]:
        """Ids of a text without bos and eos. Words are tokenized as they are, with leading spaces; `<mask>`,
        `<code_3>` and `<bin_7>` are looked up, and become the unknown word if the vocabulary lacks them."""
        ids: list[int] = []
        words_start = 0
        for symbol in SYMBOL.finditer(text):
            ids += self._words(text[words_start : symbol.start()])
            ids.append(self._symbol(symbol["mask"], symbol["family"], symbol["number"]))
            words_start = symbol.end()
        return ids + self._words(text[words_start:])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without bos, padding and eos; symbols are written without spaces."""
        text = ""
        for is_word, group in groupby(ids, lambda token: token < self.num_words):
            if is_word:
                words = [token for token in group if token not in (BOS, PAD, EOS)]
                text += self.tokenizer.decode(words)
            else:
                text += "".join(map(self._name, group))
        return text

    def bins_of(self, box: Sequence[float], size: Size, resized: Size) -> list[int]:
        """Ids of the four bins of a box.

        Args:
            box: x0, y0, x1, y1 in pixels of a picture.
            size: size of this picture.
            resized: size of the picture that the model reads.
        """
        last_bin = self._last_bin()
        x_scale = resized[0] / size[0] / self.box_side * last_bin
        y_scale = resized[1] / size[1] / self.box_side * last_bin
        scales = (x_scale, y_scale, x_scale, y_scale)
        # round() rounds half to even, like the released code.
        numbers = [round(corner * scale) for corner, scale in zip(box, scales, strict=True)]
        if min(numbers) < 0 or max(numbers) > last_bin:
            raise UserError(f"the box {list(box)} lies outside of its picture of {size[0]} x {size[1]} pixels")
        return [self.bins.start + number for number in numbers]

    def box_of(self, ids: Sequence[int], size: Size, resized: Size) -> list[float]:
        """x0, y0, x1, y1 in pixels of a picture, from the ids of four bins; not clipped. Arguments: see `bins_of`.

        ValueError if they are not four bins.
        """
        if len(ids) != 4 or not all(token in self.bins for token in ids):
            raise ValueError(f"{self.decode(ids)!r} is not a box of four bins")
        last_bin = self._last_bin()
        x_scale = self.box_side / last_bin * size[0] / resized[0]
        y_scale = self.box_side / last_bin * size[1] / resized[1]
        x0, y0, x1, y1 = (token - self.bins.start for token in ids)
        return [x0 * x_scale, y0 * y_scale, x1 * x_scale, y1 * y_scale]

    def _last_bin(self) -> int:
        if len(self.bins) < 2:
            raise UserError("this model has no bins for boxes")
        return len(self.bins) - 1

    def _words(self, text: str) -> list[int]:
        if not text:
            return []
        return self.tokenizer.encode(SURROGATES.sub("\ufffd", text), add_special_tokens=False).ids

    def _symbol(self, mask: str | None, family: str | None, number: str | None) -> int:
        """Id of a symbol, from the groups of `SYMBOL`; UNK if the vocabulary lacks it."""
        if mask:
            return UNK if self.mask is None else self.mask
        ids = self.codes if family == "code" else self.bins
        index = int(number or 0)
        return ids[index] if index < len(ids) else UNK

    def _name(self, token: int) -> str:
        """Name of a symbol."""
        if token in self.codes:
            return f"<code_{token - self.codes.start}>"
        if token == self.mask:
            return "<mask>"
        return f"<bin_{token - self.bins.start}>"


def normalise_question(text: str) -> str:
    """A question as the released models read it: lower case, no leading punctuation, "-" and "/" as spaces, runs of
    white space as one space."""
    text = text.lower().lstrip(LEADING)
    text = text.replace("-", " ").replace("/", " ")
    return WHITE.sub(" ", text).rstrip("\n").strip(" ")


def normalise_caption(text: str) -> str:
    """A caption, phrase or statement: like a question, with `<person>` (Conceptual Captions) as the word person."""
    return normalise_question(text.lower().replace("<person>", "person"))
