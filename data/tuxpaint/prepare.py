#!/usr/bin/env python3
"""Tux Paint stamps: cut-out photographs and drawings with a description each, from the package tuxpaint-stamps.

SOURCE is its folder of stamps: NAME.png beside NAME.txt, whose first line is the English description. Letters and
symbols, mirrored copies and tiny pictures are left out. All of it is training data.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import Seen, SetWriter, is_plain, on_white_square, open_picture, parser, run, shuffled, webp

from onepeace.errors import UserError


def build(args: argparse.Namespace) -> None:
    """Write the training shards."""
    stamps = sorted(args.source.rglob("*.png"))
    if not stamps:
        raise UserError(f"{args.source}: no .png files")
    new = Seen()
    with SetWriter(args.out / "train/image_text", "tuxpaint") as writer:
        for path in shuffled(stamps):
            name = path.relative_to(args.source).with_suffix("").as_posix()
            text = path.with_suffix(".txt")
            if name.startswith("symbols/") or "mirror" in path.stem or name in args.exclude or not text.is_file():
                continue
            try:
                picture = open_picture(path, "RGBA")
            except OSError as error:
                writer.skip(path, error)
                continue
            caption = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip().rstrip(".!")
            if not 3 < len(caption) < 120 or min(picture.size) < 40:
                continue
            picture = on_white_square(picture, 112)
            if is_plain(picture) or not new(picture.tobytes()):
                continue
            writer.add(
                "tux_" + re.sub(r"[^a-z0-9]+", "_", name.lower()),
                "webp",
                webp(picture, 80),
                [caption],
                source="Tux Paint stamps",
                license="GPL-2 (package); see its own copyright notes",
                category=path.parent.name,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--exclude",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="stamps to leave out (animals/frog)",
    )
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
