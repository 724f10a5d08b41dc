#!/usr/bin/env python3
"""Flickr30k: 31,783 photographs with five sentences each.

SOURCE holds a folder flickr30k-images (or flickr30k_images) of JPEGs, and results_20130124.token or, as on Kaggle,
results.csv with "|" between the columns. With Karpathy's dataset_flickr30k.json below SOURCE its test split is
validation data and its val split goes nowhere (for choices that must not touch validation data); without it all is
training data. Pictures that ROOT has as validation data of Flickr8k, most of which is in Flickr30k, are left out of
training.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from check import held_out
from shardwriter import (
    Seen,
    SetWriter,
    find,
    open_picture,
    parser,
    picture_arguments,
    read_json,
    read_lines,
    run,
    sentence,
    shrink,
    shuffled,
    webp,
)

from onepeace.errors import UserError

LICENSE = "Flickr photographs; research and educational use (Flickr30k terms)"
HEAD = "image_name| comment_number| comment"


def build(args: argparse.Namespace) -> None:
    """Write the shards of training data and, if there is a list of splits, of validation data."""
    captions = _captions(find(args.source, "results_20130124.token", "results.csv", what="the captions"))
    folder = find(args.source, "flickr30k-images", "flickr30k_images", what="the photographs")
    pictures = {path.name: path for path in sorted(folder.rglob("*.jpg"))}  # Kaggle has the folder inside itself
    if not pictures:
        raise UserError(f"{folder}: no .jpg files")
    splits = _splits(args.source)
    apart = held_out(args.out, "flickr8k")
    new = Seen()

    def write(writer: SetWriter, names: Sequence[str], source: str, size: int, quality: int) -> None:
        for name in shuffled(names):
            path = pictures.get(name, folder / name)
            try:
                data = path.read_bytes()
                picture = open_picture(data)
            except OSError as error:
                writer.skip(path, error)
                continue
            if not captions.get(name):
                writer.skip(path, "it has no caption")
            elif new(data):
                media = webp(shrink(picture, size), quality)
                key = f"f30k_{path.stem}"
                writer.add(key, "webp", media, captions[name], source=f"Flickr30k {source}", license=LICENSE)

    # The validation split first: of two equal pictures the later one is left out.
    if splits:
        test = sorted(name for name, split in splits.items() if split == "test")
        with SetWriter(args.out / "val/flickr30k", "flickr30k_test") as writer:
            write(writer, test, "test", args.val_size, 85)
    train = [
        name
        for name in pictures
        if splits.get(name) not in ("test", "val") and ("flickr", Path(name).stem) not in apart
    ]
    with SetWriter(args.out / "train/image_text", "flickr30k") as writer:
        write(writer, train, "train", args.size, args.quality)


def _captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    # results.csv has one row in which the second "|" is missing.
    row = re.compile(r"([^|]+\.jpg)\|\s*\d+\s*\|?\s(.*)" if path.suffix == ".csv" else r"(.+\.jpg)#\d+\t(.*)")
    shape = HEAD if path.suffix == ".csv" else "NAME.jpg#NUMBER, a tab and a caption"
    for where, line in read_lines(path):
        if line.startswith(HEAD):
            continue
        match = row.fullmatch(line)
        if match is None:
            raise UserError(f"{where}: expected {shape}; found {line[:60]!r}")
        if caption := sentence(match[2]):
            captions.setdefault(match[1].strip(), []).append(caption)
    return captions


def _splits(source: Path) -> dict[str, str]:
    """Karpathy's split by file name; empty if it is not there."""
    found = sorted(source.rglob("dataset_flickr30k.json"))
    if not found:
        return {}
    content = read_json(found[0])
    try:
        rows = content["images"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{found[0]}: has no list of images") from error
    splits = {}
    for i, row in enumerate(rows, 1):
        try:
            splits[row["filename"]] = row["split"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{found[0]}: image {i} of the list has no filename and split: {row!r:.100}") from error
    return splits


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    picture_arguments(arguments)
    arguments.add_argument("--val-size", type=int, default=160, help="short side of validation pictures (default 160)")
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
