#!/usr/bin/env python3
"""MS-COCO captions: photographs with five sentences each, from cocodataset.org.

SOURCE holds what train2017.zip, val2017.zip and annotations_trainval2017.zip unpack to: a folder of JPEGs per split and
annotations/captions_SPLIT.json. Pictures that are among the samples of this repository are left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import Seen, ShardWriter, find, open_picture, parser, read_json, run, shrink, shuffled, webp

from onepeace.errors import UserError

SAMPLES = frozenset({125870, 126107, 165518, 214753, 234748, 252639, 423617, 551780})
"""COCO ids of the pictures in data/samples."""


def build(args: argparse.Namespace) -> None:
    """Write one set of shards for the training splits and one for the validation splits."""
    if both := set(args.train) & set(args.val):
        raise UserError(f"{sorted(both)[0]} cannot be both training and validation data")
    new = Seen()
    for splits, folder in ((args.val, "val/coco"), (args.train, "train/image_text")):
        if not splits:
            continue
        items = [(split, *item) for split in splits for item in _items(args.source, split)]
        with ShardWriter(args.out / folder, "coco") as writer:
            for split, path, captions in shuffled(items):
                try:
                    data = path.read_bytes()
                    media = webp(shrink(open_picture(data), args.size), args.quality)
                except OSError as error:
                    writer.skip(path, error)
                    continue
                if new(data):
                    source = f"MS-COCO {split}"
                    license = "annotations CC BY 4.0; photographs under their Flickr licences"
                    writer.add(f"coco_{path.stem}", "webp", media, captions, source=source, license=license)


def _items(source: Path, split: str) -> list[tuple[Path, list[str]]]:
    """The pictures of a split that are there and have captions, in order of their ids."""
    path = find(source, f"captions_{split}.json", what="the captions")
    content = read_json(path)
    captions: dict[int, list[str]] = {}
    try:
        rows = content["annotations"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: has no list of annotations") from error
    for i, row in enumerate(rows):
        try:
            captions.setdefault(int(row["image_id"]), []).append(" ".join(row["caption"].split()).rstrip("."))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: annotations[{i}] has no image_id and caption: {row!r}") from error
    folder = find(source, split, what="its photographs")
    pictures = [(int(picture.stem), picture) for picture in sorted(folder.glob("*.jpg")) if picture.stem.isdigit()]
    return [(picture, captions[number]) for number, picture in pictures if number in captions and number not in SAMPLES]


def _splits(text: str) -> list[str]:
    return [split for split in text.split(",") if split]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--train", type=_splits, default="train2017", help="training splits, a,b (default train2017)"
    )
    arguments.add_argument(
        "--val", type=_splits, default="val2017", help='validation splits (default val2017; "" = none)'
    )
    arguments.add_argument("--size", type=int, default=144, help="short side in pixels (default 144)")
    arguments.add_argument("--quality", type=int, default=78, help="WebP quality (default 78)")
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
