"""Screenshots of the web page, and the time to its first paint.

``python docs/results/page.py`` writes docs/results/page-*.webp. The files are those of
data/samples, in folders and with dates, cameras and keywords made up for the purpose. Needs the extra `test`, chromium
and chromedriver.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base

from onepeace.index import build

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import Page, chromium, window  # noqa: E402
from support.samples import FOLDER, rows, sample  # noqa: E402

RESULTS = ROOT / "docs" / "results"
CAMERAS = ("X100V", "EOS R6", "Pixel 8")
KEYWORDS = {
    "sea": "beach;waves",
    "gull": "beach;bird",
    "dog": "dog;forest",
    "cat": "pet",
    "owl": "bird",
    "bird": "bird",
}
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag>{}</rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta>"""
"""The keywords of a picture."""
LOADS = 9
NARROW, WIDE = 390, 1280


def make_library(folder: Path) -> None:
    """Write the samples in folders by year, with dates, cameras and keywords."""
    subjects = {row["file"]: row["subject"] for row in rows()}
    for i, path in enumerate(sorted((FOLDER / "images").iterdir())):
        subject = subjects[f"images/{path.name}"]
        date = datetime(2022 + i % 3, 1 + 5 * i % 12, 1 + i, 12)
        exif = Image.Exif()
        exif[Base.Model] = CAMERAS[i % 3]
        exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = date.strftime("%Y:%m:%d %H:%M:%S")
        keywords = "".join(f"<rdf:li>{word}</rdf:li>" for word in KEYWORDS.get(subject, subject).split(";"))
        target = folder / str(date.year) / ("holidays" if i % 2 else "at home") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target, exif=exif, xmp=XMP.format(keywords).encode(), quality=92)
    (folder / "sounds").mkdir()
    for i, path in enumerate(sorted((FOLDER / "sounds").iterdir())):
        target = Path(shutil.copy(path, folder / "sounds"))
        date = datetime(2022 + i % 3, 1 + i % 12, 15)
        os.utime(target, (date.timestamp(), date.timestamp()))


@contextmanager
def serving(index: Path) -> Iterator[str]:
    """Address of a server of an index."""
    command = [sys.executable, "-m", "onepeace", "serve", str(index), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 (our own command)
    try:
        yield server.stdout.readline().split()[2].rstrip(";")
    finally:
        server.terminate()
        server.wait()


def take(page: Page, name: str) -> None:
    """Write a screenshot as docs/results/page-NAME.webp."""
    page.pictures_are_there()
    page.driver.execute_async_script("setTimeout(arguments[0], 1500)")  # until nothing moves any more
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        page.driver.save_screenshot(file.name)
        Image.open(file.name).convert("RGB").save(RESULTS / f"page-{name}.webp", quality=70, method=6)


def take_hits(driver: Any, address: str) -> None:
    """Hits of a search, wide and narrow, light and dark."""
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        for suffix, dark in (("", False), ("-dark", True)):
            window(driver, width, dark=dark)
            page = Page(driver, address)
            page.search("a bird")
            page.script("document.querySelector('#words').blur()")
            take(page, f"{name}{suffix}")


def take_views(driver: Any, address: str) -> None:
    """The box, the chips, several files as a query, an opened picture, and the map."""
    window(driver, WIDE, 700)
    page = Page(driver, address)
    page.answer_to(lambda: page.one("#words").send_keys("IMG_04"))
    page.one("#names li")
    take(page, "box")
    page = Page(driver, address)
    page.search("a bird")
    page.answer_to(page.all("#timeline button:enabled")[-2].click)
    page.answer_to(page.one("#active button").click)
    page.one("#values [data-field=camera] summary").click()
    page.answer_to(page.one("#values [data-field=camera] div button").click)
    page.one("#values [data-field=keyword] summary").click()
    take(page, "chips")
    page = Page(driver, address)
    page.give(sample("images/horses.jpg"))
    page.search("waves")
    take(page, "files")
    page = Page(driver, address)
    page.search("a sunflower")
    page.one(".tile").click()
    take(page, "opened")
    page = Page(driver, address)
    page.one("#map").click()
    page.one("#plane canvas")
    take(page, "map")


def milliseconds_to_paint(driver: Any, address: str, width: int) -> float:
    """Median time from the request of the page to its first paint."""
    window(driver, width)
    times = []
    for _ in range(LOADS):
        page = Page(driver, address)
        times.append(page.script("return performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        library = Path(temporary, "Pictures")
        make_library(library)
        index = Path(temporary, "index")
        build(index, [library], "tiny", progress=False)
        with serving(index) as address, chromium(Path(temporary, "profile")) as driver:
            take_hits(driver, address)
            take_views(driver, address)
            for width in (WIDE, NARROW):
                print(f"first paint at {width} pixels: {milliseconds_to_paint(driver, address, width):.0f} ms")


if __name__ == "__main__":
    main()
