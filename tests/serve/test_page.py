"""The page in a real browser, on a screen and on a telephone: what a visitor does and is shown."""

import base64
import json
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra web")
pytest.importorskip("selenium", reason="drives the browser")

from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from support.browser import CHROMIUM, DRIVER, Page, chromium, window
from support.media import TWO_SCENES

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
axe = pytest.importorskip("axe_core_python", reason="has axe-core")
AXE = Path(os.environ.get("AXE_CORE") or axe.__path__[0], "axe.min.js")
"""Another version of axe-core, from npm, is in the folder $AXE_CORE."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(params=[1280, 390])
def page(request, driver, server):
    window(driver, request.param)
    return Page(driver, server)


@pytest.fixture
def wide(driver, server):
    window(driver, 1280)
    return Page(driver, server)


def keys(page, *pressed):
    ActionChains(page.driver).send_keys(*pressed).perform()


def opened(page):
    return page.one("#name").text


def test_names_are_shown_whole_but_for_bytes_that_are_no_text(wide):
    script = """const [file, done] = arguments;
        import("/page/files.js").then(({ nameOf }) => done(nameOf(JSON.parse(file))))"""
    for name, shown in {"\U0001f600 cat.jpg": "\U0001f600 cat.jpg", "caf\udce9.jpg": "caf\ufffd.jpg"}.items():
        assert wide.driver.execute_async_script(script, json.dumps({"path": f"/photos/{name}"})) == shown


def test_files_are_there_before_anything_is_asked_and_fit_the_screen(page, ids):
    assert sorted(page.names()) == sorted(ids)
    assert page.one("#heading").text.startswith("9 files")
    assert [re.sub(r"\s+", " ", chip.text) for chip in page.all("#kinds .chip")] == [
        "Pictures 4",
        "Sounds 4",
        "Texts 1",
    ]
    assert page.pictures_are_there()
    assert page.wait(lambda: "barks at the sea" in page.one(".card blockquote").text)
    assert page.script("return document.documentElement.scrollWidth - innerWidth") <= 0
    assert all(button.size["height"] >= 33 for button in page.all("header button") if button.is_displayed())


def test_words_find_files_as_they_are_typed_and_numbers_are_explained(page, index):
    page.search("a dog barking")
    assert page.names() == [os.path.basename(hit.item.path) for hit in index.search("a dog barking", top=40)]
    hit = index.search("a dog barking")[0]
    value = hit.score if hit.match is None else hit.match
    shown = page.one(".card .match span")
    assert abs(float(shown.text.split()[-1]) - value) < 0.011
    assert shown.get_attribute("title")
    width = page.script("return document.querySelector('.bar i').style.width")
    assert abs(float(width.rstrip("%")) - 100 * max(0, float(shown.text.split()[-1]))) < 0.51  # the number beside it
    page.driver.refresh()
    assert page.one("#words").get_attribute("value") == "a dog barking"
    page.answer_to(page.one("#clear").click)
    assert len(page.names()) == 9


def test_picture_sound_and_words_are_one_query(wide, collection):
    wide.give(collection / "cat.jpg")
    assert wide.names()[0] == "cat.jpg"
    assert wide.one(".part img").get_attribute("src").startswith("blob:")
    wide.search("a dog")
    wide.give(collection / "rain.ogg", "sound")
    assert len(wide.all(".part")) == 1
    wide.answer_to(wide.one("#clear").click)
    assert not wide.all(".part")


def test_camera_and_microphone_search(wide):
    wide.one("#camera").click()
    wide.wait(lambda: wide.script("return document.querySelector('#shutter video').videoWidth"))
    assert len(wide.answer_to(wide.one(".take").click)) > 3
    assert wide.one(".part img").is_displayed()
    wide.one("#microphone").click()
    wide.wait(lambda: wide.all("#microphone[aria-pressed=true]"))
    wide.driver.execute_async_script("setTimeout(arguments[0], 1000)")
    wide.answer_to(wide.one("#microphone").click)
    assert wide.one(".part [title='recording.wav']").is_displayed()
    assert not wide.all("#heading.wrong")


GIVE = """
    const [event, named, done] = arguments;
    const data = new DataTransfer();
    for (const [name, type, content] of named) {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        data.items.add(new File([bytes], name, { type }));
    }
    const options = { clipboardData: data, dataTransfer: data, bubbles: true };
    document.body.dispatchEvent(event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options));
    done();"""
"""Files that are pasted or dropped."""


def given(path, kind):
    return path.name, kind, base64.b64encode(path.read_bytes()).decode()


def test_dropped_and_pasted_files_search(wide, collection):
    files = [given(collection / "cat.jpg", "image/jpeg")]
    for event in ("paste", "drop"):
        wide.answer_to(lambda event=event: wide.driver.execute_async_script(GIVE, event, files))
        assert wide.one(".part [title='cat.jpg']").is_displayed()
        wide.answer_to(wide.one("#clear").click)


def test_files_of_all_kinds_are_one_query_which_its_link_restores(wide, collection):
    files = [
        given(collection / "cat.jpg", "image/jpeg"),
        given(collection / "dog.ogg", "audio/ogg"),
        given(TWO_SCENES, "video/webm"),
        given(collection / "note.txt", "text/plain"),
    ]
    wide.answer_to(lambda: wide.driver.execute_async_script(GIVE, "drop", files))
    wide.search("in the snow")
    parts = [part.get_attribute("title") for part in wide.all(".part .seen")]
    assert parts == ["cat.jpg", "dog.ogg", "two_scenes.webm", "note.txt"]
    hits = wide.script("return [...document.querySelectorAll('.card')].map((card) => card.innerText)")
    link = wide.driver.current_url
    wide.driver.get("about:blank")
    wide.driver.get(link)
    wide.wait(lambda: len(wide.all(".card")) == len(hits))
    restored = [part.get_attribute("title") for part in wide.all(".part .seen")]
    assert sorted(restored) == sorted(parts)
    assert wide.wait(
        lambda: wide.script("return [...document.querySelectorAll('.part img')].every(i => i.naturalWidth)")
    )
    assert wide.script("return [...document.querySelectorAll('.card')].map((card) => card.innerText)") == hits


def test_words_that_are_typed_are_in_the_history_at_each_pause(wide):
    wide.search("a cat")
    wide.script("performance.now = () => 1e9")  # as after a long time
    wide.answer_to(lambda: wide.one("#words").send_keys(" asleep"))
    for expected in ("a cat", ""):
        wide.answer_to(wide.driver.back)
        assert wide.one("#words").get_attribute("value") == expected


def test_hint_is_a_link_to_the_query_that_may_be_meant(wide):
    wide.search("a beach without people")
    assert wide.one("#hints").text == "The model cannot negate: search for “a beach” without “people”"
    wide.answer_to(wide.one("#hints .link").click)
    assert wide.one("#words").get_attribute("value") == "a beach"
    assert wide.one("#active .chip").text == "without people"


def test_names_are_completed_in_the_box(wide):
    wide.answer_to(lambda: wide.one("#words").send_keys("hor"))
    assert wide.one("#names li").text.startswith("horses.jpg")
    wide.answer_to(lambda: keys(wide, Keys.ARROW_DOWN, Keys.ENTER))
    assert wide.one("#words").get_attribute("value") == "horses.jpg"
    assert wide.script("return document.querySelector('#names').hidden")


def test_filters_leave_files_out(wide):
    wide.answer_to(wide.one("#kinds [data-kind=audio]").click)
    assert len(wide.names()) == 4
    assert all(name.endswith(".ogg") for name in wide.names())
    wide.answer_to(wide.one("#kinds [data-kind=text]").click)
    assert len(wide.names()) == 5
    wide.one("#more").click()
    wide.answer_to(lambda: wide.one("[name=path]").send_keys("cat.*"))
    assert wide.names() == ["cat.ogg"]
    wide.answer_to(lambda: wide.one("[name=path]").send_keys("x"))
    keys(wide, Keys.ESCAPE)
    wide.answer_to(wide.one("#end button").click)
    assert len(wide.names()) == 9


def test_file_opens_large_and_arrows_lead_to_others(page, collection):
    page.search("a dog")
    names = page.names()
    page.all(".tile")[0].click()
    assert opened(page) == names[0]
    for key, position in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1)):
        keys(page, key)
        page.wait(lambda name=names[position]: opened(page) == name)
    keys(page, Keys.ESCAPE)
    page.wait(lambda: not page.all("#viewer[open]"))
    page.wait(lambda: (page.script("return document.activeElement.ariaLabel") or "").startswith(names[1]))
    page.all(".tile")[names.index("cat.jpg")].click()
    large = "const i = document.querySelector('.stage img'); return i?.complete && i.naturalWidth"
    assert page.wait(lambda: page.script(large)) > 300
    page.driver.back()
    page.wait(lambda: not page.all("#viewer[open]"))
    assert page.names() == names


def test_file_has_an_address_and_its_folder_is_a_filter(wide, collection):
    wide.one(".tile").click()
    name = opened(wide)
    address = wide.one(".address").get_attribute("href")
    assert wide.driver.current_url == address
    wide.driver.get("about:blank")
    wide.driver.get(address)
    assert wide.wait(lambda: opened(wide)) == name
    (folder,) = [link for link in wide.all("dl .link") if link.text == f"{collection.name}/"]
    wide.answer_to(folder.click)
    assert not wide.all("#viewer[open]")
    assert wide.one("#active .chip").text == f"in {collection.name}"
    wide.answer_to(wide.one("#active .chip").click)
    assert not wide.all("#active .chip")


def test_values_of_tags_are_chips_and_links(wide):
    wide.one("#values [data-field=camera] summary").click()
    wide.answer_to(wide.one("#values [data-field=camera] div button").click)
    assert wide.names() == ["sea.jpg"]
    assert wide.one("#active .chip").text == "Camera: X100V"
    wide.one(".tile").click()
    (location,) = [link for link in wide.all("dl .link") if link.text == "48.1000, 11.6000"]
    wide.answer_to(location.click)
    assert [chip.text for chip in wide.all("#active .chip")] == ["Camera: X100V", "within 10 km"]
    wide.answer_to(wide.all("#active .chip")[0].click)
    assert wide.names() == ["sea.jpg"]


def test_timeline_leaves_the_files_of_one_time(wide):
    bars = wide.wait(lambda: [bar for bar in wide.all("#timeline button") if bar.is_enabled()])
    wide.answer_to(bars[0].click)
    assert wide.names() == ["note.txt"]
    wide.answer_to(wide.driver.back)
    assert len(wide.names()) == 9


def test_file_that_is_gone_is_said_to_be(wide, collection):
    wide.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    (collection / "cat.jpg").rename(collection.parent / "cat.jpg")
    try:
        wide.driver.refresh()
        wide.wait(lambda: "no longer there" in wide.one(".card .gone").text.lower())
        wide.one(".tile:has(.gone)").click()
        wide.wait(lambda: "no longer there" in wide.one(".stage .gone").text.lower())
    finally:
        (collection.parent / "cat.jpg").rename(collection / "cat.jpg")
        wide.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})


def test_sound_plays_on_its_card_and_opened(wide):
    wide.answer_to(wide.one("#kinds [data-kind=audio]").click)
    play = wide.one("button.play")
    play.click()
    wide.wait(lambda: play.get_attribute("aria-pressed") == "true")
    wide.wait(lambda: wide.script("return document.querySelector('.well.audio').style.getPropertyValue('--at')"))
    play.click()
    wide.wait(lambda: play.get_attribute("aria-pressed") == "false")
    wide.one(".tile").click()
    wide.wait(lambda: wide.script("return document.querySelector('.stage audio').currentTime > 0"))


def test_more_like_a_file(wide, ids):
    wide.search("a dog")
    name = wide.names()[0]
    ActionChains(wide.driver).move_to_element(wide.all(".card")[0]).perform()
    wide.answer_to(wide.one(".sign").click)
    assert name not in wide.names()
    assert wide.one(".part .seen").get_attribute("title") == name
    assert f"like={ids[name]}" in wide.driver.current_url
    wide.driver.refresh()
    wide.wait(lambda: wide.names() and name not in wide.names())
    wide.answer_to(wide.driver.back)
    wide.wait(lambda: name in wide.names())


def test_labels_of_ones_own_are_chosen(wide):
    wide.answer_to(wide.one("#kinds [data-kind=image]").click)
    wide.one(".tile").click()
    wide.one("[name=labels]").send_keys("dog, cat, rain" + Keys.ENTER)
    wide.wait(lambda: len(wide.all(".labels li b")) == 3)
    shares = [float(share.text) for share in wide.all(".labels li b")]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=0.02)


def test_everything_is_reached_by_keys(wide):
    keys(wide, Keys.TAB)
    wide.script("document.activeElement.blur()")
    keys(wide, "/")
    assert wide.script("return document.activeElement.id") == "words"
    keys(wide, Keys.ARROW_DOWN)
    assert wide.script("return document.activeElement === document.querySelector('.tile')")
    focused = "return [...document.querySelectorAll('.tile')].indexOf(document.activeElement)"
    for key, position in ((Keys.TAB, 1), (Keys.ARROW_RIGHT, 2), (Keys.END, 8), (Keys.HOME, 0), (Keys.ARROW_RIGHT, 1)):
        keys(wide, key)
        assert wide.script(focused) == position
    columns = wide.script("return getComputedStyle(document.querySelector('#cards')).gridTemplateColumns").count("px")
    keys(wide, Keys.ARROW_DOWN)
    assert wide.script(focused) == 1 + columns
    keys(wide, Keys.ARROW_UP)
    keys(wide, Keys.ENTER)
    assert opened(wide) == wide.names()[1]
    keys(wide, Keys.ESCAPE)
    wide.wait(lambda: not wide.all("#viewer[open]"))


def test_map_shows_files_and_opens_them(wide, ids):
    wide.one("#map").click()
    wide.wait(lambda: wide.script("return document.querySelector('#plane').map?.points.every(p => p.left)"))
    x, y = wide.script(
        "const { map } = document.querySelector('#plane'), point = map.points.find(({ id }) => id === arguments[0]);"
        "return [point.left - map.width / 2, point.top - map.height / 2]",
        ids["rain.ogg"],
    )
    canvas = wide.one("#plane canvas")
    ActionChains(wide.driver).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
    assert wide.wait(lambda: opened(wide)) in ids
    keys(wide, Keys.ESCAPE)
    wide.wait(lambda: not wide.all("#viewer[open]"))
    wide.one("#map").click()
    assert wide.one(".card")


def test_dark_and_light(driver, server):
    def brightness():
        color = page.script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3]))

    window(driver, 1280, dark=True)
    page = Page(driver, server)
    assert brightness() < 150
    page.one("#theme").click()
    assert brightness() > 600
    driver.refresh()
    page.wait(lambda: brightness() > 600)
    window(driver, 1280)


def test_nothing_serious_is_wrong_for_a_screen_reader(page):
    check = "axe.run().then((found) => arguments[0](found.violations.map((each) => [each.impact, each.id])))"

    def serious():
        page.script(AXE.read_text(encoding="utf-8"))
        return [name for impact, name in page.driver.execute_async_script(check) if impact in ("serious", "critical")]

    page.search("a dog")
    assert serious() == []
    page.one(".tile").click()
    opened(page)
    assert serious() == []
    keys(page, Keys.ESCAPE)
    page.wait(lambda: not page.all("#viewer[open]"))
    page.one("#map").click()
    page.one("#plane canvas")
    assert serious() == []


def test_nothing_came_from_another_host(driver, server, ids):
    """Of all tests above: the requests that the browser was made to send, and what it complained of."""
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    requested = [url for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss", "ftp")]
    assert any(url.startswith(f"{server}/files/") for url in requested)
    assert [url for url in requested if not url.startswith(f"{server}/")] == []
    complaints = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    expected = ("422", "favicon.ico", f"files/{ids['cat.jpg']}")  # the last was gone for a while
    assert [each for each in complaints if not any(part in each for part in expected)] == []
