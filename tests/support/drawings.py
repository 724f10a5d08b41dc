"""Draws heat maps of explanations, and all samples with their captions (`make readme`)."""

import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from support.readme import ROOT, like_checkout

PICTURES = ROOT / "docs" / "pictures"
SAMPLES = ROOT / "data" / "samples"
HEIGHT = 300


def run(*command: str) -> str:
    """What a command of the project prints."""
    return subprocess.run(
        [sys.executable, "-m", "onepeace", *command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def side_by_side(pictures: list[Path], name: str) -> None:
    """Pictures of one height in a row, as a PNG of 256 colours."""
    found = [Image.open(path).convert("RGB") for path in pictures]
    scaled = [one.resize((one.width * HEIGHT // one.height, HEIGHT), Image.Resampling.LANCZOS) for one in found]
    row = Image.new("RGB", (sum(one.width for one in scaled) + 8 * (len(scaled) - 1), HEIGHT), "white")
    left = 0
    for one in scaled:
        row.paste(one, (left, 0))
        left += one.width + 8
    row.quantize(256).save(PICTURES / name, optimize=True)


def explained(folder: Path) -> None:
    """A phrase over a picture, and over the time line of a sound."""
    dog, bells = folder / "dog.png", folder / "bells.png"
    run("explain", str(SAMPLES / "images/dog.jpg"), "--text", "a dog", "-o", str(dog))
    run("explain", str(SAMPLES / "sounds/church_bells.ogg"), "--text", "church bells ringing", "-o", str(bells))
    side_by_side([dog, bells], "explain.png")


def captioned(_: Path) -> None:
    """What the bundled captioner writes of every sample, good and bad: nothing is picked."""
    found = [json.loads(line) for line in run("caption", str(SAMPLES), "--json").splitlines()]
    pictures = [one for one in found if not one["path"].endswith(".ogg")]
    sounds = [one for one in found if one["path"].endswith(".ogg")]
    columns, width, height, line = 6, 200, 150, 17
    tile = height + 3 * line + 8
    rows, text_rows = -(-len(pictures) // columns), -(-len(sounds) // 3)
    page = Image.new("RGB", (columns * (width + 8), rows * tile + text_rows * (line + 4) + 12), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, one in enumerate(pictures):
        left, top = i % columns * (width + 8), i // columns * tile
        picture = Image.open(one["path"]).convert("RGB")
        picture.thumbnail((width, height), Image.Resampling.LANCZOS)
        page.paste(picture, (left, top))
        draw.text((left, top + height + 2), textwrap.fill(one["caption"], 30), "black", font)
    for i, one in enumerate(sounds):
        place = (i // text_rows * page.width // 3, rows * tile + 8 + i % text_rows * (line + 4))
        draw.text(place, f"{Path(one['path']).name}: {one['caption']}", "black", font)
    page.quantize(256).save(PICTURES / "captions.png", optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, like_checkout(Path(temporary)) as folder:
        explained(folder)
        captioned(folder)


if __name__ == "__main__":
    main()
