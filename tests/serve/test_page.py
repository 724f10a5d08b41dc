"""The page in a real browser, on a screen and on a telephone: what a visitor does and is shown."""

import base64
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra web")
pytest.importorskip("selenium", reason="drives the browser")

from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from support.browser import CHROMIUM, DRIVER, Page, chromium, complaints, hosts_asked, window
from support.media import TWO_SCENES

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
axe = pytest.importorskip("axe_core_python", reason="has axe-core")
AXE = Path(os.environ.get("AXE_CORE") or axe.__path__[0], "axe.min.js")
"""Another version of axe-core, from npm, is in the folder $AXE_CORE."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def _check_browser(driver, server, ids):
    """Each test asks this server alone, and its page makes the browser complain of nothing."""
    yield
    on_purpose = ("422", "favicon.ico", f"files/{ids['cat.jpg']}")  # the last is gone for a while
    unexpected = [message for message in complaints(driver) if not any(part in message for part in on_purpose)]
    assert unexpected == []
    assert hosts_asked(driver) == {urlsplit(server).netloc}


@pytest.fixture
def wide(driver, server):
    window(driver, 1280)
    return Page(driver, server)


@pytest.fixture
def narrow(driver, server):
    window(driver, 390)
    return Page(driver, server)


def open_first_file(page):
    """Opens the first file, whose name is returned."""
    page.click(".tile")
    return page.text("#name")


def test_files_are_there_before_anything_is_asked(narrow, ids):
    chips = [re.sub(r"\s+", " ", text) for text in narrow.texts("#kinds .chip")]

    assert sorted(narrow.names()) == sorted(ids)
    assert narrow.text("#heading").startswith("9 files")
    assert chips == ["Pictures 4", "Sounds 4", "Texts 1"]
    assert narrow.pictures_are_there()
    assert narrow.wait(lambda: "barks at the sea" in narrow.text(".card blockquote"))


@pytest.mark.parametrize("width", [360, 1060])
def test_chips_and_their_lists_make_no_page_too_wide(driver, server, width):
    window(driver, width)
    page = Page(driver, server)

    def overflow():
        return page.value_of("document.documentElement.scrollWidth - innerWidth")

    page.one("#values [data-field=artist]")
    assert overflow() <= 0
    for summary in page.all(".filters summary"):
        summary.click()
        page.wait(lambda: overflow() <= 0)
        assert page.value_of("document.querySelector('.popover[open] > div').getBoundingClientRect().left") >= 0


def test_words_find_files_as_they_are_typed(wide, index):
    hits = index.search("rain", top=40)

    wide.search("rain")

    assert wide.names() == [os.path.basename(hit.item.path) for hit in hits]
    assert wide.texts(".card .match span:has(b)") == [hit.value for hit in hits]
    assert hits[0].named
    assert wide.text(".card .match").split()[:2] == ["rain", "rare"]
    wide.driver.refresh()
    assert wide.attribute("#words", "value") == "rain"
    wide.answer_to_click("#clear")
    assert len(wide.names()) == 9


def test_camera_searches(wide):
    wide.click("#camera")
    wide.wait(lambda: wide.value_of("document.querySelector('#shutter video').videoWidth"))

    wide.answer_to_click(".take")

    assert wide.attribute(".part img", "src").startswith("blob:")
    assert wide.all(".card .match")
    assert not wide.all("#heading.wrong")


def test_microphone_searches(wide):
    wide.click("#microphone")
    wide.one("#microphone[aria-pressed=true]")
    wide.driver.execute_async_script("setTimeout(arguments[0], 1000)")

    wide.answer_to_click("#microphone")

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


def give(page, event, *files):
    """Pastes or drops files (path, media type)."""
    encoded = []
    for path, media_type in files:
        data = base64.b64encode(path.read_bytes()).decode()
        encoded.append((path.name, media_type, data))
    return page.answer_to(lambda: page.driver.execute_async_script(GIVE, event, encoded))


def test_files_of_all_kinds_are_one_query_to_which_one_goes_back(wide, collection):
    def parts():
        return sorted(part.get_attribute("title") for part in wide.all(".part .seen"))

    picture = (collection / "cat.jpg", "image/jpeg")
    sound = (collection / "dog.ogg", "audio/ogg")
    give(wide, "drop", picture, sound, (TWO_SCENES, "video/webm"), (collection / "note.txt", "text/plain"))
    wide.search("in the snow")
    given = ["cat.jpg", "dog.ogg", "note.txt", "two_scenes.webm"]
    assert parts() == given
    names = wide.names()

    wide.answer_to_click("#clear")
    assert parts() == []
    wide.answer_to(wide.driver.back)

    assert parts() == given
    assert wide.names() == names


def test_link_to_a_query_whose_picture_is_not_here_says_so(wide, collection):
    give(wide, "drop", (collection / "cat.jpg", "image/jpeg"))

    wide.driver.refresh()

    wide.wait(lambda: "add it again" in wide.text("#heading.wrong"))
    assert wide.names() == []
    wide.search("a dog")
    assert wide.names()


def test_hint_is_a_link_to_the_query_that_may_be_meant(wide):
    wide.search("a beach without people")
    assert "without “people”" in wide.text("#hints")

    wide.answer_to_click("#hints .link")

    assert wide.attribute("#words", "value") == "a beach"
    assert wide.texts("#active .chip") == ["without people"]


def test_names_are_completed_in_the_box(wide):
    wide.answer_to_keys("hor", into="#words")
    assert wide.text("#names li").startswith("horses.jpg")

    wide.answer_to_keys(Keys.ARROW_DOWN, Keys.ENTER)

    assert wide.attribute("#words", "value") == "horses.jpg"
    assert wide.value_of("document.querySelector('#names').hidden")


def test_kinds_are_counted_as_the_other_filters_leave_them(wide):
    def counts():
        return [int(text.split()[-1]) for text in wide.texts("#kinds .chip")]

    wide.answer_to_click("#kinds [data-kind=audio]")
    assert all(name.endswith(".ogg") for name in wide.names())
    assert counts() == [4, 4, 1]
    wide.click("#more")
    wide.answer_to_keys("cat.*", into="[name=path]")

    wide.wait(lambda: counts() == [1, 1, 0])


def test_arrows_lead_from_an_open_file_to_others(wide):
    wide.search("a dog")
    names = wide.names()
    assert open_first_file(wide) == names[0]

    moves = [(Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1)]
    for key, position in moves:
        wide.type(key)
        wide.wait(lambda name=names[position]: wide.text("#name") == name)

    wide.type(Keys.ESCAPE)
    wide.wait_without("#viewer[open]")
    wide.wait(lambda: (wide.value_of("document.activeElement.ariaLabel") or "").startswith(names[1]))


def test_picture_opens_large_and_back_closes_it(narrow):
    narrow.search("a dog")
    names = narrow.names()
    narrow.all(".tile")[names.index("cat.jpg")].click()

    large = "const i = document.querySelector('.stage img'); return i?.complete && i.naturalWidth"
    assert narrow.wait(lambda: narrow.script(large)) > 300
    narrow.driver.back()
    narrow.wait_without("#viewer[open]")
    assert narrow.names() == names


def test_file_has_an_address(wide):
    name = open_first_file(wide)
    address = wide.attribute(".address", "href")
    assert wide.driver.current_url == address

    wide.driver.get("about:blank")
    wide.driver.get(address)

    wide.wait(lambda: wide.text("#name") == name)


def test_values_of_tags_are_chips_and_links(wide):
    wide.click("#values [data-field=camera] summary")
    wide.answer_to_click("#values [data-field=camera] div button")
    assert wide.names() == ["sea.jpg"]
    assert wide.texts("#active .chip") == ["Camera: X100V"]

    open_first_file(wide)
    (position,) = [link for link in wide.all("dl .link") if link.text == "48.1000, 11.6000"]
    wide.answer_to(position.click)

    assert wide.texts("#active .chip") == ["Camera: X100V", "within 10 km"]
    wide.answer_to_click("#active .chip")
    assert wide.names() == ["sea.jpg"]


def test_timeline_leaves_the_files_of_one_time(wide):
    bars = wide.wait(lambda: [bar for bar in wide.all("#timeline button") if bar.is_enabled()])

    wide.answer_to(bars[0].click)
    assert wide.names() == ["note.txt"]

    wide.answer_to(wide.driver.back)
    assert len(wide.names()) == 9


@pytest.fixture
def gone(wide, collection):
    """The picture of a cat is gone for a while."""
    aside = collection.parent / "cat.jpg"
    wide.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    (collection / "cat.jpg").rename(aside)
    yield
    aside.rename(collection / "cat.jpg")
    wide.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})


@pytest.mark.usefixtures("gone")
def test_missing_file_is_marked_on_its_card_and_opened(wide):
    wide.driver.refresh()

    wide.wait(lambda: "no longer there" in wide.text(".card .gone").lower())
    wide.click(".tile:has(.gone)")
    wide.wait(lambda: "no longer there" in wide.text(".stage .gone").lower())


def test_sound_plays_on_its_card(wide):
    wide.answer_to_click("#kinds [data-kind=audio]")
    play = wide.one("button.play")

    play.click()
    wide.wait(lambda: play.get_attribute("aria-pressed") == "true")
    wide.wait(lambda: wide.value_of("document.querySelector('.well.audio').style.getPropertyValue('--at')"))

    play.click()
    wide.wait(lambda: play.get_attribute("aria-pressed") == "false")


def test_more_like_a_file(wide, ids):
    wide.search("a dog")
    name = wide.names()[0]
    ActionChains(wide.driver).move_to_element(wide.all(".card")[0]).perform()

    wide.answer_to_click(".sign")

    assert name not in wide.names()
    assert wide.attribute(".part .seen", "title") == name
    assert f"like={ids[name]}" in wide.driver.current_url
    wide.driver.refresh()
    wide.wait(lambda: wide.names() and name not in wide.names())
    wide.answer_to(wide.driver.back)
    wide.wait(lambda: name in wide.names())


def test_labels_are_typed_and_compared(wide):
    wide.answer_to_click("#kinds [data-kind=image]")
    open_first_file(wide)

    wide.type("dog, cat, rain" + Keys.ENTER, into="[name=labels]")

    wide.wait(lambda: len(wide.all(".labels li b")) == 3)
    shares = [float(share) for share in wide.texts(".labels li b")]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=0.02)


def test_keys_lead_from_file_to_file(wide):
    def focused():
        return wide.value_of("[...document.querySelectorAll('.tile')].indexOf(document.activeElement)")

    columns = "getComputedStyle(document.querySelector('#cards')).gridTemplateColumns"
    num_columns = wide.value_of(columns).count("px")
    wide.script("document.querySelector('.tile').focus()")
    moves = [
        (Keys.TAB, 1),
        (Keys.ARROW_RIGHT, 2),
        (Keys.END, 8),
        (Keys.HOME, 0),
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_DOWN, 1 + num_columns),
        (Keys.ARROW_UP, 1),
    ]
    for key, position in moves:
        wide.type(key)
        assert focused() == position

    wide.type(Keys.ENTER)
    assert wide.text("#name") == wide.names()[1]
    wide.type(Keys.ESCAPE)
    wide.wait_without("#viewer[open]")


def test_map_shows_files_and_opens_them(wide, ids):
    wide.click("#map")
    wide.wait(lambda: wide.value_of("document.querySelector('#plane').map?.points.every(p => p.left)"))
    x, y = wide.script(
        "const { map } = document.querySelector('#plane'), point = map.points.find(({ id }) => id === arguments[0]);"
        "return [point.left - map.width / 2, point.top - map.height / 2]",
        ids["rain.ogg"],
    )
    mouse = ActionChains(wide.driver)
    mouse.move_to_element_with_offset(wide.one("#plane canvas"), round(x), round(y))
    mouse.click().perform()

    assert wide.text("#name") == "rain.ogg"
    wide.type(Keys.ESCAPE)
    wide.wait_without("#viewer[open]")
    wide.click("#map")
    assert wide.one(".card")


def test_nothing_serious_is_wrong_for_a_screen_reader(wide):
    wide.script(AXE.read_text(encoding="utf-8"))
    check = """axe.run({ resultTypes: ["violations"] }).then(
        (answer) => arguments[0](answer.violations.map((each) => [each.impact, each.id])))"""

    def serious_violations():
        wide.wait(lambda: wide.value_of("document.getAnimations().length === 0"))
        return [name for impact, name in wide.driver.execute_async_script(check) if impact in ("serious", "critical")]

    wide.search("a dog")
    assert serious_violations() == []
    open_first_file(wide)
    assert serious_violations() == []
    wide.type(Keys.ESCAPE)
    wide.wait_without("#viewer[open]")
    wide.click("#map")
    wide.one("#plane canvas")
    assert serious_violations() == []
