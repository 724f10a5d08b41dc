"""Open Clip Art: drawings in the public domain."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from drawings import drawing, is_plain, on_white_square

from onepeace.datasets.layout import HeldOut, Layout, Record, Skipped, Split, shuffled, skipped
from onepeace.datasets.media import DuplicateFilter, read_picture, webp
from onepeace.datasets.reading import read_lines
from onepeace.errors import UserError

HERE = Path(__file__).parent
CLIPART_SIZE = 128
UNWANTED = re.compile(
    "/(icons|stars|flags|map_symbols|gradients|patterns|roadsigns|buttons|led|aiga-symbols|duplicates|cards|unsorted|"
    "arrows|templates|logos|banners)/|/computer/"
)
SAYS_NOTHING = re.compile("cartoon|simple|image|drawing|new|icon|the|no|misc|untitled")


@dataclass(frozen=True)
class OpenClipart(Layout):
    """Open Clip Art: drawings in the public domain, from Debian's package openclipart-png.

    SOURCE is its folder of PNG files (usr/share/openclipart/png). The title comes from the file name, which mostly is
    title_author_01.png; a tail that follows several titles is taken for an author and dropped. Icons, flags, signs,
    patterns and the like are left out. The split is by title: those of openclipart_val.txt are validation data,
    one drawing each.
    """

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        found = sorted(folder.rglob("*.png"))
        paths = [path for path in found if not UNWANTED.search(f"/{path.relative_to(folder).as_posix()}")]
        titled = shuffled((title, path) for path, title in zip(paths, _titles(paths), strict=True) if title)
        if not titled:
            raise UserError(f"{folder}: no .png files with a title in their name")
        apart = {line for _, line in read_lines(HERE / "openclipart_val.txt")}
        seen, numbers = DuplicateFilter(), count(1)

        def records(validation: bool) -> Iterator[Record | Skipped]:
            done: set[str] = set()
            for title, path in titled:
                if (title in apart) != validation or (validation and title in done):
                    continue
                try:
                    picture = read_picture(path, "RGBA")
                except OSError as error:
                    yield skipped(path, error)
                    continue
                small = min(picture.size) * min(1, CLIPART_SIZE / max(picture.size)) < 24
                picture = on_white_square(picture, CLIPART_SIZE)
                if small or is_plain(picture) or seen(picture.tobytes()):
                    continue
                done.add(title)
                category = re.sub("[_-]", " ", path.parent.name)
                captions = [title] if validation else [title, f"a drawing of {title}", f"{title} ({category})"]
                key = f"oca_{next(numbers):05d}_{re.sub('[^a-z0-9]+', '_', title)[:40]}"
                about = {"license": "CC0 / public domain", "category": category}
                yield Record(key, "openclipart", {"image": webp(picture, 78), "text": captions}, {}, about)

        yield Split("val/openclipart/openclipart", records(True), drawing)
        yield Split("train/image_text/openclipart", records(False), drawing)


def _titles(paths: Sequence[Path]) -> list[str | None]:
    """Title of each file, None if its name is not descriptive."""
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


layout = OpenClipart()
