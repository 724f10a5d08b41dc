"""The cards of the page: what is shown of a hit, and that nothing in a name, a caption or a text becomes HTML."""

import os

import pytest

from onepeace.index.search import Hit, Results
from onepeace.index.store import Item
from onepeace.serve import cards

EVIL = """<script>alert("1")</script>' onerror=x &amp; b"""


def item(path, modality, **fields):
    return Item(os.fspath(path), modality, id=7, mtime_ns=0x2A, **fields)


def hit(item, score=0.5, modality=None, **fields):
    return Hit(1, item, modality or item.modality, score, score, fields.pop("match", None), **fields)


def test_match_is_shown_in_percent_and_a_cosine_as_it_is():
    sound = item("/a/bark.ogg", "audio")
    assert ">93 %</span>" in cards.results(Results((hit(sound, match=0.934),), 5, True))
    assert ">-0.250</span>" in cards.results(Results((hit(sound, -0.25),), 5))


@pytest.mark.parametrize(("modality", "of_hit", "tag"), [("audio", "audio", "audio"), ("video", "image", "video")])
def test_player_starts_at_the_second_that_was_found(modality, of_hit, tag):
    found = hit(item("/a/long.mp4", modality, duration=7250.0), modality=of_hit, start=75.5, end=80.0)
    shown = cards.results(Results((found,), 1))
    assert f"<{tag} controls" in shown
    assert 'src="files/7?v=2a#t=75.5"' in shown
    assert "from 1:16" in shown
    assert "120:50" in shown
    assert ('poster="files/7/thumbnail?v=2a&amp;at=75.5"' in shown) == (modality == "video")


def test_video_that_browsers_do_not_play_is_shown_and_can_be_saved():
    found = hit(item("/a/old.avi", "video"), modality="audio", start=75.5)
    shown = cards.results(Results((found,), 1)) + cards.like(found.item)
    assert '<a href="files/7?v=2a" download><img src="files/7/thumbnail?v=2a&amp;at=75.5"' in shown
    assert "<video" not in shown
    assert "sound from 1:16" in shown
    assert shown.count("files/7/thumbnail?v=2a") == 2


def test_what_is_not_relevant_and_what_filters_leave_is_said():
    picture = hit(item("/a/b.jpg", "image"), match=0.1, copies=("/a/c.jpg",))
    shown = cards.results(Results((picture,), 9, False))
    assert "Nothing relevant found; the nearest are these" in shown
    assert "and 1 nearly the same" in shown
    assert "no file is left by the filters" in cards.results(Results((), 0))


def test_everything_from_a_file_is_escaped(tmp_path):
    text = tmp_path / "note.txt"
    text.write_text(EVIL, encoding="utf-8")
    status = text.stat()
    note = Item(str(text), "text", status.st_size, status.st_mtime_ns, id=7)
    named = item(f"/{EVIL}/{EVIL}{os.fsdecode(bytes([0xE9]))}.jpg", "image", caption=EVIL)
    shown = cards.results(Results((hit(note), hit(named)), 2)) + cards.like(named) + cards.problem(EVIL)
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(&quot;1&quot;)") >= 7
    assert "' onerror" not in shown
    assert shown.encode()


def test_picture_at_an_address_is_not_loaded():
    shown = cards.results(Results((hit(item("https://example.org/a.jpg", "image")),), 1))
    assert "<img" not in shown
    assert "a.jpg" in shown
