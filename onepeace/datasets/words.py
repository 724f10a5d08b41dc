"""Words and class names as texts without pictures or sounds: more language than captions have."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import Encoded, HeldOut, Layout, Record, Split, option, shuffled
from onepeace.errors import UserError, need

SENTENCES = (
    "a photo of a {}", "a picture of {}", "a drawing of a {}", "the sound of {}", "a {} in the background",
    "people and a {}",
)  # fmt: skip
"""Each word comes by itself and in one of them."""


@dataclass(frozen=True)
class Words(Layout):
    """The whole words of a sentence encoder's vocabulary, and the class names of ImageNet that open_clip lists.

    SOURCE is the model folder of the encoder, with its vocab.txt (WordPiece: a piece per line, "##" before those inside
    a word). All of it is training data of one modality, for terms that ask a teacher of texts.
    """

    family = "word"
    shortest: int = option(3, "letters of the shortest word that is taken")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        path = folder / "vocab.txt"
        if not path.is_file():
            raise UserError(f"{folder}: no vocab.txt; name the model folder of a sentence encoder")
        pieces = path.read_text(encoding="utf-8", errors="replace").split("\n")
        words = [piece for piece in pieces if re.fullmatch("[a-z]+", piece) and len(piece) >= self.shortest]
        if not words:
            lines = f"not one of its {len(pieces)} lines"
            raise UserError(f"{path}: {lines} is a word of {self.shortest} letters or more")
        yield Split("train/text/words", self._records(path, words), lambda record: Encoded({}))

    def _records(self, path: Path, words: list[str]) -> Iterator[Record]:
        names = need("open_clip", "teachers").IMAGENET_CLASSNAMES
        rng = random.Random(0)  # noqa: S311
        for i, word in enumerate(shuffled(dict.fromkeys([*words, *names]))):
            texts = [word, rng.choice(SENTENCES).format(word)]
            yield Record(
                f"word_{i:05d}", "vocabulary", {"text": texts}, {}, {"license": "Apache-2.0"}, f"{path} {word}"
            )
