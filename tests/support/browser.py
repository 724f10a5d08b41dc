"""A headless Chromium, and the page of `onepeace serve` in it as a visitor sees and uses it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
PATIENCE = 60
"""Seconds until something that does not come is given up."""


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """A browser that knows nothing from before, and notes what it sends. Its camera and microphone are made up.

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


def window(driver: Any, width: int, height: int = 900, *, dark: bool = False) -> None:
    """Set the size of what the browser shows, on a narrow screen as on a telephone, light or dark."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def hosts_asked(driver: Any) -> set[str]:
    """Hosts and ports that the browser sent requests to since this was last called."""
    urls = []
    for entry in driver.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            urls.append(urlsplit(event["params"]["request"]["url"]))
    return {url.netloc for url in urls if url.scheme in ("http", "https", "ws", "wss", "ftp")}


def complaints(driver: Any) -> list[str]:
    """Errors that the browser logged since this was last called."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


class Page:
    """The page as a visitor sees and uses it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": address, "storageTypes": "local_storage"})
        driver.get(address)
        self.one(".card")

    def script(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def value_of(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        return self.script(f"return {expression}")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        """The first such element that is shown; waits for it."""

        def first_displayed() -> Any:
            return next((element for element in self.all(selector) if element.is_displayed()), None)

        return self.wait(first_displayed, f"{selector} is shown")

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def type(self, *keys: str, into: str | None = None) -> None:
        """Press keys, in the element that has the focus unless told otherwise."""
        if into is None:
            ActionChains(self.driver).send_keys(*keys).perform()
        else:
            self.one(into).send_keys(*keys)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def attribute(self, selector: str, name: str) -> str | None:
        return self.one(selector).get_attribute(name)

    def wait_without(self, selector: str) -> None:
        """Waits until there is no such element."""
        self.wait(lambda: not self.all(selector), f"{selector} is gone")

    def wait(self, condition: Callable[[], Any], awaited: str = "this condition") -> Any:
        """Wait until a condition is true, and return its value.

        Args:
            awaited: the condition in words, for the message of a failure.
        """
        waiting = WebDriverWait(self.driver, PATIENCE, 0.02, [StaleElementReferenceException])
        try:
            return waiting.until(lambda _: condition())
        except TimeoutException:
            text = self.value_of("document.body.innerText")
            url = self.driver.current_url
            raise AssertionError(f"not within {PATIENCE} seconds: {awaited}; at {url}: {text[:1000]}") from None

    def answer_to(self, action: Callable[[], Any]) -> str:
        """The heading of the files that are found after an action; waits until they are there."""
        self.script("document.querySelector('#heading').textContent = ''")
        action()
        self.wait(lambda: not self.all("#cards[aria-busy]") and self.all("#heading:not(:empty)"), "an answer")
        return self.one("#heading").text

    def answer_to_click(self, selector: str) -> str:
        return self.answer_to(lambda: self.click(selector))

    def answer_to_keys(self, *keys: str, into: str | None = None) -> str:
        return self.answer_to(lambda: self.type(*keys, into=into))

    def search(self, words: str) -> str:
        self.script("document.querySelector('#words').value = ''")
        return self.answer_to_keys(words, into="#words")

    def give(self, path: Path, kind: str = "picture") -> str:
        """The heading after a file is chosen for a button."""
        return self.answer_to(lambda: self._choose(path, kind))

    def _choose(self, path: Path, kind: str) -> None:
        self.script("HTMLInputElement.prototype.click = function () { this.id = 'chosen'; this.hidden = false }")
        self.one(f"#{kind}").click()
        self.one("#chosen").send_keys(str(path))

    def names(self) -> list[str]:
        return self.script("return [...document.querySelectorAll('.card .name')].map(name => name.firstChild.data)")

    def pictures_are_there(self) -> bool:
        """Waits until every picture of the cards is drawn, also those further down."""
        self.script("for (const i of document.querySelectorAll('.card img')) i.loading = 'eager'")
        drawn = "return [...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth > 0)"
        return self.wait(lambda: self.script(drawn), "every picture is drawn")
