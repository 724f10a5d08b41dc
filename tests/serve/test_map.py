"""The map: one file that needs nothing else and shows names as they are, its picture, and both in a real browser."""

import base64
import hashlib
import json
import os
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from support.indexes import fabricate

from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.index.index import Index
from onepeace.index.store import Item
from onepeace.index.write import build, remove
from onepeace.serve.map import Map, ServedMap, links_from

EVIL = "</script><img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, samples):
    """A folder with a picture, a changed picture, a sound and a text, and names that try to be HTML."""
    path = tmp_path_factory.mktemp("map")
    evil = path / "a&b <i>"
    evil.mkdir()
    shutil.copy(samples / "images" / "cat.jpg", evil / "'x' \"y\".jpg")
    shutil.copy(samples / "images" / "dog.jpg", path / "changed.jpg")
    shutil.copy(samples / "sounds" / "dog.ogg", path)
    (path / "note.txt").write_text(f"a  note\n{EVIL}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def index_of_all(folder):
    """Of that folder, and of what does not lie in a file of its own, in the corners of a square."""
    found = [
        (evil := folder / "a&b <i>" / "'x' \"y\".jpg", "image", [3, 3]),
        (folder / "changed.jpg", "image", [3, -3]),
        (folder / "dog.ogg", "audio", [-3, 3]),
        (folder / "note.txt", "text", [-3, -3]),
    ]
    files = []
    for path, kind, vector in found:
        status = os.stat(path)
        files.append((Item(str(path), kind, status.st_size, status.st_mtime_ns), [*vector, 1]))
    files.append((Item("https://host.invalid/far.jpg", "image", caption="far <b>away</b>"), [0.5, 0, 1]))
    files.append((Item(f"{folder}/no.tar::{EVIL}", "audio"), [-0.5, 0, 1]))
    (folder / "changed.jpg").write_bytes(evil.read_bytes())
    return fabricate(folder / "index", files)


@pytest.fixture(scope="module")
def made(index_of_all):
    with Index.open(index_of_all) as index:
        return Map(index, progress=False)


@pytest.fixture(scope="module")
def page(made, folder):
    return made.render(links_from(folder))


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_page_needs_nothing_outside(page):
    tags = re.findall(r"<(?:script|link|img|iframe|object|embed|base|audio|video)\b[^>]*>", page)
    assert tags == ['<script type="application/json" id="data">', "<script>"]
    own = page.replace("https://host.invalid", "").replace("/^https?:/", "")
    assert not re.search(r"https?:|url\(|@import", own)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith(f"; script-src 'sha256-{checksum}'")


def test_names_and_texts_are_data_and_never_html(page, folder):
    assert page.count("</script>") == 2
    assert "<i>'" not in page
    data = data_of(page)
    names = [(name, data["folders"][place]) for _, _, _, name, place, _ in data["points"]]
    assert names[0] == ("'x' \"y\".jpg", f"{folder}/a&b <i>")
    assert names[5] == (EVIL, f"{folder}/no.tar")
    assert data["captions"] == {"3": f"a note {EVIL}", "4": "far <b>away</b>"}


def test_points_of_near_vectors_are_near_and_all_have_a_kind(page, made):
    data = data_of(page)
    assert data["kinds"] == ["image", "audio", "text"]
    assert data["titles"] == ["picture", "sound", "text"]
    assert [data["kinds"][point[2]] for point in data["points"]] == made.kinds
    places = np.array([point[:2] for point in data["points"]])
    np.testing.assert_allclose(places[:, 0], made.points[:, 0], atol=1e-4)
    np.testing.assert_allclose(1 - places[:, 1], made.points[:, 1], atol=1e-4)
    assert "6 files, by the model fake (PCA)" in page


def test_pictures_are_small_and_those_of_changed_files_are_left_out(made, index_of_all):
    assert list(made.thumbnails) == [0]
    assert made.thumbnails[0][8:12] == b"WEBP"
    with Index.open(index_of_all) as index:
        assert not Map(index, thumbnails=0, progress=False).thumbnails


def test_links_lead_from_the_page_to_the_files(page, folder):
    *links, far, inside = [point[5] for point in data_of(page)["points"]]
    assert [(folder / unquote(link)).is_file() for link in links] == [True] * 4
    assert all(re.match(r"\./[\w./%-]+$", link) for link in links)
    assert (far, inside) == ("https://host.invalid/far.jpg", None)


def test_served_map_names_files_by_number_and_follows_the_index(collection, random_folder, tmp_path):
    build(tmp_path / "i", [str(collection)], str(random_folder), device="cpu", progress=False)
    served = ServedMap(tmp_path / "i")
    first = served()
    assert served() is first
    with Index.open(tmp_path / "i") as index:
        ids = [item.id for item in index.items()]
    links = [point[5] for point in data_of(first)["points"]]
    assert [int(re.fullmatch(r"files/(\d+)\?v=[0-9a-f]+", link)[1]) for link in links] == ids
    assert str(random_folder.parent) not in first
    remove(tmp_path / "i", [collection / "cat.jpg"])
    assert len(data_of(served())["points"]) == len(ids) - 1


@pytest.mark.parametrize("name", ["map.png", "map.svg"])
def test_picture_is_drawn(made, tmp_path, name):
    pytest.importorskip("matplotlib")
    made.draw(tmp_path / name)
    if name.endswith("png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (1440, 1020)
            colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
        for color in ((181, 89, 15), (59, 79, 156)):  # of sounds and texts, on white
            assert (np.abs(colors - np.array(color) * 0.7 - 255 * 0.3) < 4).all(axis=1).any()
    else:
        assert "<svg" in (tmp_path / name).read_text()
    with pytest.raises(UserError, match=r"map\.mp3: Format 'mp3' is not supported"):
        made.draw(tmp_path / "map.mp3")


def test_command_writes_the_page_and_the_picture(index_of_all, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "map.html", tmp_path / "map.png"
    assert main(["map", str(index_of_all), "-o", str(page), "--png", str(picture)]) == 0
    said = capsys.readouterr()
    assert re.sub(r"\d\.\d MB", "S", said.err).splitlines() == [
        f"onepeace: 6 files, 1 picture: {page} (S)",
        f"onepeace: {picture}: a picture of it",
    ]
    assert said.out == ""
    assert len(data_of(page.read_text(encoding="utf-8"))["points"]) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.html", "map.png"]


def test_what_goes_wrong_is_one_line(folder, random_folder, tmp_path, capsys):
    def refused(*arguments):
        assert main(["map", *map(str, arguments)]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "nothing: no index there" in refused(tmp_path / "nothing", "-o", tmp_path / "m.html")
    assert "there is no folder" in refused(folder / "index", "-o", tmp_path / "no" / "m.html")
    pytest.importorskip("matplotlib")
    line = refused(folder / "index", "-o", tmp_path / "m.html", "--png", tmp_path / "m.foo")
    assert "m.foo: no picture by its ending; known: " in line
    assert "'-1' is not a whole number from 0 up" in refused(folder / "index", "--thumbnails", "-1")
    empty = tmp_path / "empty"
    build(empty, [folder / "dog.ogg"], str(random_folder), device="cpu", progress=False)
    assert main(["map", str(empty), "-o", str(tmp_path / "one.html")]) == 0
    assert "onepeace: 1 file, 0 pictures" in capsys.readouterr().err
    remove(empty, [folder / "dog.ogg"])
    assert "empty: no files in it" in refused(empty, "-o", tmp_path / "m.html")
    assert not (tmp_path / "m.html").exists()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    pytest.importorskip("selenium", reason="drives the browser")
    from support.browser import CHROMIUM, DRIVER, chromium

    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    with chromium(tmp_path_factory.mktemp("chromium")) as made:
        yield made


def over(driver, number):
    """Moves the mouse to the point of that number; an action that may go on."""
    from selenium.webdriver import ActionChains

    canvas = driver.find_element("id", "map")
    data = json.loads(driver.execute_script("return document.getElementById('data').textContent"))
    x, y = (0.04 + 0.92 * place - 0.5 for place in data["points"][number][:2])
    size = canvas.size
    return ActionChains(driver).move_to_element_with_offset(canvas, round(x * size["width"]), round(y * size["height"]))


def test_mouse_over_a_point_shows_its_name_and_a_name_runs_nothing(driver, page, folder):
    (folder / "map.html").write_text(page, encoding="utf-8")
    driver.get((folder / "map.html").as_uri())
    card, found = driver.find_element("id", "card"), driver.find_element("id", "found")
    assert not card.is_displayed()
    over(driver, 5).perform()
    assert card.text.splitlines() == ["sound", EVIL, f"{folder}/no.tar"]
    over(driver, 3).perform()
    assert card.text.splitlines() == ["text", "note.txt", str(folder), f"a note {EVIL}"]
    assert driver.title == "onepeace map"
    assert not driver.find_elements("css selector", "#card img")
    over(driver, 0).perform()
    assert card.find_element("css selector", "img").get_attribute("src").startswith("data:image/webp;")
    driver.find_element("id", "words").send_keys("AWAY")
    assert (found.text, card.is_displayed()) == ("1 found", False)
    over(driver, 0).perform()  # it is not among them
    assert not card.is_displayed()
    over(driver, 4).perform()
    assert "far.jpg" in card.text
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_click_in_the_tab_of_the_page_leads_to_the_file(driver, server, index_folder, ids):
    from support.browser import Page

    with Index.open(index_folder) as index:
        names = [os.path.basename(item.path) for item in index.items()]
    page = Page(driver, server)
    page.click("Map")
    driver.switch_to.frame(page.one("iframe.op-map"))
    page.wait(lambda: driver.find_elements("id", "map"))
    over(driver, names.index("rain.ogg")).click().perform()
    card = page.one("#card.pinned")
    assert card.text.splitlines()[:2] == ["sound", "rain.ogg"]
    link = card.find_element("css selector", "a").get_attribute("href")
    assert link.startswith(f"{server}/files/{ids['rain.ogg']}?v=")
    play = (
        "const player = document.querySelector('#card audio'), done = arguments[0];"
        "player.onloadedmetadata = () => done(player.duration); player.onerror = () => done(-1);"
        "player.preload = 'metadata'; player.load();"
    )
    assert driver.execute_async_script(play) > 1
