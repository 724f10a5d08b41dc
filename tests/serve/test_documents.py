"""The hits of a search as an HTML file that needs nothing else, and the map's data."""

import html
import re
import shutil
from urllib.parse import unquote

import pytest

from onepeace.index import Index, Query, build
from onepeace.serve.gallery import InlineMedia, write_gallery
from onepeace.serve.map import points

EVIL = "</script><img src=x onerror=gallery.title='run'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, samples, random_folder):
    """A folder with pictures, a sound and texts, names that try to be HTML, and its index; a picture is gone since."""
    path = tmp_path_factory.mktemp("documents")
    evil = path / "a&b <i>"
    evil.mkdir()
    shutil.copy(samples / "images" / "cat.jpg", evil / "'x' \"y\".jpg")
    shutil.copy(samples / "images" / "dog.jpg", path / "gone.jpg")
    shutil.copy(samples / "sounds" / "dog.ogg", path)
    (path / "note.txt").write_text(f"a  note\n{EVIL}", encoding="utf-8")
    (path / EVIL.replace("/", ":")).with_suffix(".txt").write_text("words", encoding="utf-8")
    build(path / "index", [path], str(random_folder), device="cpu", progress=False)
    (path / "gone.jpg").unlink()
    return path


@pytest.fixture(scope="module")
def index(folder):
    with Index.open(folder / "index", device="cpu") as opened:
        yield opened


def policy_of(page):
    return re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]


def check_alone(page):
    """Nothing is loaded from elsewhere, and no script may run."""
    body = page.partition("<body")[2]
    assert not re.search(r"""(src|href|poster)="(https?:)?//""", body)
    assert not re.search(r"url\(|@import", page.partition("<style>")[2].partition("</style>")[0])
    assert policy_of(page).startswith("default-src 'none'; ")
    assert policy_of(page).endswith("script-src 'none'")
    assert "<img src=x" not in page


def test_map_names_every_file(index, folder):
    items, _ = index.means()
    plane = points(index)
    folders = {}
    for (_, _, kind, name, folder_number, _), item in zip(plane["points"], items, strict=True):
        assert plane["kinds"][kind] == item.modality
        folders[name] = plane["places"][folder_number]
    assert folders["'x' \"y\".jpg"] == f"{folder}/a&b <i>"


def test_gallery_shows_every_hit_and_runs_nothing(index, folder, samples):
    query = Query(text=f"a {EVIL}", image=samples / "images" / "cat.jpg", without="people")
    results = index.search(query, collapse=False)
    write_gallery(results, query, folder / "hits.html")
    page = (folder / "hits.html").read_text(encoding="utf-8")
    check_alone(page)
    assert page.count('<li class="card') == len(results) == 5
    assert html.escape(EVIL).replace("&#x27;", "&#39;") in page
    assert "cat.jpg, without people</h1>" in page
    for kind in ("image/webp", "image/svg+xml", "audio/ogg"):
        assert f"data:{kind};base64," in page
    assert "<blockquote>gone.jpg</blockquote>" in page
    links = [html.unescape(link) for link in re.findall(r'class="name" href="([^"]*)"', page)]
    assert [unquote(link) for link in links if not (folder / unquote(link)).is_file()] == ["./gone.jpg"]
    shown = [float(value) for value in re.findall(r"<b>(-?[\d.]+)</b>", page)]
    assert shown == [float(hit.value.split()[-1]) for hit in results]


def test_large_sounds_are_linked_and_those_of_shards_left_out(samples, monkeypatch):
    sound = samples / "sounds" / "dog.ogg"
    embedding = InlineMedia(samples)
    assert embedding.address(sound, "audio/ogg").startswith("data:audio/ogg;base64,")
    monkeypatch.setattr("onepeace.serve.gallery.EMBEDDED", sound.stat().st_size - 1)
    assert embedding.address(sound, "audio/ogg") == "./sounds/dog.ogg"
    assert embedding.address(sound.read_bytes(), "audio/ogg") == ""
