"""Hints about queries: false ones, and what is said about misspelt, foreign and negated queries; see search.md.

``python docs/results/hints.py FOLDER`` reads the captions in val/flickr8k/*.tar.gz below FOLDER. The class names are
ImageNet's (open_clip). The lists that are called unseen are by somebody who did not know the rules.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip

from onepeace.data.source import read_source
from onepeace.hub.resolve import fetch_model
from onepeace.index.hints import Vocabulary, hints, whole_words
from onepeace.processors.tokenizer import read_tokenizer

COUNT = 500
TYPOS = (
    "elefant|guitarr|a bycicle|mountian lake|beatiful sunset|sunsett|kichen|umbrela|giraf|volcno|a red baloon|zeebra|"
    "kangeroo|pinapple|skatebord|lighthose|penquin|sqirrel|waterfal|a chruch at night"
)
OTHER_TYPOS = (
    "retreiver|a hourse in a feild|tigar|moutain bike|a litle girl|childrn playing|buterfly|helicoptor|a yelow flower|"
    "strawbery|snowbord|a man with a umberella|dolfin|crocodil|piano musik|thunderstrom|sufer on a wave|tomatos|brigde|"
    "a garden with flowrs"
)
FOREIGN = (
    "perro|gato|Hund im Schnee|chien|une voiture rouge|playa|ein roter Apfel|le chat noir|montagne|fiore rosso|"
    "cachorro|niño en la playa|sneeuw|собака|犬"
)
UNSEEN_TYPOS = (
    "brithday cake|dog under a beach umbrela|buterfly on a flower|sunsett over the lake|moutain bike|bycicle|"
    "chidren playing in the park|thunderstrom|gutiar solo|restaraunt at night|kitchin table|babby laughing|"
    "firewroks|elefant at the zoo|snowey forest|peple dancing|christmas tre lights|waterfal in the jungle|"
    "spagetti with meatballs|horse runing in a field"
)
UNSEEN_FOREIGN = (
    "Hund|Geburtstag|Sonnenuntergang|Schmetterling|Weihnachtsmarkt|perro|cumpleaños|playa|lluvia|chien|"
    "anniversaire|plage|neige|gatto|spiaggia|montagna|cachorro|praia|fiets|verjaardag|kot|morze|"
    "sommarstuga|kedi|桜|собака|Hund am Strand|Oma und Opa im Garten|Kinder spielen im Schnee|gato durmiendo "
    "en el sofá|boda de mi hermana|coucher de soleil sur la mer|chat qui dort|bambini che giocano|torta di "
    "compleanno|pôr do sol na praia|pássaros cantando|hond in het bos|śpiew ptaków|wakacje nad morzem|barn "
    "som skrattar|deniz kenarında gün batımı|猫の鳴き声|шум дождя|день рождения бабушки"  # noqa: RUF001  (Turkish)
)
NEGATIONS = (
    "a beach without people|a beach but no people|a dog that is not brown|a street that isn't busy|not a dog|"
    "a kitchen with no window|a cat, not a dog|a tree without any leaves|birds but not gulls|music without singing"
)


def never(word: str) -> bool:
    """No file has any word of the queries."""
    return False


def false_hints(name: str, texts: Sequence[str], vocabulary: Vocabulary) -> None:
    """Print the number of texts with a hint, and what it says."""
    lines = []
    for text in texts:
        found = hints([text], vocabulary, never).lines
        if found:
            lines.append(f"  {text}: {found[0]}")
    print(f"{len(lines)} of {len(texts)} {name}")
    print("\n".join(lines))


def table(queries: str, vocabulary: Vocabulary) -> None:
    """Print a row for each query: what it is, and what is said about it."""
    for query in queries.split("|"):
        said = "; ".join(hints([query], vocabulary, never).lines) or "nothing"
        print(f"| {query} | {said} |")
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    whole = whole_words(read_tokenizer(fetch_model("tiny").folder / "tokenizer.json"))
    samples = read_source("val/flickr8k/*.tar.gz", ["text"], folder)
    captions = sorted({caption for sample in samples for caption in sample.captions})
    chosen = np.random.default_rng(0).choice(len(captions), COUNT, replace=False)
    false_hints("captions", [captions[number] for number in chosen], whole)
    false_hints("captions, all of them", captions, whole)
    false_hints("class names", open_clip.IMAGENET_CLASSNAMES[1::2], whole)
    false_hints("the other class names", open_clip.IMAGENET_CLASSNAMES[::2], whole)
    for queries in (TYPOS, OTHER_TYPOS, UNSEEN_TYPOS, FOREIGN, UNSEEN_FOREIGN, NEGATIONS):
        table(queries, whole)
