"""Tux Paint stamps."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drawings import drawing, is_plain, on_white_square

from onepeace.datasets.layout import HeldOut, Layout, Record, Skipped, Split, option, shuffled, skipped
from onepeace.datasets.media import DuplicateFilter, read_picture, webp
from onepeace.errors import UserError


@dataclass(frozen=True)
class TuxPaint(Layout):
    """Tux Paint stamps: cut-out photographs and drawings with a description each, from the package tuxpaint-stamps.

    SOURCE is its folder of stamps: NAME.png beside NAME.txt, whose first line is the English description. Letters and
    symbols, mirrored copies and tiny pictures are left out. All of it is training data.
    """

    exclude: tuple[str, ...] = option((), "stamps to leave out ([animals/frog, food/pear])")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        stamps = sorted(folder.rglob("*.png"))
        if not stamps:
            raise UserError(f"{folder}: no .png files")
        yield Split("train/image_text/tuxpaint", self._records(folder, shuffled(stamps)), drawing)

    def _records(self, folder: Path, stamps: list[Path]) -> Iterator[Record | Skipped]:
        seen = DuplicateFilter()
        for path in stamps:
            name = path.relative_to(folder).with_suffix("").as_posix()
            text = path.with_suffix(".txt")
            if name.startswith("symbols/") or "mirror" in path.stem or name in self.exclude or not text.is_file():
                continue
            try:
                picture = read_picture(path, "RGBA")
            except OSError as error:
                yield skipped(path, error)
                continue
            caption = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip().rstrip(".!")
            if not 3 < len(caption) < 120 or min(picture.size) < 40:
                continue
            picture = on_white_square(picture, 112)
            if is_plain(picture) or seen(picture.tobytes()):
                continue
            key = "tux_" + re.sub(r"[^a-z0-9]+", "_", name.lower())
            about = {"license": "GPL-2 (package); see its own copyright notes", "category": path.parent.name}
            yield Record(key, "Tux Paint stamps", {"image": webp(picture, 80), "text": [caption]}, {}, about)


layout = TuxPaint()
