"""A headless Chromium, and the page of `onepeace serve` in it as a visitor sees and uses it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
PATIENCE = 300
"""Seconds until something that does not come is given up."""


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """A browser that knows nothing from before, and notes what it sends.

    Args:
        profile: a new folder for what it keeps.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        driver.set_page_load_timeout(PATIENCE)
        yield driver


class Page:
    """What a visitor sees and does."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.one(".op-card")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.wait(lambda: self.all(selector))[0]

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, PATIENCE, 0.1).until(lambda _: condition())

    def answer_to(self, action: Callable[[], Any]) -> str:
        """What is said above the hits after an action; waits until it is new."""
        self.driver.execute_script("document.querySelector('#hits [role]').dataset.old = 1")
        action()
        return self.one("#hits [role]:not([data-old])").text

    def search(self, words: str) -> str:
        field = self.one("textarea")
        field.clear()
        return self.answer_to(lambda: field.send_keys(words + Keys.ENTER))

    def upload(self, where: str, path: Path) -> str:
        return self.answer_to(lambda: self.one(f"{where} input[type=file]").send_keys(str(path)))

    def click(self, words: str) -> None:
        named = [each for each in self.all("button") if each.text.partition("\n")[0] == words]
        button = next(each for each in named if each.is_displayed())
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def hits(self) -> list[tuple[str, str | None]]:
        """(name, score) of every card."""
        cards = self.driver.execute_script(
            "return [...document.querySelectorAll('#hits .op-card')].map("
            "card => [card.querySelector('.op-name').innerText, card.querySelector('.op-score')?.innerText])"
        )
        return [tuple(card) for card in cards]

    def pictures_are_there(self) -> bool:
        """Waits until every picture of the cards is drawn, also those further down."""
        self.driver.execute_script("for (const i of document.querySelectorAll('.op-card img')) i.loading = 'eager'")
        drawn = "return [...document.querySelectorAll('.op-card img')].every(i => i.complete && i.naturalWidth > 0)"
        return self.wait(lambda: self.driver.execute_script(drawn))
