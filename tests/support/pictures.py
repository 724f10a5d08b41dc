"""Draws the pictures of docs/ (`make readme`): the page, heat maps of explanations, samples with their captions."""

import json
import math
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from support.browser import CHROMIUM, DRIVER, Page, chromium, window
from support.readme import ROOT, like_checkout
from support.samples import FOLDER, sample

PICTURES = ROOT / "docs" / "pictures"
WIDTH = 1280
HEIGHT = 900
"""Size of the window."""
ONE_ROW = 452
"""Height of the page with one row of hits."""
GAP = 8
"""Pixels between two pictures."""
ROW = 300
"""Height of pictures side by side."""
COLUMNS = 6
"""Columns of pictures with their captions."""
TEXT_COLUMNS = 3
"""Columns of captions of sounds."""
TILE_WIDTH = 200
PICTURE_HEIGHT = 150
LINE = 17
"""Height of a line of text."""
TILE_HEIGHT = PICTURE_HEIGHT + 3 * LINE + GAP
TEXT_ROW = LINE + 4
FONT = ImageFont.load_default(13)
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
        save_quantized(image.convert("RGB"), name)


def screenshots() -> None:
    """The page with a query whose first row of hits is right, and the map."""
    if not (CHROMIUM and DRIVER):
        print(
            "no chromium and chromedriver: the pictures of the page stay as they are",
            file=sys.stderr,
        )
        return
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(like_checkout(temporary))
        address = stack.enter_context(served())
        driver = stack.enter_context(chromium(temporary / "profile", WIDTH, HEIGHT))
        window(driver, WIDTH, HEIGHT)

        window(driver, WIDTH, ONE_ROW)
        page = Page(driver, address)
        page.search("a bird")
        save(page, "serve.png")
        window(driver, WIDTH, HEIGHT)

        page = Page(driver, address)
        page.one("#map").click()
        page.wait(lambda: page.script(MAP_IS_DRAWN))
        save(page, "map.png")


def run(*command: str) -> str:
    """What a command of the project prints."""
    arguments = [sys.executable, "-m", "onepeace", *command]
    return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout


def save_quantized(image: Image.Image, name: str) -> None:
    """Save a PNG of 256 colours."""
    image.quantize(256).save(PICTURES / name, optimize=True)


def side_by_side(paths: list[Path], name: str) -> None:
    """Pictures of one height in a row."""
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        size = (image.width * ROW // image.height, ROW)
        images.append(image.resize(size, Image.Resampling.LANCZOS))
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    row = Image.new("RGB", (width, ROW), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    save_quantized(row, name)


def explained(folder: Path) -> None:
    """A phrase over a picture, and over the time line of a sound."""
    phrases = {
        "images/dog.jpg": "a dog",
        "sounds/church_bells.ogg": "church bells ringing",
    }
    drawn = []
    for name, text in phrases.items():
        file = sample(name)
        run("explain", str(file), "--text", text, "--draw", str(folder))
        drawn.append(folder / f"{file.name}.png")
    side_by_side(drawn, "explain.png")


def captioned() -> None:
    """What the bundled captioner writes of every sample, good and bad: nothing is picked."""
    pictures = []
    sounds = []
    for line in run("caption", str(FOLDER), "--json").splitlines():
        item = json.loads(line)
        if item["path"].endswith(".ogg"):
            sounds.append(item)
        else:
            pictures.append(item)
    pictures_height = math.ceil(len(pictures) / COLUMNS) * TILE_HEIGHT
    num_text_rows = math.ceil(len(sounds) / TEXT_COLUMNS)
    height = pictures_height + num_text_rows * TEXT_ROW + 12
    page = Image.new("RGB", (COLUMNS * (TILE_WIDTH + GAP), height), "white")
    for number, item in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        draw_picture(page, item, column * (TILE_WIDTH + GAP), row * TILE_HEIGHT)
    draw = ImageDraw.Draw(page)
    for number, item in enumerate(sounds):
        column, row = divmod(number, num_text_rows)
        text = f"{Path(item['path']).name}: {item['caption']}"
        left = column * page.width // TEXT_COLUMNS
        draw.text((left, pictures_height + 8 + row * TEXT_ROW), text, "black", FONT)
    save_quantized(page, "captions.png")


def draw_picture(page: Image.Image, item: dict[str, str], left: int, top: int) -> None:
    """Draw a picture with its caption below it."""
    image = Image.open(item["path"]).convert("RGB")
    image.thumbnail((TILE_WIDTH, PICTURE_HEIGHT), Image.Resampling.LANCZOS)
    page.paste(image, (left, top))
    caption = textwrap.fill(item["caption"], 30)
    ImageDraw.Draw(page).text((left, top + PICTURE_HEIGHT + 2), caption, "black", FONT)


if __name__ == "__main__":
    screenshots()
    with tempfile.TemporaryDirectory() as temporary:
        explained(Path(temporary))
    captioned()
