"""`onepeace index caption`: captions a model wrote, kept with the pictures of an index, and found by them."""

from dataclasses import replace

import pytest
from support.generative import save_small_ofa
from support.indexes import fabricate

import onepeace
from onepeace.errors import UserError
from onepeace.index import Index, Item, check
from onepeace.index import captions as module
from onepeace.index.builder import BY
from onepeace.index.captions import write_captions
from onepeace.index.sources import state_of


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = save_small_ofa(tmp_path_factory.mktemp("ofa") / "model")
    return onepeace.load_generator(folder, device="cpu")


@pytest.fixture
def index(tmp_path, samples):
    """Three pictures and a text; one picture has a caption."""
    files = []
    for i, name in enumerate(("cat.jpg", "bus.jpg", "sea.jpg")):
        path = tmp_path / name
        path.write_bytes((samples / "images" / name).read_bytes())
        files.append((Item(str(path), "image", *state_of(str(path))), [1, i]))
    files[2] = replace(files[2][0], caption="the sea as it was", metadata={"year": 2001}), [1, 2]
    files.append((Item(str(tmp_path / "words.txt"), "text"), [0, 1]))
    return fabricate(tmp_path / "index", files)


def captions(folder):
    with Index.open(folder) as opened:
        return {item.path.rpartition("/")[2]: (item.caption, item.metadata.get(BY)) for item in opened.items()}


def caption(index, writer, **options):
    report = write_captions(index, writer, "small", progress=False, **options)
    return report.written, report.known, report.left_out


def test_pictures_without_a_caption_get_one(index, writer, samples, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert caption(index, writer) == (2, 1, 0)
    expected = writer.caption([samples / "images" / "cat.jpg"])[0].text
    found = captions(index)
    assert found["cat.jpg"] == (expected, "small")
    assert found["sea.jpg"] == ("the sea as it was", None)
    assert check(index).ok
    with Index.open(index) as opened:
        assert str(index.parent / "cat.jpg") in {
            item.path for item in opened.items(f"{expected.split()[0]!r} in caption")
        }
        assert len(opened.matrix) == 4
    assert caption(index, writer) == (0, 3, 0)  # what a model wrote is written again only if asked
    assert caption(index, writer, again=True) == (2, 1, 0)


def test_picture_that_is_gone_is_left_out(index, writer):
    (index.parent / "bus.jpg").unlink()
    assert caption(index, writer) == (1, 1, 1)
    assert captions(index)["bus.jpg"] == (None, None)


def test_no_index_is_said(tmp_path, writer):
    with pytest.raises(UserError, match="no index"):
        caption(tmp_path / "none", writer)
