"""Writes docs/results/page.md: pictures of the page, what axe-core finds on it, and how fast it is there.

``AXE_CORE=FOLDER python -m support.page_report``; axe-core is a package of npm.
"""

import io
import os
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from support.browser import Page, chromium, window
from support.readme import ROOT, like_checkout
from support.screenshots import served

TARGET = ROOT / "docs" / "results"
AXE = Path(os.environ.get("AXE_CORE", "")) / "axe.min.js"
LOADS = 9
VIEWS = {
    "wide": (1280, 900, False),
    "wide-dark": (1280, 900, True),
    "narrow": (390, 844, False),
    "narrow-dark": (390, 844, True),
}


def shot(page: Page, name: str) -> None:
    """The window as page-NAME.webp."""
    page.pictures_are_there()
    page.script("document.activeElement.blur()")
    page.driver.execute_async_script("setTimeout(arguments[0], 1000)")
    with Image.open(io.BytesIO(page.driver.get_screenshot_as_png())) as image:
        image.convert("RGB").save(TARGET / f"page-{name}.webp", quality=60, method=6)


def violations(page: Page) -> str:
    """What axe-core finds, by impact."""
    page.script(AXE.read_text(encoding="utf-8"))
    check = "axe.run().then((found) => arguments[0](found.violations.map((each) => `${each.impact} ${each.id}`)))"
    found = Counter(page.driver.execute_async_script(check))
    return ", ".join(f"{name} {count}" for name, count in found.items()) or "nothing"


def first_paint(driver: Any, address: str) -> float:
    """Milliseconds from the start of a navigation to the first contentful paint, the median of LOADS."""
    entry, times = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime", []
    for _ in range(LOADS):
        page = Page(driver, address)
        times.append(page.wait(lambda page=page: page.script(entry)))
    return statistics.median(times)


def main() -> None:
    """Draw and measure."""
    rows, paints = [], []
    with tempfile.TemporaryDirectory() as temporary, like_checkout(Path(temporary)), served() as address:
        with chromium(Path(temporary, "profile")) as driver:
            for name, (width, height, dark) in VIEWS.items():
                window(driver, width, height, dark=dark)
                paints.append((name, first_paint(driver, address)))
                page = Page(driver, address)
                page.search("a dog")
                shot(page, name)
                found = [violations(page)]
                page.search("a sunflower")
                page.one(".tile").click()
                page.one("#viewer[open] img")
                if name == "wide":
                    shot(page, "opened")
                found.append(violations(page))
                page = Page(driver, address)
                page.one("#map").click()
                page.one("#plane canvas")
                if name == "wide":
                    shot(page, "map")
                rows.append((name, *found, violations(page)))
    lines = [
        "# The page", "",
        "Chromium beside the server, two cores of an AMD EPYC (Zen 3), over the bundled samples",
        "(`AXE_CORE=FOLDER python -m support.page_report`).", "",
        "| view | first paint, ms | axe-core: hits | a picture opened | the map |", "| --- | ---: | --- | --- | --- |",
        *(f"| {name} | {paint:.0f} | {' | '.join(found)} |"
          for (name, *found), (_, paint) in zip(rows, paints, strict=True)), "",
        *(f"![{name}](page-{name}.webp)" for name in (*VIEWS, "opened", "map")),
    ]  # fmt: skip
    (TARGET / "page.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
