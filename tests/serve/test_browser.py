"""The page in a real browser: what a visitor does, what is shown, and that nothing comes from another host."""

import json
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")
pytest.importorskip("selenium", reason="drives the browser")

from support.browser import CHROMIUM, DRIVER, Page, chromium

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def driver(server, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def page(driver, server):
    return Page(driver, server)


def test_page_shows_files_before_anything_is_asked(page, ids):
    assert sorted(name for name, _ in page.hits()) == sorted(ids)
    assert page.one(".op-said").text == "Some of the 9 files"
    assert "4 pictures, 4 sounds, 1 text" in page.one(".op-title").text
    assert page.pictures_are_there()


def test_words_find_files_and_players_play_them(page):
    assert "best of 9 files" in page.search("a dog barking")
    scores = [float(score) for _, score in page.hits()]
    assert len(scores) > 5
    assert scores == sorted(scores, reverse=True)
    duration = page.driver.execute_async_script(
        "const player = document.querySelector('.op-card audio'), done = arguments[0];"
        "player.onloadedmetadata = () => done(player.duration); player.onerror = () => done(-1);"
        "player.preload = 'metadata'; player.load();"
    )
    assert duration > 1


def test_picture_finds_itself_and_a_sound_itself_and_both_a_mix(page, collection):
    page.upload("#picture", collection / "cat.jpg")
    assert page.hits()[0] == ("cat.jpg", "1.000")
    page.upload("#sound", collection / "rain.ogg")
    mixed = dict(page.hits())
    assert all(float(score) < 0.999 for score in mixed.values())
    assert float(mixed["cat.jpg"]) > 0
    page.answer_to(lambda: page.click("Clear"))
    page.upload("#sound", collection / "rain.ogg")
    assert page.hits()[0] == ("rain.ogg", "1.000")


def test_filter_leaves_kinds_out(page):
    page.search("a dog")
    page.click("Filters")
    label = page.wait(lambda: [each for each in page.all("#only label") if each.text == "pictures"])[0]
    page.wait(label.is_displayed)
    label.click()
    assert "best of 4 files" in page.answer_to(page.one("button.primary").click)
    assert page.all(".op-card.image")
    assert not page.all(".op-card:not(.image)")


def test_hit_can_be_searched_with(page, ids):
    page.search("a dog")
    name, _ = page.hits()[0]
    page.answer_to(lambda: page.one(f"[data-like='{ids[name]}']").click())
    assert page.one(".op-like").text.startswith(f"like {name}")
    assert name not in dict(page.hits())
    page.answer_to(lambda: page.one("[data-drop]").click())
    assert not page.all(".op-like")
    assert name in dict(page.hits())


def test_broken_upload_is_said_and_the_page_goes_on(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    assert "the picture" in page.upload("#picture", broken)
    assert page.all(".op-problem")
    page.answer_to(lambda: page.click("Clear"))
    assert "best of 9 files" in page.search("a dog")


def test_labels_are_chosen_for_a_picture(page, collection):
    page.click("Classify")
    page.wait(lambda: len(page.all("input[type=file]")) == 4)
    page.all("input[type=file]")[2].send_keys(str(collection / "cat.jpg"))
    page.wait(
        lambda: [each for each in page.all("img") if each.is_displayed() and "file=" in each.get_attribute("src")]
    )
    buttons = [each for each in page.all("button.primary") if each.text == "Classify"]
    buttons[0].click()
    page.wait(lambda: page.all(".label-wrap, [data-testid='label-output-value']"))
    assert page.one("[data-testid='label-output-value']").text in ("dog", "cat", "bird", "car", "rain", "sea")


def test_page_fits_a_narrow_screen(page):
    page.driver.set_window_size(420, 900)
    try:
        too_wide = "return document.documentElement.scrollWidth - innerWidth"
        assert page.wait(lambda: page.driver.execute_script(too_wide) <= 0)
    finally:
        page.driver.set_window_size(1280, 1000)


def test_nothing_came_from_another_host(driver, server):
    """Of all tests above: the requests that the browser was made to send, and what it complained of."""
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    own = [url for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss", "ftp")]
    assert any(url.startswith(f"{server}/files/") for url in own)
    assert [url for url in own if not url.startswith(f"{server}/")] == []
    complaints = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert complaints == []
