"""Draws the pictures of the page (`make readme`): a picture with words, a sound with words, and the map."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.webdriver import ActionChains
from support.browser import CHROMIUM, DRIVER, Page, chromium
from support.readme import ROOT, like_checkout

PICTURES = ROOT / ".github"
WIDTH, HEIGHT, MAP_HEIGHT = 1280, 1060, 820


@contextmanager
def served() -> Iterator[str]:
    """The address of the page over the samples of the working folder."""
    command = [sys.executable, "-m", "onepeace", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[2]  # type: ignore[union-attr]
    finally:
        process.terminate()
        process.wait()


def draw(page: Page, name: str) -> None:
    """The page with its cards."""
    page.pictures_are_there()
    page.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    save(page.driver, name)


def save(driver: Any, name: str) -> None:
    """The window as a PNG of 256 colours."""
    shot = PICTURES / name
    driver.save_screenshot(str(shot))
    with Image.open(shot) as image:
        image.convert("RGB").quantize(256).save(shot, optimize=True)


def mixed(driver: Any, address: str, folder: Path, where: str, file: str, words: str) -> Page:
    page = Page(driver, address)
    page.upload(where, folder / file)
    page.search(words)
    return page


def draw_map(driver: Any, address: str, over: str) -> None:
    """The map with the mouse over a file."""
    driver.set_window_size(WIDTH, MAP_HEIGHT)
    driver.get(f"{address}/map")
    canvas = driver.find_element("id", "map")
    data = json.loads(driver.execute_script("return document.getElementById('data').textContent"))
    x, y = next(point[:2] for point in data["points"] if point[3] == over)
    size = canvas.size
    place = ((0.92 * x - 0.46) * size["width"], (0.92 * y - 0.46) * size["height"])
    ActionChains(driver).move_to_element_with_offset(canvas, *map(round, place)).perform()
    driver.execute_async_script("setTimeout(arguments[0], 1000)")  # pictures are decoded one by one
    save(driver, "map.png")


def main() -> None:
    if not (CHROMIUM and DRIVER):
        print("no chromium and chromedriver: the pictures of the page stay as they are", file=sys.stderr)
        return
    samples = ROOT / "data" / "samples"
    with tempfile.TemporaryDirectory() as temporary, like_checkout(Path(temporary)), served() as address:
        with chromium(Path(temporary, "profile"), WIDTH, HEIGHT) as driver:
            page = mixed(driver, address, samples, "#picture", "images/horses.jpg", "waves on the beach")
            draw(page, "serve.png")
            page = mixed(driver, address, samples, "#sound", "sounds/dog.ogg", "in the woods")
            draw(page, "serve-sound.png")
            draw_map(driver, address, "sea.ogg")


if __name__ == "__main__":
    main()
