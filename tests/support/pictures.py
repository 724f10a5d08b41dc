"""Draws the pictures of docs/ (`make readme`): the page, heat maps of explanations, samples with their captions."""

import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from support.browser import CHROMIUM, DRIVER, Page, chromium, window
from support.readme import ROOT, like_checkout

PICTURES = ROOT / "docs" / "pictures"
SAMPLES = ROOT / "data" / "samples"
WIDTH, HEIGHT = 1280, 900
"""Of the window."""
ROW = 300
"""Height of pictures side by side."""
MAP_IS_DRAWN = """
const { map } = document.querySelector("#plane"), images = map?.points.map(({ image }) => image).filter(Boolean) ?? [];
const loaded = images.length > 0 && images.every((image) => image.complete && image.naturalWidth > 0);
if (loaded) map.draw();
return loaded;
"""
"""Script that draws the map once all its thumbnails are loaded, and returns whether it did."""


@contextmanager
def served() -> Iterator[str]:
    """The address of the page over the samples of the working folder."""
    command = [sys.executable, "-m", "onepeace", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[2].rstrip(";")  # type: ignore[union-attr]
    finally:
        process.terminate()
        process.wait()


def save(page: Page, name: str) -> None:
    """Save the window as a PNG of 256 colours, once its pictures are loaded and its transitions have ended."""
    page.pictures_are_there()
    page.script("document.activeElement.blur(); scrollTo(0, 0)")
    page.wait(lambda: page.script("return document.getAnimations().length === 0"))
    shot = PICTURES / name
    page.driver.save_screenshot(str(shot))
    with Image.open(shot) as image:
        image.convert("RGB").quantize(256).save(shot, optimize=True)


def screenshots() -> None:
    """The page: a picture with words, a sound with words, and the map."""
    if not (CHROMIUM and DRIVER):
        print("no chromium and chromedriver: the pictures of the page stay as they are", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as temporary, like_checkout(Path(temporary)), served() as address:
        with chromium(Path(temporary, "profile"), WIDTH, HEIGHT) as driver:
            window(driver, WIDTH, HEIGHT)
            page = Page(driver, address)
            page.give(SAMPLES / "images" / "horses.jpg")
            page.search("waves on the beach")
            save(page, "serve.png")
            page = Page(driver, address)
            page.give(SAMPLES / "sounds" / "dog.ogg", "sound")
            page.search("in the woods")
            save(page, "serve-sound.png")
            page = Page(driver, address)
            page.one("#map").click()
            page.wait(lambda: page.script(MAP_IS_DRAWN))
            save(page, "map.png")


def run(*command: str) -> str:
    """What a command of the project prints."""
    return subprocess.run(
        [sys.executable, "-m", "onepeace", *command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def side_by_side(pictures: list[Path], name: str) -> None:
    """Pictures of one height in a row, as a PNG of 256 colours."""
    found = [Image.open(path).convert("RGB") for path in pictures]
    scaled = [one.resize((one.width * ROW // one.height, ROW), Image.Resampling.LANCZOS) for one in found]
    row = Image.new("RGB", (sum(one.width for one in scaled) + 8 * (len(scaled) - 1), ROW), "white")
    left = 0
    for one in scaled:
        row.paste(one, (left, 0))
        left += one.width + 8
    row.quantize(256).save(PICTURES / name, optimize=True)


def explained(folder: Path) -> None:
    """A phrase over a picture, and over the time line of a sound."""
    dog, bells = folder / "dog.jpg.png", folder / "church_bells.ogg.png"
    for file, text in (("images/dog.jpg", "a dog"), ("sounds/church_bells.ogg", "church bells ringing")):
        run("explain", str(SAMPLES / file), "--text", text, "--draw", str(folder))
    side_by_side([dog, bells], "explain.png")


def captioned() -> None:
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


if __name__ == "__main__":
    screenshots()
    with tempfile.TemporaryDirectory() as temporary:
        explained(Path(temporary))
    captioned()
