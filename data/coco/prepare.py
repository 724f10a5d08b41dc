#!/usr/bin/env python3
"""MS-COCO captions: photographs with five sentences each, from cocodataset.org.

SOURCE holds what train2017.zip, val2017.zip and annotations_trainval2017.zip unpack to: a folder of JPEGs per split and
annotations/captions_SPLIT.json. The splits of 2014 (--train train2014 --val val2014) hold the same pictures, parted
otherwise. Pictures that are among the samples of this repository are left out.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import (
    Seen,
    SetWriter,
    find,
    open_picture,
    parser,
    picture_arguments,
    read_json,
    refuse_split_in_both,
    run,
    shrink,
    shuffled,
    split_arguments,
    webp,
)

from onepeace.errors import UserError

SAMPLES = frozenset({125870, 126107, 165518, 214753, 234748, 252639, 423617, 551780})
"""COCO ids of the pictures in data/samples."""


def build(args: argparse.Namespace) -> None:
    """Write one set of shards for the training splits and one for the validation splits."""
    refuse_split_in_both(args)
    new = Seen()
    for splits, folder in ((args.val, "val/coco"), (args.train, "train/image_text")):
        if not splits:
            continue
        items = [(split, *item) for split in splits for item in _items(args.source, split)]
        with SetWriter(args.out / folder, "coco") as writer:
            for split, number, path, captions in shuffled(items):
                try:
                    data = path.read_bytes()
                    media = webp(shrink(open_picture(data), args.size), args.quality)
                except OSError as error:
                    writer.skip(path, error)
                    continue
                if new(data):
                    source = f"MS-COCO {split}"
                    license = "annotations CC BY 4.0; photographs under their Flickr licences"
                    writer.add(f"coco_{number:012d}", "webp", media, captions, source=source, license=license)


def _items(source: Path, split: str) -> list[tuple[int, Path, list[str]]]:
    """The pictures of a split that are there and have captions, in order of their ids."""
    path = find(source, f"captions_{split}.json", what="the captions")
    content = read_json(path)
    captions: dict[int, list[str]] = {}
    try:
        rows = content["annotations"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: has no list of annotations") from error
    for i, row in enumerate(rows, 1):
        try:
            captions.setdefault(int(row["image_id"]), []).append(" ".join(row["caption"].split()).rstrip("."))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: annotation {i} has no image_id and caption: {row!r:.100}") from error
    folder = find(source, split, what="its photographs")
    # 000000000009.jpg of 2017 is COCO_train2014_000000000009.jpg of 2014
    pictures = [(int(name[1]), path) for path in folder.glob("*.jpg") if (name := re.search(r"(\d+)$", path.stem))]
    if not pictures:
        raise UserError(f"{folder}: no photographs named NUMBER.jpg")
    return [(i, path, captions[i]) for i, path in sorted(pictures) if i in captions and i not in SAMPLES]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    split_arguments(arguments, "train2017", "val2017")
    picture_arguments(arguments)
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
