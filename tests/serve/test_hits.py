"""The page of hits: complete in one file, escaped, and usable without eyes or a mouse."""

import base64
import io
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.media import TWO_SCENES

from onepeace.index.exchange import import_vectors
from onepeace.index.search import Hit
from onepeace.index.store import Item
from onepeace.serve import hits as page
from onepeace.serve.hits import QueryPart, Shown, render

EVIL = """<script>alert("1")</script>' onerror=x &amp; b"""


def shown(rank, score, modality, path, of_hit=None, match=None, **options):
    item = Item(os.path.abspath(path), modality)
    return Shown(Hit(rank, item, of_hit or modality, score, score, match, **options), Path(path))


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside the style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def hits(samples, folder):
    text = folder / "note.txt"
    text.write_text(f"a note {EVIL}", encoding="utf-8")
    evil = folder / "a&b \"c\" <i>'d'.jpg"
    shutil.copyfile(samples / "images" / "cat.jpg", evil)
    return [
        shown(1, 0.51, "image", samples / "images" / "dog.jpg"),
        shown(2, 0.4, "audio", samples / "sounds" / "dog.ogg"),
        shown(3, 0.3, "text", text),
        shown(4, -0.1, "image", evil),
    ]


@pytest.fixture(scope="module")
def made(hits, samples, folder):
    query = [
        QueryPart("text", EVIL, 0.7),
        QueryPart("image", str(samples / "images" / "owl.jpg"), 0.2),
        QueryPart("audio", str(samples / "sounds" / "cat.ogg"), 0.1),
    ]
    return render(query, hits, folder, num_files=38, model="tiny")


def test_page_needs_nothing_outside(made):
    elements = Elements(made)
    assert elements.open == []
    sources = [attributes["src"] for attributes in elements.all("img") + elements.all("audio")]
    assert len(sources) == 5
    assert all(source.startswith(("data:image/", "data:audio/")) for source in sources)
    assert not elements.all("script")
    assert not elements.all("link")
    assert not re.search(r"url\(|@import|https?:", made)


def test_page_escapes_names_and_texts(made):
    elements = Elements(made)
    assert not elements.all("i")
    assert "".join(elements.words).count(EVIL) == 3  # title, query, and the text file
    handlers = [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert not handlers
    names = [attributes["alt"] for attributes in elements.all("img")]
    assert names == ["owl.jpg", "dog.jpg", "a&b \"c\" <i>'d'.jpg"]


def test_page_shows_rank_score_kind_and_weights(made):
    words = " ".join(" ".join(Elements(made).words).split())
    for part in ("4 best of 38 files", "1 picture 0.510 dog.jpg", "2 sound 0.400 dog.ogg", "3 text 0.300", "-0.100"):
        assert part in words
    assert [f"\xd7 {weight}" in words for weight in (0.7, 0.2, 0.1)] == [True] * 3


def test_page_shows_no_cosine_among_probabilities(samples, folder):
    pictures = [samples / "images" / f"{name}.jpg" for name in ("dog", "cat")]
    hits = [shown(1, 0.51, "image", pictures[0], match=0.2), shown(2, 0.4, "image", pictures[1])]
    page = render([QueryPart("text", "a", 1)], hits, folder, num_files=2, model="tiny")
    assert re.findall(r'class="score" title="(.*)">(.*)</span>', page) == [
        ("probability that it is relevant", "0.200"),
        ("probability that it is relevant", "-"),
    ]
    assert re.findall("width: (.*)%", page)[-2:] == ["100", "0"]


def test_page_is_usable_without_eyes_or_mouse(made):
    elements = Elements(made)
    assert elements.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in elements.all("img"))
    assert all(player["aria-label"] and "controls" in player for player in elements.all("audio"))
    boxes = elements.all("input")
    assert [box["id"] for box in boxes] == ["show-image", "show-audio", "show-text"]
    assert made.count("<label><input") == len(boxes)
    for box in boxes:  # what hides a kind of hit, without a script
        assert f"body:has(#{box['id']}:not(:checked)) li.{box['id'].removeprefix('show-')}" in made
    assert elements.all("meta")[1]["name"] == "viewport"
    assert "prefers-color-scheme: dark" in made


def test_page_links_to_the_files(made, hits, folder):
    links = [attributes["href"] for attributes in Elements(made).all("a")]
    assert [(folder / unquote(link)).resolve() for link in links] == [hit.content.resolve() for hit in hits]


def test_large_sounds_are_linked_instead(samples, tmp_path, monkeypatch):
    path = samples / "sounds" / "dog.ogg"
    size = path.stat().st_size
    sounds = [shown(rank, 0.1, "audio", path) for rank in (1, 2, 3)]
    monkeypatch.setattr(page, "SOUNDS_LIMIT", 2 * size)

    def sources():
        made = render([QueryPart("text", "a", 1.0)], sounds, tmp_path, num_files=3, model="tiny")
        return [player["src"] for player in Elements(made).all("audio")]

    assert [source.startswith("data:audio/ogg;base64,") for source in sources()] == [True, True, False]
    assert (tmp_path / unquote(sources()[2])).resolve() == path.resolve()
    monkeypatch.setattr(page, "SOUND_LIMIT", size - 1)
    assert not any(source.startswith("data:") for source in sources())


def test_video_starts_at_its_moment_with_the_picture_of_then(samples, tmp_path, monkeypatch):
    pytest.importorskip("av")
    old = tmp_path / "a.avi"
    shutil.copyfile(TWO_SCENES, old)
    soundfile.write(tmp_path / "sound.mp4", np.sin(np.arange(32000)), 32000, format="WAV")
    found = [
        shown(1, 0.5, "video", TWO_SCENES, of_hit="image", start=10.0, end=20.0),
        shown(2, 0.4, "video", TWO_SCENES, of_hit="audio", start=4.0004, end=14.0),
        shown(3, 0.3, "video", old, of_hit="image", start=10.0),
        shown(4, 0.2, "video", tmp_path / "sound.mp4", of_hit="audio", start=0.0),
    ]

    def players():
        return Elements(made := render([QueryPart("text", "a", 1.0)], found, tmp_path, num_files=9, model="m")), made

    elements, made = players()
    coffee, cat, sound = elements.all("video")
    assert [player["src"][:21] for player in (coffee, cat)] == ["data:video/webm;base64"[:21]] * 2
    assert [player["src"].rpartition("#")[2] for player in (coffee, cat, sound)] == ["t=10", "t=4.001", "t=0"]
    assert "poster" not in sound
    (image,) = elements.all("img")
    assert image["src"] == coffee["poster"]
    for source, name in ((coffee["poster"], "coffee"), (cat["poster"], "cat")):
        picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/webp;base64,"))))
        expected = Image.open(samples / "images" / f"{name}.jpg").convert("RGB").resize(picture.size)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(expected)).mean() < 15
    words = " ".join(" ".join(elements.words).split())
    assert "videos (4)" in words
    assert "1 video from 10 s 0.500" in words
    titles = [at["title"] for at in elements.all("span") if at["class"] == "at"]
    assert titles == [f"found by its {what}" for what in ("picture", "sound", "picture", "sound")]
    assert "li.video { display: none; }" in made

    monkeypatch.setattr(page, "SOUND_LIMIT", 1000)
    linked = players()[0].all("video")[0]["src"]
    assert linked.endswith("#t=10")
    assert (tmp_path / unquote(linked.removesuffix("#t=10"))).resolve() == TWO_SCENES


def test_file_that_went_away_is_only_named(tmp_path):
    gone = [shown(1, 0.1, kind, tmp_path / f"gone <b>.{ending}") for kind, ending in
            (("image", "jpg"), ("audio", "ogg"), ("text", "txt"), ("video", "mp4"))]  # fmt: skip
    made = render([QueryPart("text", "a", 1.0)], gone, tmp_path, num_files=3, model="tiny")
    assert made.count("gone &lt;b&gt;.") >= 8
    assert not Elements(made).all("b")


def test_shape_of_a_sound_is_drawn(tmp_path):
    samples = np.zeros(16000, np.float32)
    samples[8000:] = 0.5 * np.sin(np.arange(8000))
    soundfile.write(tmp_path / "late.wav", samples, 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    made = render(
        [QueryPart("text", "a", 1.0)],
        [shown(1, 0.2, "audio", tmp_path / "late.wav"), shown(2, 0.1, "audio", tmp_path / "silent.wav")],
        tmp_path, num_files=2, model="tiny",
    )  # fmt: skip
    heights = [int(bar["height"]) for bar in Elements(made).all("rect")]
    assert len(heights) == 2 * page.BARS
    assert max(heights[:47]) == 2
    assert min(heights[50:96]) > 80
    assert set(heights[96:]) == {2}


def test_search_writes_the_page(command, random_folder, tmp_path, samples):
    target = tmp_path / "hits.html"
    assert command("search", samples, "--text", "a <dog>", "--top", "5", "--html", target)[0] == 0
    elements = Elements(target.read_text(encoding="utf-8"))
    assert len(elements.all("li")) == 5
    assert "a <dog>" in elements.words
    assert f"5 best of 37 files, found by the model {random_folder}" in elements.words
    assert [path.name for path in target.parent.iterdir()] == ["hits.html"]


def test_page_of_imported_vectors_shows_the_query_as_it_was_given(command, tmp_path):
    words, source = ["a dog", "people"], tmp_path / "v.npz"
    np.savez(source, vectors=np.eye(2, dtype=np.float32), paths=np.array(["/a/one.jpg", "/a/two.ogg"]))
    import_vectors(tmp_path / "index", source, "clap")
    np.savez(tmp_path / "words.npz", vectors=np.eye(2, dtype=np.float32), paths=np.array(words))
    query = ["--text", words[0], "--without", words[1], "--vectors", tmp_path / "words.npz"]
    assert command("search", tmp_path / "index", *query, "--html", tmp_path / "hits.html")[0] == 0
    elements = Elements((tmp_path / "hits.html").read_text(encoding="utf-8"))
    assert [elements.words.count(each) for each in words] == [1, 1]
    assert "a dog, people - onepeace search" in elements.words


def test_page_of_no_hits(tmp_path):
    made = render([QueryPart("text", "a", 1.0)], [], Path(tmp_path), num_files=0, model="tiny")
    assert "0 best of 0 files" in made
    assert not Elements(made).all("li")
