"""Words and sentences without pictures, for terms that ask a teacher of texts."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from onepeace.config.reader import Count
from onepeace.datasets.layout import Encoded, HeldOut, Layout, Record, Split, option, shuffled
from onepeace.errors import UserError

SENTENCES = (
    "a photo of a {}", "a picture of {}", "a drawing of a {}", "the sound of {}", "a {} in the background",
    "people and a {}",
)  # fmt: skip
"""Templates: each word is written alone and in one of these."""
TEXTS = 5
"""Maximum number of texts per sample: with few, all texts are used about equally often."""


@dataclass(frozen=True)
class Words(Layout):
    """The whole words of a sentence encoder's vocabulary, and the class names of ImageNet that open_clip lists.

    SOURCE is the model folder of the encoder, with its vocab.txt (WordPiece: a piece per line, "##" before those inside
    a word). All of it is training data of one modality, for terms that ask a teacher of texts.
    """

    shortest: Count = option(3, "letters of the shortest word that is taken")
    definitions: bool = option(False, "also the 21,800 names of ImageNet-21k in timm, with their definitions (WordNet)")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        path = folder / "vocab.txt"
        if not path.is_file():
            raise UserError(f"{folder}: no vocab.txt; name the model folder of a sentence encoder")
        pieces = path.read_text(encoding="utf-8", errors="replace").split("\n")
        words = [piece for piece in pieces if re.fullmatch("[a-z]+", piece) and len(piece) >= self.shortest]
        if not words:
            lines = f"not one of its {len(pieces)} lines"
            raise UserError(f"{path}: {lines} is a word of {self.shortest} letters or more")
        yield Split("train/text/words", self._words(path, words), _no_files)
        if self.definitions:
            yield Split("train/text/definitions", self._definitions(), _no_files)

    def _words(self, path: Path, words: list[str]) -> Iterator[Record]:
        from open_clip import IMAGENET_CLASSNAMES as names

        rng = random.Random(0)  # noqa: S311
        for i, word in enumerate(shuffled(dict.fromkeys([*words, *names]))):
            texts = [word, rng.choice(SENTENCES).format(word)]
            yield _texts(f"word_{i:05d}", "vocabulary", texts, "Apache-2.0", f"{path} {word}")

    def _definitions(self) -> Iterator[Record]:
        folder = resources.files("timm") / "data" / "_info"
        names, meanings = (
            dict(line.split("\t") for line in (folder / f"imagenet_synset_to_{kind}.txt").read_text().splitlines())
            for kind in ("lemma", "definition")
        )
        rng = random.Random(0)  # noqa: S311
        for synset in shuffled(names):
            synonyms = names[synset].split(", ")[: TEXTS - 2]
            text = rng.choice(SENTENCES).format(synonyms[0])
            texts = [*synonyms, text, f"{synonyms[0]}, {meanings[synset]}"]
            yield _texts(f"word_{synset}", "definition", texts, "WordNet 3.0", f"timm {synset}")


def _texts(key: str, source: str, texts: list[str], license_: str, where: str) -> Record:
    return Record(key, source, {"text": texts}, {}, {"license": license_}, where)


def _no_files(record: Record) -> Encoded:
    return Encoded({})


layout = Words()
