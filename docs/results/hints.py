"""Hints about queries: false ones, and what is said about misspelt, foreign and negated queries; see search.md.

``python docs/results/hints.py FOLDER`` reads the captions in val/flickr8k/*.tar.gz below FOLDER. The class names are
every second one of ImageNet's (open_clip); the thresholds were chosen on the others, and on captions for training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip

from onepeace.data.source import read_source
from onepeace.index.hints import hints

COUNT = 500
TYPOS = (
    "elefant|guitarr|a bycicle|mountian lake|beatiful sunset|sunsett|kichen|umbrela|giraf|volcno|a red baloon|zeebra|"
    "kangeroo|pinapple|skatebord|lighthose|penquin|sqirrel|waterfal|a chruch at night"
)
FOREIGN = (
    "perro|gato|Hund im Schnee|chien|une voiture rouge|playa|ein roter Apfel|le chat noir|montagne|fiore rosso|"
    "cachorro|niño en la playa|sneeuw|собака|犬"
)
NEGATIONS = (
    "a beach without people|a beach but no people|a dog that is not brown|a street that isn't busy|not a dog|"
    "a kitchen with no window|a cat, not a dog|a tree without any leaves|birds but not gulls|music without singing"
)


def never(word: str) -> bool:
    """No file has any word of the queries."""
    return False


def false_hints(name: str, texts: Sequence[str]) -> None:
    """Print the number of texts with a hint, and what it says."""
    lines = []
    for text in texts:
        for line in hints([text], never).lines:
            lines.append(f"  {text}: {line}")
    print(f"{len(lines)} of {len(texts)} {name}")
    print("\n".join(lines))


def table(queries: str) -> None:
    """Print a row for each query: what it is, and what is said about it."""
    for query in queries.split("|"):
        said = "; ".join(hints([query], never).lines) or "nothing"
        print(f"| {query} | {said} |")
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    samples = read_source("val/flickr8k/*.tar.gz", ["text"], folder)
    captions = sorted({caption for sample in samples for caption in sample.captions})
    chosen = np.random.default_rng(0).choice(len(captions), COUNT, replace=False)
    false_hints("captions", [captions[number] for number in chosen])
    false_hints("captions, all of them", captions)
    false_hints("class names", open_clip.IMAGENET_CLASSNAMES[1::2])
    for queries in (TYPOS, FOREIGN, NEGATIONS):
        table(queries)
