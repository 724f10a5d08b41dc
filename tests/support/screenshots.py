"""Draws the pictures of the page (`make readme`): a picture with words, a sound with words, and the map."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from support.browser import CHROMIUM, DRIVER, Page, chromium, window
from support.readme import ROOT, like_checkout

PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1280, 900


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
    """The window as a PNG of 256 colours, once its pictures are there."""
    page.pictures_are_there()
    page.script("document.activeElement.blur(); scrollTo(0, 0)")
    page.driver.execute_async_script("setTimeout(arguments[0], 1000)")  # the map decodes its pictures one by one
    shot = PICTURES / name
    page.driver.save_screenshot(str(shot))
    with Image.open(shot) as image:
        image.convert("RGB").quantize(256).save(shot, optimize=True)


def main() -> None:
    if not (CHROMIUM and DRIVER):
        print("no chromium and chromedriver: the pictures of the page stay as they are", file=sys.stderr)
        return
    samples = ROOT / "data" / "samples"
    with tempfile.TemporaryDirectory() as temporary, like_checkout(Path(temporary)), served() as address:
        with chromium(Path(temporary, "profile"), WIDTH, HEIGHT) as driver:
            window(driver, WIDTH, HEIGHT)
            page = Page(driver, address)
            page.give(samples / "images" / "horses.jpg")
            page.search("waves on the beach")
            save(page, "serve.png")
            page = Page(driver, address)
            page.give(samples / "sounds" / "dog.ogg", "sound")
            page.search("in the woods")
            save(page, "serve-sound.png")
            page = Page(driver, address)
            page.one("#map").click()
            save(page, "map.png")


if __name__ == "__main__":
    main()
