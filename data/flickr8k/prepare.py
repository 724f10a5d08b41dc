#!/usr/bin/env python3
"""Flickr8k: 8,091 photographs with five sentences each, from Flickr8k_Dataset.zip and Flickr8k_text.zip.

SOURCE holds both, unpacked: a folder Flicker8k_Dataset (or Flickr8k_Dataset, Images, images) of JPEGs, and
Flickr8k.token.txt, Flickr_8k.devImages.txt and Flickr_8k.testImages.txt anywhere below. The official test split is
validation data. Some pictures of the dev split go nowhere (for choices that must not touch validation data); the rest
of dev, the official training split, and the pictures that are in no split are training data, less those that ROOT has
as validation data of Flickr30k, which holds most of Flickr8k.
"""

import argparse
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
    read_lines,
    run,
    sentence,
    shrink,
    shuffled,
    webp,
)

from onepeace.errors import UserError

LICENSE = "Flickr photographs; research and educational use (Flickr8k terms)"


def build(args: argparse.Namespace) -> None:
    """Write the shards of both splits."""
    captions = _captions(find(args.source, "Flickr8k.token.txt", what="the captions"))
    dev, test = (
        shuffled(sorted(line.strip() for _, line in read_lines(find(args.source, name, what="a split"))))
        for name in ("Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt")
    )
    folder = find(args.source, "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images", what="the photographs")
    apart = {*test, *dev[: args.keep_out]}
    elsewhere = held_out(args.out, "flickr30k")
    train = sorted(
        path.name
        for path in folder.glob("*.jpg")
        if path.name in captions and path.name not in apart and ("flickr", path.name.split("_")[0]) not in elsewhere
    )
    new = Seen()

    def write(writer: SetWriter, names: Sequence[str], source: str, size: int, quality: int) -> None:
        for name in names:
            path = folder / name
            try:
                data = path.read_bytes()
                picture = open_picture(data)
            except OSError as error:
                writer.skip(path, error)
                continue
            if name not in captions:
                writer.skip(path, "it has no caption")
            elif new(data):
                key = f"f8k_{name.partition('.')[0]}"
                media = webp(shrink(picture, size), quality)
                writer.add(key, "webp", media, captions[name], source=f"Flickr8k {source}", license=LICENSE)

    # The validation split first: of two equal pictures the later one is left out.
    with SetWriter(args.out / "val/flickr8k", "flickr8k_test") as writer:
        write(writer, test, "test", args.val_size, 85)
    with SetWriter(args.out / "train/image_text", "flickr8k") as writer:
        write(writer, shuffled(train), "train/dev/other", args.size, 78)


def _captions(path: Path) -> dict[str, list[str]]:
    """Captions by file name."""
    captions: dict[str, list[str]] = {}
    for where, line in read_lines(path):
        name, tab, caption = line.partition("\t")
        if not tab or "#" not in name:
            raise UserError(f"{where}: expected NAME.jpg#NUMBER, a tab and a caption; found {line[:60]!r}")
        if len(caption := sentence(caption)) > 5:
            captions.setdefault(name.partition("#")[0], []).append(caption)
    return captions


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--size", type=int, default=144, help="short side of training pictures in pixels (default 144)"
    )
    arguments.add_argument("--val-size", type=int, default=160, help="short side of validation pictures (default 160)")
    arguments.add_argument(
        "--keep-out", type=int, default=200, metavar="N", help="dev pictures in no shard (default 200)"
    )
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
