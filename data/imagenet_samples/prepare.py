#!/usr/bin/env python3
"""One photograph of each of the 1,000 ImageNet classes, from github.com/EliSchwartz/imagenet-sample-images.

SOURCE is the checkout: WNID_name.JPEG files. All of it is training data. Prepare tiny_imagenet first: pictures that are
near copies of its validation pictures are left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from check import read_shard
from shardwriter import SetWriter, difference_hash, open_picture, parser, run, shrink, shuffled, webp

from onepeace.errors import UserError
from onepeace.embed.zero_shot import with_article

TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
NEAR = 4
"""Difference hashes of two pictures that differ in no more than this many of 64 bits make them near copies."""


def build(args: argparse.Namespace) -> None:
    """Write the training shards."""
    held_out = _held_out(args.out / "val/tiny_imagenet")
    pictures = sorted(args.source.glob("n*_*.JPEG"))
    if not pictures:
        raise UserError(f"{args.source}: no WNID_name.JPEG files")
    with SetWriter(args.out / "train/image_text", "imagenet_samples") as writer:
        for path in shuffled(pictures):
            try:
                picture = open_picture(path)
            except OSError as error:
                writer.skip(path, error)
                continue
            bits = difference_hash(picture)
            if any((bits ^ other).bit_count() <= NEAR for other in held_out):
                writer.skip(path, "near copy of a validation picture of tiny_imagenet")
                continue
            wnid, _, name = path.stem.partition("_")
            name = name.replace("_", " ")
            writer.add(
                f"ins_{wnid}",
                "webp",
                webp(shrink(picture, args.size), args.quality),
                [template.format(with_article(name)) for template in TEMPLATES],
                label=name,
                source="one sample image per ImageNet-1k class",
                license="ImageNet terms (research use); no licence stated",
                wnid=wnid,
            )


def _held_out(folder: Path) -> list[int]:
    shards = sorted(folder.glob("*.tar.gz"))
    if not shards:
        raise UserError(f"{folder}: no shards to compare with; run tiny_imagenet/prepare.py with the same ROOT first")
    return [difference_hash(open_picture(sample.media)) for shard in shards for sample in read_shard(shard)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    arguments.add_argument("--size", type=int, default=128, help="short side in pixels (default 128)")
    arguments.add_argument("--quality", type=int, default=78, help="WebP quality (default 78)")
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
