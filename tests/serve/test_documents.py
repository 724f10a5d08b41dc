"""The hits of a search as an HTML file that needs nothing else, and the map's data."""

import html
import re
import shutil
from urllib.parse import unquote

import pytest

from onepeace.index import Index, Query, build
from onepeace.serve.gallery import write_gallery

EVIL = "</script><img src=x onerror=gallery.title='run'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, samples, random_folder):
    """A folder with pictures, a sound and texts, names that try to be HTML, and its index; a picture is gone since."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a&b <i>").mkdir()
    shutil.copy(samples / "images" / "cat.jpg", folder / "a&b <i>" / "'x' \"y\".jpg")
    shutil.copy(samples / "images" / "dog.jpg", folder / "gone.jpg")
    shutil.copy(samples / "sounds" / "dog.ogg", folder)
    (folder / "note.txt").write_text(f"a  note\n{EVIL}", encoding="utf-8")
    (folder / EVIL.replace("/", ":")).with_suffix(".txt").write_text("words", encoding="utf-8")
    build(folder / "index", [folder], str(random_folder), device="cpu", progress=False)
    (folder / "gone.jpg").unlink()
    return folder


@pytest.fixture(scope="module")
def index(folder):
    with Index.open(folder / "index", device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def results(index, query):
    return index.search(query, collapse=False)


@pytest.fixture(scope="module")
def query(samples):
    return Query(text=f"a {EVIL}", image=samples / "images" / "cat.jpg", without="people")


@pytest.fixture(scope="module")
def page(results, query, folder):
    """The gallery of a search for words, a picture, and without something."""
    write_gallery(results, query, folder / "hits.html")
    return (folder / "hits.html").read_text(encoding="utf-8")


def test_gallery_runs_and_loads_nothing(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    style = page.partition("<style>")[2].partition("</style>")[0]
    body = page.partition("<body")[2]

    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith("script-src 'none'")
    assert not re.search(r"url\(|@import", style)
    assert not re.search(r"""(src|href|poster)="(https?:)?//""", body)
    assert "<img src=x" not in page
    assert html.escape(EVIL).replace("&#x27;", "&#39;") in page


def test_gallery_shows_every_hit(page, results):
    scores = [float(value) for value in re.findall(r"<b>.*?(-?[\d.]+)</b>", page)]

    assert page.count("<li>") == len(results) == 5
    assert scores == [float(hit.value.split()[-1]) for hit in results]
    assert "cat.jpg, without people</h1>" in page
    assert "<blockquote>gone.jpg</blockquote>" in page


def test_gallery_links_files_beside_it(page, folder):
    links = [unquote(html.unescape(link)) for link in re.findall(r'<a href="([^"]*)"', page)]

    assert len(links) == 5
    assert [link for link in links if not (folder / link).is_file()] == ["./gone.jpg"]


def test_large_sounds_are_linked(results, query, folder, monkeypatch):
    monkeypatch.setattr("onepeace.serve.gallery.EMBEDDED", (folder / "dog.ogg").stat().st_size - 1)

    write_gallery(results, query, folder / "linked.html")

    page = (folder / "linked.html").read_text(encoding="utf-8")
    assert '<audio controls preload="none" aria-label="dog.ogg" src="./dog.ogg">' in page
