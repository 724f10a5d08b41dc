"""Emoji, drawn by several hands."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onepeace.datasets.layout import HeldOut, Layout, Record, Skipped, Split, option, shuffled, skipped
from onepeace.datasets.pictures import Seen, drawing, on_white_square, open_picture, webp
from onepeace.datasets.reading import read_json, read_lines
from onepeace.errors import UserError

SIZE = 96
LICENSES = {
    "noto": "Apache 2.0",
    "twemoji": "CC BY 4.0",
    "openmoji": "CC BY-SA 4.0",
    "fluent-emoji": "MIT",
    "fluent-emoji-flat": "MIT",
    "emojione": "CC BY 4.0",
    "noto-v1": "Apache 2.0",
}
"""The drawing sets, and their licences where the package does not say."""
VAL_SETS = ("noto", "twemoji", "fluent-emoji")


Drawing = tuple[str, str, str, str, Callable[[], Any]]
"""Code points as in `_code`, drawing set, licence, place for messages, and what gives the RGBA picture."""


@dataclass(frozen=True)
class Emoji(Layout):
    """Emoji: drawings of one idea in several styles with its Unicode name.

    SOURCE holds, at any depth, the unpacked npm packages
      emojibase-data                        en/data.json: names and keywords
      @iconify-json/noto, .../twemoji, ...  icons.json, info.json and mostly chars.json: one drawing set each
    The drawings are SVG; drawing them needs: pip install resvg-py. Folders of PNG files work without it:
      png=[noto=noto-emoji/png/128,twemoji=twemoji/assets/72x72]

    The split is by code point, hence by name, across all drawing sets: the 275 of onepeace/datasets/emoji_val.txt are
    validation data (drawings of noto, twemoji and fluent-emoji), all others training data. Flags, keycaps, skin tones,
    gender variants and names with a colon are left out.
    """

    family = "emoji"
    png: tuple[str, ...] = option((), "folders of PNG files by drawing set, [NAME=FOLDER, ...]")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        words = _names(folder)
        apart = dict(line.split("\t") for _, line in read_lines(Path(__file__).with_name("emoji_val.txt")))
        apart_names = {*apart.values()}
        drawings = [*_iconify(folder), *(drawing for text in self.png for drawing in _png(text))]
        drawings = [drawing for drawing in drawings if drawing[0] in words]
        if not drawings:
            raise UserError(f"{folder}: no drawing set (icons.json beside info.json), and no png=[NAME=FOLDER]")
        drawings = shuffled(sorted(drawings, key=lambda drawing: drawing[:2]))
        seen = Seen()

        def records(validation: bool) -> Iterator[Record | Skipped]:
            for code, name, license, where, draw in drawings:
                label, keywords = words[code]
                # by name too: a later Unicode version may use a name again
                if (code in apart or label in apart_names) != validation or (validation and name not in VAL_SETS):
                    continue
                try:
                    picture = on_white_square(draw(), SIZE)
                except (OSError, ValueError) as error:
                    yield skipped(where, error)
                    continue
                if seen(picture.tobytes()):
                    continue
                captions = [label] if validation else [label, f"a drawing of {label}", f"{label}, an emoji"]
                if keywords:
                    captions.append(f"{label}: {', '.join(keywords[:3])}")
                about = {"license": license, "hexcode": code, "name": label}
                inputs = {"image": webp(picture, 80), "text": captions}
                yield Record(f"emoji_{name.replace('-', '_')}_{code}", f"emoji drawing set {name}", inputs, {}, about)

        yield Split("val/emoji/emoji", records(True), drawing)
        yield Split("train/image_text/emoji", records(False), drawing)

    def group(self, record: Record) -> tuple[str, str]:
        return "emoji", record.about["name"]


def _names(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Name and further keywords by code."""
    found = sorted(folder.rglob("en/data.json"))
    if not found:
        raise UserError(f"{folder}: no en/data.json of the npm package emojibase-data")
    names = {}
    for i, entry in enumerate(read_json(found[0])):
        try:
            code, label = entry["hexcode"], entry["label"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{found[0]}: entry {i} has no hexcode and label: {entry!r}") from error
        # group 2: parts such as skin tones, 9: flags; 264x behind a joiner: gender
        if entry.get("group") in (None, 2, 9) or re.search("200D-264[02]", code) or ":" in label or "keycap" in label:
            continue
        names[_code(code)] = (label, [tag for tag in entry.get("tags", []) if tag.lower() not in label.lower()])
    return names


def _code(text: str) -> str:
    """Code points in one spelling: 1F468-200D-1F373, emoji_u1f468_200d_1f373 are both 1f468-1f373."""
    return re.sub("-fe0f|-200d", "", text.lower().removeprefix("emoji_u").replace("_", "-"))


def _iconify(folder: Path) -> list[Drawing]:
    sets: dict[str, tuple[Path, Any, dict[str, str]]] = {}
    for path in sorted(folder.rglob("icons.json")):
        icons, table = read_json(path), path.with_name("chars.json")
        if icons.get("prefix") in LICENSES:
            sets[icons["prefix"]] = (path, icons, read_json(table) if table.exists() else {})
    # Sets without a table of code points use the same icon names as the others.
    named: dict[str, str] = {}
    for _, _, chars in sets.values():
        for code, name in chars.items():
            named.setdefault(name, _code(code))
    drawings: list[Drawing] = []
    for prefix, (path, icons, chars) in sets.items():
        info = path.with_name("info.json")
        license = read_json(info)["license"]["title"] if info.exists() else LICENSES[prefix]
        codes = {_code(code): name for code, name in chars.items()}
        for code, name in (codes or {named[name]: name for name in icons["icons"] if name in named}).items():
            icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
            if icon is not None:
                size = [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
                draw = partial(_draw_svg, icon["body"], *size)
                drawings.append((code, prefix, license, f"{path}: {name}", draw))
    return drawings


def _draw_svg(body: str, width: float, height: float) -> Any:
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("drawing SVG needs resvg-py: pip install resvg-py (or give png=[NAME=FOLDER])") from error

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
    return open_picture(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE)), "RGBA")


def _png(text: str) -> list[Drawing]:
    name, _, folder = text.partition("=")
    if name not in LICENSES or not Path(folder).is_dir():
        raise UserError(f"png {text}: expected NAME=FOLDER, with NAME one of {', '.join(LICENSES)}")
    return [
        (_code(path.stem), name, LICENSES[name], str(path), partial(open_picture, path, "RGBA"))
        for path in sorted(Path(folder).glob("*.png"))
    ]
