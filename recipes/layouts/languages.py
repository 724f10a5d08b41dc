"""Captions and nouns in several languages beside their English ones, for a term that distils a text branch."""

import gzip
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.config.reader import Probability
from onepeace.datasets.layout import Encoded, HeldOut, Layout, Record, Split, option
from onepeace.datasets.reading import read_json
from onepeace.embed.classify import fill
from onepeace.errors import UserError

PHRASES = Path(__file__).with_name("languages.json")
"""Templates of nouns, and subjects, actions and places of sentences, by language; "|" separates variants, and those of
one number mean the same in all languages."""
CONCRETE = {
    "animal", "artifact", "body", "food", "location", "object", "person", "phenomenon", "plant", "substance",
}  # fmt: skip
"""Kinds of nouns that are put into templates: what pictures show."""
ORDERS = {"tr": "{subject} {place} {action}", "ja": "{subject}が{place}{action}", "zh": "{subject}{place}{action}"}
"""Order of a sentence's parts where it is not that of English."""
CAPTIONS = ("en", "de", "fr", "cs")
"""Languages of captions."""
PER_NOUN = 3
"""Templates of each noun."""


@dataclass(frozen=True)
class Languages(Layout):
    """Texts whose first caption is English, and whose others say the same in other languages.

    SOURCE is a folder with train.jsonl.gz (captions by language) and words.jsonl.gz (nouns by language and their kind).
    All is training data of one modality, but val.jsonl.gz (as train.jsonl.gz, with the keys of pictures): with
    val/flickr8k in the output, its pictures are written anew for each language, with the caption in it.
    """

    sentences: Probability = option(0.5, "share of the combinations of subject, action and place")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        for name in ("train.jsonl.gz", "words.jsonl.gz"):
            next(_rows(folder / name), None)  # an error before anything is written
        pictures = {record.key: record for record in held_out("flickr8k")}
        if pictures:
            for language in CAPTIONS:
                records = _pictures(folder / "val.jsonl.gz", language, pictures)
                yield Split(f"val/languages_{language}/flickr8k_{language}", records, _picture)
        phrases = read_json(PHRASES)
        yield Split("train/text/translations", _captions(folder / "train.jsonl.gz"), _no_files)
        yield Split("train/text/nouns", _nouns(folder / "words.jsonl.gz"), _no_files)
        yield Split("train/text/templates", _templates(folder / "words.jsonl.gz", phrases["templates"]), _no_files)
        yield Split("train/text/sentences", _sentences(phrases, self.sentences), _no_files)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Number and content of each line."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{number:05d}", json.loads(line)
    except (OSError, ValueError) as error:
        raise UserError(f"no JSON lines, compressed by gzip ({error})", where=path) from error


def _captions(path: Path) -> Iterator[Record]:
    for number, row in _rows(path):
        yield _texts(f"caption_{number}", [row[language] for language in CAPTIONS], path)


def _pictures(path: Path, language: str, pictures: Mapping[str, Record]) -> Iterator[Record]:
    """Those pictures that have a caption in a language."""
    for _, row in _rows(path):
        picture = pictures.get(row.get("key", ""))
        if picture is not None:
            inputs = {**picture.inputs, "text": [row[language]]}
            yield Record(picture.key, "languages", inputs, {}, {}, f"{path} {picture.key}")


def _picture(record: Record) -> Encoded:
    return Encoded({"webp": record.inputs["image"]})


def _words(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words of a row by language, English first."""
    return {"en": row["en"], **{key: words for key, words in row.items() if len(key) == 2 and key != "en"}}


def _nouns(path: Path) -> Iterator[Record]:
    for number, row in _rows(path):
        words = dict.fromkeys(word for words in _words(row).values() for word in words)
        yield _texts(f"noun_{number}", list(words), path)


def _templates(path: Path, templates: Mapping[str, Sequence[str]]) -> Iterator[Record]:
    """Nouns in a few templates each, with the English noun's own article."""
    rng = random.Random(0)  # noqa: S311
    for number, row in _rows(path):
        if row["kind"] not in CONCRETE:
            continue
        words = _words(row)
        for template in rng.sample(range(len(templates["en"])), PER_NOUN):
            texts = [fill(templates["en"][template], row["en"][0])]
            for language, variants in templates.items():
                if language in words and language != "en":
                    variant = rng.choice(variants[template].split("|"))
                    texts.append(fill(variant, rng.choice(words[language])))
            yield _texts(f"template_{number}_{template}", texts, path)


def _sentences(phrases: Mapping[str, Any], share: float) -> Iterator[Record]:
    rng = random.Random(0)  # noqa: S311
    parts = ("subjects", "actions", "places")
    numbers = itertools.product(*(range(len(phrases[part]["en"])) for part in parts))
    for count, chosen in enumerate(numbers):
        if rng.random() >= share:
            continue
        texts = []
        for language in phrases["subjects"]:
            words = [rng.choice(phrases[part][language][i].split("|")) for part, i in zip(parts, chosen, strict=True)]
            order = ORDERS.get(language, "{subject} {action} {place}")
            texts.append(order.format(subject=words[0], action=words[1], place=words[2]).strip())
        yield _texts(f"sentence_{count:05d}", texts, PHRASES)


def _texts(key: str, texts: list[str], path: Path) -> Record:
    return Record(key, "languages", {"text": texts}, {}, {}, f"{path} {key}")


def _no_files(record: Record) -> Encoded:
    return Encoded({})


layout = Languages()
