#!/usr/bin/env python3
"""Open Clip Art: drawings in the public domain, from Debian's package openclipart-png.

SOURCE is its folder of PNG files (usr/share/openclipart/png). The title comes from the file name, which mostly is
title_author_01.png; a tail that follows several titles is taken for an author and dropped. Icons, flags, signs,
patterns and the like are left out. The split is by title: those of val.txt are validation data, one drawing each.
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
    is_plain,
    on_white_square,
    open_picture,
    parser,
    read_lines,
    run,
    shuffled,
    webp,
)

from onepeace.errors import UserError

SIZE = 128
UNWANTED = re.compile(
    "/(icons|stars|flags|map_symbols|gradients|patterns|roadsigns|buttons|led|aiga-symbols|duplicates|cards|unsorted|"
    "arrows|templates|logos|banners)/|/computer/"
)
SAYS_NOTHING = re.compile("cartoon|simple|image|drawing|new|icon|the|no|misc|untitled")


def build(args: argparse.Namespace) -> None:
    """Write the shards of both splits."""
    paths = [
        path
        for path in sorted(args.source.rglob("*.png"))
        if not UNWANTED.search(f"/{path.relative_to(args.source).as_posix()}")
    ]
    titled = shuffled((title, path) for path, title in zip(paths, _titles(paths), strict=True) if title)
    if not titled:
        raise UserError(f"{args.source}: no .png files with a title in their name")
    held_out = {line for _, line in read_lines(Path(__file__).with_name("val.txt"))}
    new = Seen()
    number = 0

    def write(folder: Path, validation: bool) -> None:
        nonlocal number
        done: set[str] = set()
        with SetWriter(folder, "openclipart") as writer:
            for title, path in titled:
                if (title in held_out) != validation or (validation and title in done):
                    continue
                try:
                    picture = open_picture(path, "RGBA")
                except OSError as error:
                    writer.skip(path, error)
                    continue
                small = min(picture.size) * min(1, SIZE / max(picture.size)) < 24
                picture = on_white_square(picture, SIZE)
                if small or is_plain(picture) or not new(picture.tobytes()):
                    continue
                done.add(title)
                number += 1
                category = re.sub("[_-]", " ", path.parent.name)
                captions = [title] if validation else [title, f"a drawing of {title}", f"{title} ({category})"]
                key = f"oca_{number:05d}_{re.sub('[^a-z0-9]+', '_', title)[:40]}"
                writer.add(key, "webp", webp(picture, 78), captions, source="openclipart",
                           license="CC0 / public domain", category=category)  # fmt: skip

    write(args.out / "val/openclipart", True)
    write(args.out / "train/image_text", False)


def _titles(paths: Sequence[Path]) -> list[str | None]:
    """A title per file, None where its name says nothing."""
    names = [re.sub(r"_\d+$", "", re.sub(r"\.f?_|\.", "_", path.stem.lower())).split("_") for path in paths]
    heads: dict[str, set[str]] = {}
    for words in names:
        for i in range(1, len(words)):
            heads.setdefault("_".join(words[i:]), set()).add("_".join(words[:i]))

    def is_author(tail: str) -> bool:
        return len(tail) > 4 and len(heads[tail]) >= (2 if "_" in tail else 4)

    titles: list[str | None] = []
    for words in names:
        cut = next((i for i in range(1, len(words)) if is_author("_".join(words[i:]))), len(words))
        parts = re.split(r"[_\-\s]+", " ".join(words[:cut]))
        title = " ".join(part for part in parts if re.match("[a-z]{2,}$", part))
        titles.append(title if len(title) >= 3 and not SAYS_NOTHING.fullmatch(title) else None)
    return titles


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    return run(build, parser(__doc__), argv)


if __name__ == "__main__":
    sys.exit(main())
