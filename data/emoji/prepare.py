#!/usr/bin/env python3
"""Emoji: drawings of one idea in several styles with its Unicode name.

SOURCE holds, at any depth, the unpacked npm packages
    emojibase-data                        en/data.json: names and keywords
    @iconify-json/noto, .../twemoji, ...  icons.json, info.json and mostly chars.json: one drawing set each
The drawings are SVG; drawing them needs: pip install resvg-py. Folders of PNG files work without it:
    --png noto=noto-emoji/png/128 --png twemoji=twemoji/assets/72x72

The split is by code point, hence by name, across all drawing sets: the 275 of val.txt are validation data (drawings of
noto, twemoji and fluent-emoji), all others training data. Flags, keycaps, skin tones, gender variants and names with a
colon are left out.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import (
    Seen,
    SetWriter,
    on_white_square,
    open_picture,
    parser,
    read_json,
    read_lines,
    run,
    shuffled,
    webp,
)

from onepeace.errors import UserError

SIZE = 96
SETS = ("noto", "twemoji", "openmoji", "fluent-emoji", "fluent-emoji-flat", "emojione", "noto-v1")
VAL_SETS = ("noto", "twemoji", "fluent-emoji")
LICENSES = {
    "noto": "Apache 2.0",
    "noto-v1": "Apache 2.0",
    "twemoji": "CC BY 4.0",
    "emojione": "CC BY 4.0",
    "openmoji": "CC BY-SA 4.0",
    "fluent-emoji": "MIT",
    "fluent-emoji-flat": "MIT",
}


class Drawing(NamedTuple):
    """One drawing of a set."""

    code: str
    """Code points as in `_code`."""
    set: str
    license: str
    where: str
    """For messages."""
    draw: Callable[[], Any]
    """Gives the RGBA picture."""


def build(args: argparse.Namespace) -> None:
    """Write the shards of both splits."""
    words = _names(args.source)
    held_out = dict(line.split("\t") for _, line in read_lines(Path(__file__).with_name("val.txt")))
    held_out_names = {*held_out.values()}
    drawings = [*_iconify(args.source), *(drawing for text in args.png for drawing in _png(text))]
    drawings = [drawing for drawing in drawings if drawing.code in words]
    if not drawings:
        raise UserError(f"{args.source}: no drawing set (icons.json beside info.json), and no --png folder with emoji")
    drawings = shuffled(sorted(drawings, key=lambda drawing: drawing[:2]))
    new = Seen()

    def write(folder: Path, validation: bool) -> None:
        with SetWriter(folder, "emoji") as writer:
            for code, name, license, where, draw in drawings:
                label, keywords = words[code]
                # by name too: a later Unicode version may use a name again
                if (code in held_out or label in held_out_names) != validation or (validation and name not in VAL_SETS):
                    continue
                try:
                    picture = on_white_square(draw(), SIZE)
                except (OSError, ValueError) as error:
                    writer.skip(where, error)
                    continue
                if not new(picture.tobytes()):
                    continue
                captions = [label] if validation else [label, f"a drawing of {label}", f"{label}, an emoji"]
                if keywords:
                    captions.append(f"{label}: {', '.join(keywords[:3])}")
                key = f"emoji_{name.replace('-', '_')}_{code}"
                source = f"emoji drawing set {name}"
                writer.add(
                    key, "webp", webp(picture, 80), captions, source=source, license=license, hexcode=code, name=label
                )

    write(args.out / "val/emoji", True)
    write(args.out / "train/image_text", False)


def _names(source: Path) -> dict[str, tuple[str, list[str]]]:
    """Name and further keywords by code."""
    found = sorted(source.rglob("en/data.json"))
    if not found:
        raise UserError(f"{source}: no en/data.json of the npm package emojibase-data")
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


def _iconify(source: Path) -> list[Drawing]:
    sets = {}
    for path in sorted(source.rglob("icons.json")):
        icons = read_json(path)
        chars = path.with_name("chars.json")
        if icons.get("prefix") in SETS:
            sets[icons["prefix"]] = (path, icons, read_json(chars) if chars.exists() else {})
    # Sets without a table of code points use the same icon names as the others.
    named: dict[str, str] = {}
    for _, _, chars in sets.values():
        for code, name in chars.items():
            named.setdefault(name, _code(code))
    drawings = []
    for prefix, (path, icons, chars) in sets.items():
        info = path.with_name("info.json")
        license = read_json(info)["license"]["title"] if info.exists() else LICENSES[prefix]
        codes = {_code(code): name for code, name in chars.items()}
        for code, name in (codes or {named[name]: name for name in icons["icons"] if name in named}).items():
            icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
            if icon is not None:
                size = [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
                draw = _drawer(icon["body"], *size)
                drawings.append(Drawing(code, prefix, license, f"{path}: {name}", draw))
    return drawings


def _drawer(body: str, width: float, height: float) -> Callable[[], Any]:
    def draw() -> Any:
        try:
            import resvg_py
        except ImportError as error:
            raise UserError("drawing SVG needs resvg-py: pip install resvg-py (or give --png folders)") from error

        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{body}</svg>'
        )
        return open_picture(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE)), "RGBA")

    return draw


def _png(text: str) -> list[Drawing]:
    name, _, folder = text.partition("=")
    if name not in LICENSES or not Path(folder).is_dir():
        raise UserError(f"--png {text}: expected NAME=FOLDER, with NAME one of {', '.join(LICENSES)}")
    return [
        Drawing(_code(path.stem), name, LICENSES[name], str(path), lambda path=path: open_picture(path, "RGBA"))
        for path in sorted(Path(folder).glob("*.png"))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--png", action="append", default=[], metavar="NAME=FOLDER", help="PNG files of a drawing set"
    )
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
