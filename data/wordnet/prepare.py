#!/usr/bin/env python3
"""Names of things, without pictures: the nouns of WordNet 3.0, from wordnet.princeton.edu.

SOURCE holds the database's data.noun (or parts of it: data.noun*). What is named with a capital letter or a digit is
left out, and so are the kinds of nouns that cannot be seen or heard, and the names that are validation captions of
emoji and openclipart. All of it is training data: samples of a text alone, from which the text side learns words that
no caption has.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import parser, read_lines, run, shuffled

from onepeace.data.shard_writer import ShardWriter
from onepeace.errors import UserError
from onepeace.evaluate.zero_shot import with_article

KINDS = {
    4: "act", 5: "animal", 6: "artifact", 8: "body", 11: "event", 12: "feeling", 13: "food", 15: "location",
    17: "object", 18: "person", 19: "phenomenon", 20: "plant", 25: "shape", 27: "substance",
}  # fmt: skip
"""Lexicographer files (lexnames(5WN)) whose nouns are things, beings, places or what happens to them."""
HELD_OUT = ("emoji", "openclipart")
LICENSE = "WordNet 3.0 license (Princeton University)"


def build(args: argparse.Namespace) -> None:
    """Write the training shards."""
    files = sorted(args.source.rglob("data.noun*"))
    if not files:
        raise UserError(f"{args.source}: no data.noun; expected the folder dict of WordNet 3.0")
    held_out = {name for folder in HELD_OUT for name in _names(Path(__file__).parents[1] / folder / "val.txt")}
    samples = [
        sample
        for path in files
        for where, line in read_lines(path)
        if not line.startswith("  ")  # of the license, which stands before the data
        if (sample := _synset(where, line, held_out))
    ]
    with ShardWriter(args.out / "train/text", "wordnet", compress=True) as writer:
        for key, names, kind in shuffled(samples):
            captions = [*names, f"a photo of {with_article(names[0])}"]
            writer.write(key, {}, captions, source="WordNet 3.0", license=LICENSE, kind=kind)
    print(f"{writer.count} samples in {len(writer.paths)} files below {writer.folder}")


def _names(path: Path) -> list[str]:
    """The held-out names of a set, in small letters; what may stand before them in a line is behind a tab."""
    return [line.rpartition("\t")[2].strip().lower() for _, line in read_lines(path)]


def _synset(where: str, line: str, held_out: set[str]) -> tuple[str, list[str], str] | None:
    """Key, names and kind of one line of data.noun (its form: wndb(5WN)); None of what is left out."""
    fields = line.split()
    try:
        offset, kind, count = fields[0], int(fields[1]), int(fields[3], 16)
        names = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
    except (IndexError, ValueError) as error:
        raise UserError(f"{where}: not a line of WordNet's data.noun ({error})") from error
    plain = [name for name in names if name.islower() and not any(c.isdigit() for c in name) and name not in held_out]
    if kind not in KINDS or not plain:
        return None
    return f"wordnet_n{offset}", plain, KINDS[kind]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    return run(build, parser(__doc__), argv)


if __name__ == "__main__":
    sys.exit(main())
