"""Emoji of several drawing sets with their Unicode names."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drawings import drawing, on_white_square

from onepeace.datasets.layout import HeldOut, Layout, Record, Skipped, Split, shuffled, skipped
from onepeace.datasets.media import DuplicateFilter, read_picture, webp
from onepeace.datasets.reading import read_json, read_lines
from onepeace.errors import UserError

HERE = Path(__file__).parent
EMOJI_SIZE = 96
LICENSES = {
    "noto": "Apache 2.0",
    "twemoji": "CC BY 4.0",
    "openmoji": "CC BY-SA 4.0",
    "fluent-emoji": "MIT",
    "fluent-emoji-flat": "MIT",
    "emojione": "CC BY 4.0",
    "noto-v1": "Apache 2.0",
}
"""Drawing sets, and their licences if the package does not state them."""
VAL_SETS = ("noto", "twemoji", "fluent-emoji")
Drawing = tuple[str, str, str, str, Callable[[], Any]]
"""Code points as in `_code`, drawing set, licence, place for messages, and a function that draws the RGBA picture."""


@dataclass(frozen=True)
class Emoji(Layout):
    """Emoji: drawings of one idea in several styles with its Unicode name.

    SOURCE holds, at any depth, the unpacked npm packages
      emojibase-data                        en/data.json: names and keywords
      @iconify-json/noto, .../twemoji, ...  icons.json, info.json and mostly chars.json: one drawing set each
    The drawings are SVG; drawing them needs: pip install resvg-py.

    The split is by code point, hence by name, across all drawing sets: the 275 of emoji_val.txt are validation
    data (drawings of noto, twemoji and fluent-emoji), all others training data. Flags, keycaps, skin tones, gender
    variants and names with a colon are left out.
    """

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        words = _names(folder)
        apart = dict(line.split("\t") for _, line in read_lines(HERE / "emoji_val.txt"))
        apart_names = {*apart.values()}
        drawings = [drawing for drawing in _iconify(folder) if drawing[0] in words]
        if not drawings:
            raise UserError(f"{folder}: no drawing set (icons.json beside info.json)")
        drawings = shuffled(sorted(drawings, key=lambda drawing: drawing[:2]))
        seen = DuplicateFilter()

        def records(validation: bool) -> Iterator[Record | Skipped]:
            for code, name, license, where, draw in drawings:
                label, keywords = words[code]
                # by name too: a later Unicode version may reuse a name
                if (code in apart or label in apart_names) != validation or (validation and name not in VAL_SETS):
                    continue
                try:
                    picture = on_white_square(draw(), EMOJI_SIZE)
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
        # group 2: parts such as skin tones, 9: flags; 264x after a joiner: gender
        if entry.get("group") in (None, 2, 9) or re.search("200D-264[02]", code) or ":" in label or "keycap" in label:
            continue
        names[_code(code)] = (label, [tag for tag in entry.get("tags", []) if tag.lower() not in label.lower()])
    return names


def _code(text: str) -> str:
    """Code points in one spelling, without joiners: 1F468-200D-1F373 is 1f468-1f373."""
    return re.sub("-fe0f|-200d", "", text.lower())


def _iconify(folder: Path) -> list[Drawing]:
    sets: dict[str, tuple[Path, Any, dict[str, str]]] = {}
    for path in sorted(folder.rglob("icons.json")):
        icons, table = read_json(path), path.with_name("chars.json")
        if icons.get("prefix") in LICENSES:
            sets[icons["prefix"]] = (path, icons, read_json(table) if table.exists() else {})
    # Sets without a table of code points use the same icon names as other sets.
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
        raise UserError("drawing SVG needs resvg-py: pip install resvg-py") from error

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
    return read_picture(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=EMOJI_SIZE)), "RGBA")


layout = Emoji()
